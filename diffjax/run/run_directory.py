"""The run directory: made, checked and locked before a run writes into it."""

import fcntl
import shutil
from pathlib import Path
from typing import IO

import jax

from diffjax.errors import UserError
from diffjax.run import cli
from diffjax.run.processes import agreed
from diffjax.run.sampling import WEIGHTS
from diffjax.run.system import System

# What may change between two starts of one run: it moves to other devices, tells more or less.
FREE = ("name", "mesh.", "log_every", "checkpoint_every", "sample_every", "keep", "keep_every")
FREE += ("num_samples", "data.path", "time_budget", "sampling.", "parent", "text.folder")
FREE += ("data.latents", "epochs", "evaluation.", "collection.processes")


def prepare(config, workdir: Path, optional: dict | None = None) -> IO | None:
    """Makes or checks the run directory; returns a file whose lock ends when nobody holds it.

    Process 0 writes and locks (the others get None), and all processes leave together. `optional`
    are the fields that a config may leave out, with what that means.

    Raises:
      UserError: another process trains in it, or it holds a run of another config, or weights
        without the checkpoints that training would need.
    """
    lock = problem = None
    try:
        if jax.process_index() == 0:
            lock = _prepare(config, workdir, optional or {})
    except (UserError, OSError) as error:
        problem = error
    if agreed(float(problem is not None)):
        raise problem or UserError(f"process 0 cannot use {workdir}")
    return lock


def _prepare(config, workdir: Path, optional: dict) -> IO:
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir {workdir} is a file")
    known = workdir / "config.json"
    if known.is_file():
        refuse_other_config(config, workdir, optional)
        if (workdir / WEIGHTS).is_file() and not holds_checkpoint(workdir):
            raise UserError(
                f"{workdir} holds {WEIGHTS} but no checkpoint to go on from: "
                "give another --workdir, and --init_from this one to start from its weights"
            )
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
    temporary = workdir / "config.json.tmp"
    temporary.write_text(cli.config_json(config))
    temporary.replace(known)
    return lock


def refuse_other_config(config, workdir: Path, optional: dict) -> None:
    """Raises `UserError` with the fields in which the run in `workdir` has another config."""
    old, new = ({**optional, **cli.flatten(c)} for c in (cli.read_config(workdir), config))
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


def fingerprint(system: System) -> str:
    """Returns the training data's fingerprint, "" where the system keeps none."""
    about = system.assets.get("data", {})
    return about.get("fingerprint", "") if isinstance(about, dict) else ""


def copy(source: Path, target: Path) -> None:
    """Copies a file under a temporary name, then renames it."""
    target.parent.mkdir(exist_ok=True)
    temporary = target.with_name(target.name + ".tmp")
    shutil.copyfile(source, temporary)
    temporary.replace(target)
