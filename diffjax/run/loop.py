"""The one training loop, read from top to bottom: fork it rather than add a flag."""

import collections
import time
from pathlib import Path

import jax
import numpy as np

from diffjax.errors import UserError
from diffjax.run import cli, logs, pictures, run_directory, sampling, update
from diffjax.run import mesh as meshes
from diffjax.run.checkpoints import Checkpoints, append_json, cut_jsonl
from diffjax.run.feed import make_feed
from diffjax.run.processes import Signals, agreed
from diffjax.run.system import System, save_assets
from diffjax.weights import trees


def train(
    system: System,
    config,
    workdir: Path,
    *,
    init_from: str = "",
    profile: tuple[int, int] | None = None,
) -> int:
    """Trains to config.steps (or for config.time_budget seconds), resuming what `workdir` holds.

    Args:
      system: made from `config` without assets.
      config: see `configs/`; the fields that every config has are listed in docs/design.md.
      workdir: the run directory.
      init_from: a run directory or safetensors file whose weights a new run starts from.
      profile: (first, last) steps to record with the JAX profiler, into workdir/profile.

    Returns:
      The exit status: 0 done, 130 or 143 saved and left on Ctrl-C or SIGTERM.

    Raises:
      UserError: for what a person can mend, NaN included; the last good checkpoint is named.
    """
    # ---- devices, shapes: whatever may be wrong shows before anything is written --------------
    check_config(config)
    if init_from and system.begin is not None:
        raise UserError("--init_from: this run starts from the runs that its config names")
    mesh = meshes.make_mesh(config.mesh)
    update.check_batch(config, mesh)
    main = jax.process_index() == 0
    shapes, shardings = update.state_shapes(system, config, mesh)
    feed = make_feed(system, config, mesh)
    request = system.request
    check_request(system, request, config.num_samples)
    weights = source = None
    if not run_directory.holds_checkpoint(workdir):
        if system.begin is not None:
            weights, source = system.begin(mesh)
        elif init_from:
            weights, source = load_weights(system, init_from, shapes.params, shardings.params)
    beside, looked_at = [], ""
    if system.beside is not None:
        tree, looked_at = system.beside(mesh)
        beside.append(tree)

    # ---- the run directory ------------------------------------------------------------------
    lock = run_directory.prepare(config, workdir, {**update.OPTIONAL, **system.optional})
    checkpoints = Checkpoints(workdir, keep=config.keep, keep_every=config.keep_every)
    newest = checkpoints.newest()

    # ---- state: new, or where the run was -----------------------------------------------------
    elapsed = 0.0
    if newest is not None:
        meta = checkpoints.meta(newest)
        if meta["fingerprint"] != run_directory.fingerprint(system):
            raise UserError(
                f"{workdir} was trained on other data than {config.data.path!r}{behind(config)}; "
                "give these data another --workdir"
            )
        state, elapsed = checkpoints.restore(shapes, newest)[0], float(meta["elapsed"])
    else:
        state = update.init_state(system, config, shardings, weights)
        del weights  # the state has them
    first = step = newest or 0

    def progress() -> float:
        """The done share of the run: of its steps or of its time budget, whichever is further."""
        share = step / config.steps
        return max(share, elapsed / config.time_budget) if config.time_budget else share

    first_beside = meta.get("beside", looked_at) if newest is not None else looked_at
    if progress() < 1 and first_beside != looked_at:
        raise UserError(
            f"{workdir} was trained beside {first_beside}, and now there is {looked_at}: "
            "give it that one back, or another --workdir"
        )
    if main:
        save_assets(system.assets, workdir)
        cut_jsonl(workdir / "metrics.jsonl", step)
        record = {"event": "resume" if newest is not None else "start", "step": step}
        record |= {"init_from": source} if source else {}
        append_json(workdir / "log.jsonl", {**record, **logs.environment(config.seed)})
    log = logs.Logger(workdir, start=step, steps=config.steps, batch_size=config.batch_size)
    sample = sampling.sampler(system, request, mesh)
    known = system.alarm is not None and (workdir / "metrics.jsonl").is_file()
    history = logs.read_metrics(workdir) if known else []

    def save() -> None:
        data_print = run_directory.fingerprint(system)
        meta = {"elapsed": elapsed, "fingerprint": data_print, "ema": sorted(config.ema)}
        meta |= {"beside": looked_at} if looked_at else {}
        checkpoints.save(state, meta)
        if main:
            append_json(workdir / "log.jsonl", {"event": "checkpoint", "step": step})

    def picture() -> Path:
        return workdir / "samples" / f"step_{step:08d}{system.suffix}"

    def plot() -> None:
        if main:
            pictures.loss_plot(workdir / "metrics.jsonl", workdir / "loss.png", system.panels)

    def draw() -> None:
        outputs = sampling.collect(
            system,
            next(iter(state.ema.values())),
            request,
            num=config.num_samples,
            seed=config.seed,
            batch=config.num_samples,
            mesh=mesh,
            run=sample,
        )
        if system.compare is not None:
            compare(system, config, workdir, mesh)
        if main:
            system.show(outputs, workdir / f"samples{system.suffix}")
            plot()
            run_directory.copy(
                workdir / f"samples{system.suffix}", picture()
            )  # last: it says that all are made

    # ---- the step, compiled once ------------------------------------------------------------
    run_step = update.jitted_step(system, config, feed, mesh, shardings)
    place = meshes.replicated(mesh)
    data = feed.start(step)
    pending, in_flight = [], collections.deque()
    start_clock, before = time.monotonic(), elapsed

    # ---- the loop ---------------------------------------------------------------------------
    if progress() < 1:
        begin = "resuming at" if step else "from"
        log.say(f"{workdir}: {begin} step {step} of {config.steps}; the first step compiles")
    if source:
        log.say(f"{workdir}: starting from {source}")
        save()  # so that a kill before the first checkpoint does not forget these weights
    elif init_from:
        log.say(f"{workdir}: going on with its own checkpoint; --init_from is not used")
    with Signals() as signals, logs.Profile(workdir, profile) as profiler:
        stop = 0
        while progress() < 1 and not stop:
            profiler.before(step - first)
            fed = next(data)
            share = jax.device_put(np.float32(progress()), place)
            with jax.transfer_guard("disallow"):
                state, metrics = run_step(state, fed, share, *beside)
            step += 1
            pending.append(metrics)
            # Two steps in flight keep the device busy and Ctrl-C prompt.
            in_flight.append(metrics["loss"])
            if len(in_flight) > 2:
                jax.block_until_ready(in_flight.popleft())
            # Processes agree on the clock and on a signal when they log: in between, talk costs.
            logging = step % config.log_every == 0
            if jax.process_count() == 1 or logging:
                elapsed = agreed(before + time.monotonic() - start_clock)
                stop = agreed(signals.got)
            profiler.after(step - first, metrics)
            last = progress() >= 1
            saving = step % config.checkpoint_every == 0 or last
            if logging or saving:
                if int(state.bad_step) >= 0:
                    raise UserError(bad_step(int(state.bad_step), checkpoints, workdir))
                means = {k: float(np.mean([float(m[k]) for m in pending])) for k in metrics}
                pending.clear()
                left = config.time_budget - elapsed if config.time_budget else None
                log.metrics(step, means, left)
                if system.alarm is not None:
                    history.append({"step": step, **means})
                    if (found := system.alarm(history)) is not None:
                        plot()
                        raise UserError(alarmed(*found, checkpoints, workdir))
            if saving:
                save()
            if step % config.sample_every == 0 and not last:
                draw()
            if saving or step % config.sample_every == 0:
                log.restart(step)  # the rate is of training alone

    if profiler.missed:
        log.say(f"{workdir}: --profile_steps {profile[0]}:{profile[1]} was not reached")

    # ---- leave: saved, and at the end with a picture ------------------------------------------
    finished = progress() >= 1
    if int(state.bad_step) >= 0:
        raise UserError(bad_step(int(state.bad_step), checkpoints, workdir))
    if not finished:
        save()
        plot()
    # A kill may have come between the last checkpoint and these: then they are made now.
    if finished and not picture().exists():
        draw()
    if finished and (step > first or not (workdir / sampling.WEIGHTS).exists()):
        weights = sampling.fetch(next(iter(state.ema.values())))
        if main:
            if system.finish is not None:
                save_assets(system.finish(weights), workdir)
            trees.save(weights, workdir / sampling.WEIGHTS, {"step": str(step)})
    checkpoints.close()
    log.close()
    if lock is not None:
        lock.close()
    if finished:
        done = "done" if step > first else "was finished already"
        log.say(f"{workdir}: {done}, step {step}. Samples: {workdir}/samples{system.suffix}")
        return 0
    log.say(f"{workdir}: saved at step {step}; the same command resumes")
    return 128 + int(stop)


COUNTS = ("steps", "checkpoint_every", "log_every", "sample_every", "num_samples", "keep")
FIELDS = {
    **dict.fromkeys((*COUNTS, "seed", "batch_size", "accumulate", "keep_every"), int),
    "time_budget": float,
    "optimizer.schedule": str,
    **dict.fromkeys(
        [f"optimizer.{k}" for k in ("learning_rate", "final", "b1", "b2", "eps", "clip")], float
    ),
    **dict.fromkeys(("optimizer.warmup_steps", "optimizer.weight_decay"), float),
}


def check_config(config) -> None:
    """Raises `UserError` for what every config has, where it is absent or makes no sense."""
    cli.require(config, FIELDS)
    cli.with_defaults(config, update.OPTIONAL)  # whose types it checks
    for group in ("mesh", "ema"):
        if group not in config or not len(config[group]):
            raise UserError(f"config lacks the group {group!r}")
    for name in COUNTS:
        if config[name] < 1:
            raise UserError(f"config.{name} {config[name]}: must be at least 1")
    if config.keep_every < 0:
        raise UserError(f"config.keep_every {config.keep_every}: steps, 0 for none")
    if config.time_budget < 0:
        raise UserError(f"config.time_budget {config.time_budget}: seconds, 0 for none")
    if not 0 <= config.seed < 2**32:
        raise UserError(f"config.seed {config.seed}: must be from 0 to {2**32 - 1}")
    for name in ("learning_rate", "eps"):
        if not config.optimizer[name] > 0:
            raise UserError(f"config.optimizer.{name} must be above 0")
    for name in ("b1", "b2"):
        if not 0 <= config.optimizer[name] < 1:
            raise UserError(f"config.optimizer.{name} {config.optimizer[name]}: must be in [0, 1)")
    for name in ("clip", "weight_decay", "final", "warmup_steps"):
        if config.optimizer[name] < 0:
            raise UserError(f"config.optimizer.{name} {config.optimizer[name]}: at least 0")


def check_request(system: System, request, num: int) -> None:
    """Raises `UserError` where config.sampling asks for what the system cannot sample."""
    try:
        system.condition(request, np.arange(num))
    except UserError as error:
        raise UserError(f"config.sampling: {error}") from error


def load_weights(system: System, init_from: str, shapes, shardings):
    """Returns (weights, what they are): another run's newest EMA, or a file's."""
    path = Path(init_from)
    if path.is_dir():
        cli.read_config(path)
        mesh = jax.tree.leaves(shardings)[0].mesh
        params, which = sampling.load_params(system, path, mesh)
        return params, f"{path} ({which})"
    return jax.device_put(trees.fit(trees.load(path), shapes, init_from), shardings), str(path)


def compare(system: System, config, workdir: Path, mesh) -> None:
    """Draws base.png, once: what the samples of this run are shown beside."""
    path = workdir / f"base{system.suffix}"
    if not agreed(float(path.exists())):
        outputs = system.compare(mesh, config.num_samples, config.seed)
        if jax.process_index() == 0:
            system.show(outputs, path)


def behind(config) -> str:
    """What else data may differ in: the autoencoder whose latents stand for them."""
    name = config.data.get("latents", "")
    return f" behind the autoencoder {name!r}" if name else ""


def alarmed(since: int, what: str, checkpoints: Checkpoints, workdir: Path) -> str:
    """Returns the line that a run's own alarm leaves with; since: the first step of it."""
    checkpoints.wait()
    good = max((s for s in checkpoints.steps() if s <= since), default=None)
    if jax.process_index() == 0:
        append_json(workdir / "log.jsonl", {"event": "alarm", "step": since})
    kept = "no checkpoint from before is kept (config.keep)"
    if good is not None:
        kept = f"the last good checkpoint is step {good} (sample.py --step {good})"
    return f"{workdir}: {what}; {kept}"


def bad_step(
    step: int, checkpoints: Checkpoints, workdir: Path, field: str = "config.optimizer"
) -> str:
    """Returns the line that the NaN guard leaves with; `field` is the group of the rate's field."""
    checkpoints.wait()  # the newest may still be on its way to the disk
    good = checkpoints.newest()
    if jax.process_index() == 0:
        append_json(workdir / "log.jsonl", {"event": "not finite", "step": step})
    kept = f"the last good checkpoint is step {good}" if good is not None else "no checkpoint yet"
    return (
        f"{workdir}: the loss or its gradient was not finite at step {step}; {kept}. "
        f"Lower {field}.learning_rate or see docs/troubleshooting.md"
    )
