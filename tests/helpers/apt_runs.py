"""Runs of APT in seconds, on a base that the caller trained."""

from pathlib import Path

from diffjax.run import cli
from diffjax.systems import stages

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "steps": 6,
    "batch_size": 8,
    "checkpoint_every": 3,
    "log_every": 1,
    "sample_every": 100,
    "num_samples": 6,
    "distil.steps": 4,
    "distil.batch_size": 8,
    "distillation.steps": 8,
    # One head and no penalty: these programs are what most tests here wait for.
    "adversarial.taps": "(2,)",
    "adversarial.r1_weight": 0.0,
}


def words(base, **more) -> list[str]:
    """train.py's words, but --workdir, for post-training of a run; __ in a name is a dot."""
    fields = {**SMALL, "base": base, **{k.replace("__", "."): v for k, v in more.items()}}
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    return ["--config", str(ROOT / "configs" / "apt_tiny.py"), *flags]


def whole(base, **more):
    """The config that these words make."""
    _, overrides = cli.split_overrides(words(base, **more)[2:])
    return cli.apply_overrides(cli.load_config(str(ROOT / "configs" / "apt_tiny.py")), overrides)


def of(base, stage: str = "adversarial", **more):
    """The config of one stage's own run; stage C without a run to begin from has the base's."""
    if stage == "adversarial" and "distilled" not in more:
        more = {"adversarial__g_from": "diffusion", **more}
    return stages(whole(base, stage=stage, **more), Path("unused"))[-1][0]
