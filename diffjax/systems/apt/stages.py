"""Which runs one command trains: those that a one-step generator needs and that are not there yet.

    config.base           its own stages       trained by one command
    ""                    all three            WORKDIR/base, WORKDIR/distilled, WORKDIR
    a diffusion model     B and C              WORKDIR/distilled, WORKDIR
    a run of this system  C                    WORKDIR

Each is a run like any other, so the same command resumes wherever it was killed, and each can be
sampled, scored or named as another run's base. With config.stage "distil", B is the last.
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffjax.errors import UserError, choose
from diffjax.run import cli
from diffjax.systems.apt import adversary, origins, student

STAGES = ("distil", "adversarial")
# Groups that a run of one stage does not have.
FOREIGN = {
    "distil": ("distil", "pretrain", "adversarial", "relay"),
    "adversarial": ("distil", "pretrain", "distillation"),
}
PARENT = "parent"  # a field of bases whose samples start from those of another run


def stages(config, workdir: Path) -> list[tuple[ConfigDict, Path]]:
    """Returns [(config, workdir), ...] in the order in which they are to be trained.

    Raises:
      UserError: fields that make no sense, of any stage, before the first is trained.
    """
    cli.require(config, {"stage": str, "base": str, "distilled": str, "data.path": str})
    choose(config.stage, dict.fromkeys(STAGES), "config.stage")
    base, distilled, plan = config.base, config.distilled, []
    if not base:
        base = str(workdir / "base")
        theirs = _pretraining(config)
        plan.append((theirs, Path(base)))
    else:
        theirs = cli.read_config(origins.place(base))
        if theirs.get("system") == "apt":
            if config.stage == "distil":
                raise UserError(f"config.base {base}: is distilled already")
            distilled, base = distilled or base, str(origins.place(theirs.base, Path(base)))
            theirs = cli.read_config(origins.place(base))
    config = _related(config, theirs)
    if config.stage == "distil":
        plan.append((of_stage(config, "distil", base), workdir))
        return _fitting(plan, bool(config.base))
    given = config.adversarial if "adversarial" in config else {}
    needed = "distilled" in (given.get("g_from"), given.get("d_from"))
    if needed and not distilled:
        distilled = str(workdir / "distilled")
        plan.append((of_stage(config, "distil", base), Path(distilled)))
    plan.append((of_stage(config, "adversarial", base, distilled), workdir))
    return _fitting(plan, bool(config.base))


def _fitting(plan: list, there: bool) -> list:
    """The plan, if its stages fit a base that is there: better said before the first is trained."""
    for config, _ in plan if there else ():
        base = origins.opened(config, origins.read(config))
        if config.stage == "distil":
            student.scale_of(config, base)
        else:
            adversary.taps_of(config, base.backbone.blocks())
    return plan


def _related(config, theirs) -> ConfigDict:
    """The config with `parent`, the run that samples start from, where its base has one; else
    without the group `relay`."""
    made = config.copy_and_resolve_references()
    made.unlock()
    group = made.get("relay", ConfigDict())
    cli.require(made, {f"relay.{name}": str for name in group})
    if "relay" in made:
        del made["relay"]
    given = {k: v for k, v in group.items() if v not in ("", "picture")}
    if PARENT not in theirs:
        if given:
            raise UserError(
                f"config.relay.{next(iter(given))}: samples of a run of {theirs.get('system')} do "
                "not start from another run's"
            )
        return made
    made.parent = group.get("parent") or theirs.parent
    made.relay = ConfigDict({"sees": group.get("sees", "picture")})
    return made


def _pretraining(config) -> ConfigDict:
    if "pretrain" not in config or "system" not in config.pretrain:
        raise UserError("config.base is empty: a run directory, or a config of one in pretrain")
    if config.pretrain.system == "apt":
        raise UserError("config.pretrain.system apt: the base is a diffusion model")
    made = config.pretrain.copy_and_resolve_references()
    made.unlock()
    if config.data.path:
        made.data.path = config.data.path
    return made


def of_stage(config, stage: str, base: str, distilled: str = "") -> ConfigDict:
    """Returns the config of one stage's run; the group `distil` has what differs in stage B.

    Raises:
      UserError: fields that make no sense.
    """
    made = config.copy_and_resolve_references()
    made.unlock()
    own = made.get("distil", ConfigDict()) if stage == "distil" else ConfigDict()
    for name in FOREIGN[stage]:
        if name in made:
            del made[name]
    for name, value in own.items():
        made[name] = value
    made.update(stage=stage, base=base, distilled=distilled)
    if stage == "distil":
        student.check(made)
    else:
        adversary.check(made)
    return made
