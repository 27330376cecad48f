"""The one training loop, read from top to bottom: fork it rather than add a flag."""

import collections
import fcntl
import shutil
import signal
import time
from pathlib import Path
from typing import IO

import jax
import numpy as np

from diffjax.errors import UserError
from diffjax.run import cli, logs, pictures, sampling, update
from diffjax.run import mesh as meshes
from diffjax.run.checkpoints import Checkpoints, append_json, cut_jsonl
from diffjax.run.feed import make_feed
from diffjax.run.system import System, save_assets
from diffjax.weights import trees

# What may change between two starts of one run: it moves to other devices, tells more or less.
FREE = ("mesh.", "log_every", "checkpoint_every", "sample_every", "keep", "keep_every")
FREE += ("num_samples", "data.path", "time_budget", "sampling.")


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
    mesh = meshes.make_mesh(config.mesh)
    update.check_batch(config, mesh)
    main = jax.process_index() == 0
    shapes, shardings = update.state_shapes(system, config, mesh)
    feed = make_feed(system, config, mesh)
    request = system.request
    system.condition(request, np.arange(config.num_samples))
    weights = None
    if init_from and not holds_checkpoint(workdir):
        weights = load_weights(system, init_from, shapes.params, shardings.params)

    # ---- the run directory ------------------------------------------------------------------
    lock = prepare_workdir(system, config, workdir, main)
    meet("workdir")
    checkpoints = Checkpoints(workdir, keep=config.keep, keep_every=config.keep_every)
    newest = checkpoints.newest()

    # ---- state: new, or where the run was -----------------------------------------------------
    elapsed = 0.0
    if newest is not None:
        state, meta = checkpoints.restore(shapes, newest)
        elapsed = float(meta["elapsed"])
        if meta["fingerprint"] != fingerprint(system):
            raise UserError(
                f"{workdir} was trained on other data than {config.data.path!r}; "
                "give these data another --workdir"
            )
    else:
        state = update.init_state(system, config, shardings)
        if weights is not None:
            state = start_from(state, weights)
    first = step = newest or 0

    def progress() -> float:
        """The done share of the run: of its steps or of its time budget, whichever is further."""
        share = step / config.steps
        return max(share, elapsed / config.time_budget) if config.time_budget else share

    if main:
        cut_jsonl(workdir / "metrics.jsonl", step)
        record = {"event": "resume" if newest is not None else "start", "step": step}
        append_json(workdir / "log.jsonl", {**record, **logs.environment(config.seed)})
    log = logs.Logger(workdir, start=step, steps=config.steps, batch_size=config.batch_size)
    sample = sampling.sampler(system, request, mesh)

    def save() -> None:
        meta = {"elapsed": elapsed, "fingerprint": fingerprint(system), "ema": list(config.ema)}
        checkpoints.save(state, meta)
        if main:
            append_json(workdir / "log.jsonl", {"event": "checkpoint", "step": step})

    def picture() -> Path:
        return workdir / "samples" / f"step_{step:08d}{system.suffix}"

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
        if main:
            system.show(outputs, workdir / f"samples{system.suffix}")
            pictures.loss_plot(workdir / "metrics.jsonl", workdir / "loss.png")
            copy(workdir / f"samples{system.suffix}", picture())  # last: it says that all are made

    # ---- the step, compiled once ------------------------------------------------------------
    run_step = jax.jit(
        update.step_function(system, config, feed, mesh),
        donate_argnums=0,
        out_shardings=(shardings, meshes.replicated(mesh)),
    )
    place = meshes.replicated(mesh)
    data = feed.start(step)
    pending, in_flight = [], collections.deque()
    start_clock, before = time.monotonic(), elapsed

    # ---- the loop ---------------------------------------------------------------------------
    if progress() < 1:
        begin = "resuming at" if step else "from"
        log.say(f"{workdir}: {begin} step {step} of {config.steps}; the first step compiles")
    with Signals() as signals:
        stop = 0
        while progress() < 1 and not stop:
            if profile and step - first == profile[0]:
                jax.profiler.start_trace(str(workdir / "profile"))
            fed = next(data)
            share = jax.device_put(np.float32(progress()), place)
            with jax.transfer_guard("disallow"):
                state, metrics = run_step(state, fed, share)
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
            if profile and step - first == profile[1]:
                jax.block_until_ready(state)
                jax.profiler.stop_trace()
            last = progress() >= 1
            saving = step % config.checkpoint_every == 0 or last
            if logging or saving:
                if int(state.bad_step) >= 0:
                    raise UserError(bad_step(int(state.bad_step), checkpoints, workdir))
                means = {k: float(np.mean([float(m[k]) for m in pending])) for k in metrics}
                pending.clear()
                left = config.time_budget - elapsed if config.time_budget else None
                log.metrics(step, means, left)
            if saving:
                save()
            if step % config.sample_every == 0 and not last:
                draw()
            if saving or step % config.sample_every == 0:
                log.restart(step)  # the rate is of training alone

    # ---- leave: saved, and at the end with a picture ------------------------------------------
    finished = progress() >= 1
    if not finished and int(state.bad_step) < 0:
        save()
        if main:
            pictures.loss_plot(workdir / "metrics.jsonl", workdir / "loss.png")
    # A kill may have come between the last checkpoint and these: then they are made now.
    if finished and not picture().exists():
        draw()
    if finished and (step > first or not (workdir / sampling.WEIGHTS).exists()):
        weights = sampling.fetch(next(iter(state.ema.values())))
        if main:
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
    "optimizer.warmup_steps": int,
    **dict.fromkeys(
        [f"optimizer.{k}" for k in ("learning_rate", "final", "b1", "b2", "eps", "clip")], float
    ),
    "optimizer.weight_decay": float,
}


def check_config(config) -> None:
    """Raises `UserError` for what every config has, where it is absent or makes no sense."""
    cli.require(config, FIELDS)
    for group in ("mesh", "ema"):
        if group not in config or not len(config[group]):
            raise UserError(f"config lacks the group {group!r}")
    for name in COUNTS:
        if config[name] < 1:
            raise UserError(f"config.{name} {config[name]}: must be at least 1")
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


def prepare_workdir(system: System, config, workdir: Path, main: bool = True) -> IO | None:
    """Makes or checks the run directory; returns a file whose lock ends when nobody holds it.

    Every process checks, so that all leave on a mistake; only `main` writes and locks.

    Raises `UserError` where another process trains in it, or it holds a run of another config.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir {workdir} is a file")
    known = workdir / "config.json"
    if known.is_file():
        refuse_other_config(config, workdir)
    if not main:
        return None
    if workdir.is_dir() and any(workdir.iterdir()) and not known.is_file():
        # What a run that was killed while it made the directory leaves is no reason to refuse.
        made = (".lock", "assets", "config.json.tmp")
        held = [p.name for p in workdir.iterdir() if p.name not in made]
        if held:
            raise UserError(f"--workdir {workdir} holds {held[0]!r} and is no run directory")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("a")
    except OSError as error:
        raise UserError(f"--workdir {workdir}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise UserError(f"{workdir}: another process is training here") from error
    if known.is_file():
        return lock
    save_assets(system.assets, workdir)
    temporary = workdir / "config.json.tmp"
    temporary.write_text(cli.config_json(config))
    temporary.replace(known)
    return lock


def refuse_other_config(config, workdir: Path) -> None:
    """Raises `UserError` with the fields in which the run in `workdir` has another config."""
    old, new = cli.flatten(cli.read_config(workdir)), cli.flatten(config)
    differ = [
        f"{k} {old.get(k)!r} -> {new.get(k)!r}"
        for k in sorted(old.keys() | new.keys())
        if old.get(k) != new.get(k) and not k.startswith(FREE)
    ]
    if differ:
        raise UserError(
            f"{workdir} holds a run with another config: {'; '.join(differ)}. "
            "Give it the same values, or another --workdir"
        )


def holds_checkpoint(workdir: Path) -> bool:
    """Whether the run in `workdir` has been saved: it then goes on from there."""
    return any(p.name.isdigit() for p in (workdir / "checkpoints").glob("*"))


def load_weights(system: System, init_from: str, shapes, shardings):
    """Returns the weights of another run (its newest EMA) or of a file, placed by `shardings`."""
    path = Path(init_from)
    if path.is_dir():
        cli.read_config(path)
        mesh = jax.tree.leaves(shardings)[0].mesh
        return sampling.load_params(system, path, mesh)[0]
    return jax.device_put(trees.fit(trees.load(path), shapes, init_from), shardings)


def start_from(state: update.State, params) -> update.State:
    """Returns the new state with other weights, EMAs included."""
    copies = {name: jax.tree.map(lambda a: a.copy(), params) for name in state.ema}
    return state._replace(params=params, ema=copies)


def fingerprint(system: System) -> str:
    """Returns the training data's fingerprint, "" where the system keeps none."""
    about = system.assets.get("data", {})
    return about.get("fingerprint", "") if isinstance(about, dict) else ""


def bad_step(step: int, checkpoints: Checkpoints, workdir: Path) -> str:
    """Returns the line that the NaN guard leaves with."""
    checkpoints.wait()  # the newest may still be on its way to the disk
    good = checkpoints.newest()
    if jax.process_index() == 0:
        append_json(workdir / "log.jsonl", {"event": "not finite", "step": step})
    kept = f"the last good checkpoint is step {good}" if good is not None else "no checkpoint yet"
    return (
        f"{workdir}: the loss or its gradient was not finite at step {step}; {kept}. "
        "Lower config.optimizer.learning_rate or see docs/troubleshooting.md"
    )


def agreed(value: float) -> float:
    """Returns the largest of all processes' values: clocks differ, the learning rate may not."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return float(np.max(multihost_utils.process_allgather(np.float32(value))))


def meet(name: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def copy(source: Path, target: Path) -> None:
    """Copies a file under a temporary name, then renames it."""
    target.parent.mkdir(exist_ok=True)
    temporary = target.with_name(target.name + ".tmp")
    shutil.copyfile(source, temporary)
    temporary.replace(target)


class Signals:
    """Inside its `with`, SIGINT and SIGTERM are only noted in `got` (2, 15); else 0.

    A second Ctrl-C leaves at once.
    """

    def __enter__(self):
        self.got = 0
        self._old = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number, frame):
        if self.got:
            signal.signal(number, signal.default_int_handler)
        self.got = number

    def __exit__(self, *_):
        for number, handler in self._old.items():
            signal.signal(number, handler)
