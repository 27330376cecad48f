"""What a run tells: the progress bar, metrics as JSON lines, TensorBoard, the environment."""

import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
from tqdm import tqdm

from diffjax.run.checkpoints import append_json

PACKAGES = ("diffjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain")


def environment(seed: int) -> dict:
    """Returns what another person needs to know to repeat the run: versions, devices, commit."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "seed": seed,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "devices": [d.device_kind for d in jax.devices()],
        "processes": jax.process_count(),
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The checkout's commit, "+" where files differ from it; None outside a checkout."""
    git = shutil.which("git")
    if git is None:
        return None
    here = ["git", "-C", str(Path(__file__).resolve().parent)]
    try:
        head = subprocess.run([*here, "rev-parse", "HEAD"], capture_output=True, timeout=10)
        changed = subprocess.run(
            [*here, "status", "--porcelain", "-uno"], capture_output=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if head.returncode:
        return None
    return head.stdout.decode().strip() + ("+" if changed.stdout.strip() else "")


class Logger:
    """Writes metrics.jsonl (and TensorBoard files where it is installed) and shows progress.

    On a terminal a progress bar with loss, rate and time left; elsewhere one line a minute.
    Only process 0 writes.
    """

    def __init__(self, workdir: Path, *, start: int, steps: int, batch_size: int):
        self.path = workdir / "metrics.jsonl"
        self.steps, self.batch_size = steps, batch_size
        self._main = jax.process_index() == 0
        self._clock = self._said = time.monotonic()
        self._last_step, self._rate = start, 0.0
        self._bar = None
        if self._main and sys.stderr.isatty():
            form = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]"
            self._bar = tqdm(
                total=steps, initial=start, unit="step", dynamic_ncols=True, bar_format=form
            )
        self._board = _tensorboard(workdir) if self._main else None

    def metrics(self, step: int, values: dict[str, float], left: float | None) -> None:
        """Logs the means since the last call.

        Args:
          step: completed steps.
          values: {name: number}.
          left: seconds left by the time budget, or None to go by the rate.
        """
        now = time.monotonic()
        rate = (step - self._last_step) / max(now - self._clock, 1e-9)
        self._clock, self._last_step = now, step
        if not self._main:
            return
        record = {"step": step, **values, "images_per_second": round(rate * self.batch_size, 2)}
        append_json(self.path, record)
        if self._board:
            for name, value in record.items():
                if name != "step":
                    self._board.add_scalar(name, value, step)
        self._rate = 0.9 * (self._rate or rate) + 0.1 * rate
        left = (self.steps - step) / max(self._rate, 1e-9) if left is None else left
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix_str(f"loss {values['loss']:.4f}, {clock(left)} left")
        elif now - self._said >= 60:
            self._said = now
            self.say(
                f"step {step}/{self.steps}  loss {values['loss']:.4f}  "
                f"{rate:.2f} steps/s  {clock(left)} left"
            )

    def restart(self, step: int) -> None:
        """Starts the rate's clock anew, after something that was not training."""
        self._clock, self._last_step = time.monotonic(), step

    def say(self, line: str) -> None:
        """Prints a line above the bar, on process 0."""
        if self._main:
            tqdm.write(line, file=sys.stderr)
            sys.stderr.flush()

    def close(self) -> None:
        """Takes the bar away and closes the files."""
        if self._bar is not None:
            self._bar.close()
        if self._board:
            self._board.close()


class Profile:
    """Records steps FIRST to LAST of this start with the JAX profiler, into workdir/profile."""

    def __init__(self, workdir: Path, steps: tuple[int, int] | None):
        self._folder, self._steps, self._on = str(workdir / "profile"), steps, False
        self.missed = steps is not None  # until the first step of the range is reached

    def __enter__(self):
        return self

    def before(self, step: int) -> None:
        """Call before each step, with the number of steps done since the start."""
        if self._steps and step == self._steps[0]:
            jax.profiler.start_trace(self._folder)
            self._on, self.missed = True, False

    def after(self, step: int, results) -> None:
        """Call after each step, with something that it computed, to wait for."""
        if self._on and step == self._steps[1]:
            self._stop(results)

    def _stop(self, results=None) -> None:
        jax.block_until_ready(results)
        jax.profiler.stop_trace()
        self._on = False

    def __exit__(self, *_):
        if self._on:  # the run ended within the range: what there is, is kept
            self._stop()


def clock(seconds: float) -> str:
    """Returns seconds as 1:02:03 or 2:03."""
    seconds = max(0, int(seconds))
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def _tensorboard(workdir: Path):
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(workdir / "tensorboard"))


def read_metrics(workdir: Path) -> list[dict]:
    """Returns the records of a run's metrics.jsonl."""
    text = (workdir / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]
