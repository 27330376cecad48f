"""Checkpoints: written whole or not at all, in the background, restored on any set of devices.

A state is `update.State`, or any other NamedTuple with a `step` and `params`: a system with an
outer loop of its own brings its own.
"""

import json
import logging
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from diffjax.errors import UserError
from diffjax.weights import trees

META = ("elapsed", "fingerprint", "ema")  # what `loop.train` saves beside a state


class Checkpoints:
    """The `checkpoints/` folder of a run directory.

    A step's folder appears by one rename, so a kill at any moment leaves the one before it whole.
    The last `keep` are kept, and every `keep_every`-th step for good (0: none). With `read_only`
    nothing is saved or tidied away: another process may be writing here.
    """

    def __init__(
        self, workdir: Path, *, keep: int = 2, keep_every: int = 0, read_only: bool = False
    ):
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells every step it takes
        self.folder = workdir.resolve() / "checkpoints"
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder} is a file, not a folder of checkpoints")
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                keep_period=keep_every or None,
                cleanup_tmp_directories=True,
                enable_async_checkpointing=True,
                read_only=read_only,
            ),
        )

    def steps(self) -> list[int]:
        """Returns the steps that can be restored, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, state: NamedTuple, meta: dict) -> None:
        """Starts writing the state and a JSON-ready dict; returns before they are on disk."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        if jax.default_backend() == "cpu":
            # On CPU the writer would read the very buffers that the next step's donation reuses.
            state = jax.tree.map(jnp.copy, state)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state._asdict()), meta=ocp.args.JsonSave(meta)
            ),
        )

    def restore(self, shapes: NamedTuple, step: int | None = None) -> tuple[Any, dict]:
        """Returns the state (placed as `shapes` says) and the dict of a step, default the newest.

        Args:
          shapes: ShapeDtypeStructs with shardings: those of this machine, not of the saving one.

        Raises:
          UserError: where the step is absent or its files cannot be read.
        """
        step = self.newest() if step is None else step
        self._require(step)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(shapes._asdict()), meta=ocp.args.JsonRestore()
                ),
            )
        except Exception as error:  # whatever Orbax and TensorStore find wrong with the files
            raise UserError(self._broken(step, error)) from error
        return type(shapes)(**restored["state"]), self._checked(restored["meta"], step)

    def meta(self, step: int) -> dict:
        """Returns the dict that was saved beside a step's state."""
        self._require(step)
        try:
            args = ocp.args.Composite(meta=ocp.args.JsonRestore())
            found = self._manager.restore(step, args=args)["meta"]
        except Exception as error:
            raise UserError(self._broken(step, error)) from error
        return self._checked(found, step)

    def restore_part(self, part: str, shapes, step: int):
        """Returns one tree of a step's state, "params" or "ema/NAME", placed as `shapes` says.

        Raises:
          UserError: where the step is absent, cannot be read, or has other names or shapes.
        """
        self._require(step)
        # partial_restore: the optimiser's two thirds of a checkpoint are never read for sampling.
        path = self.folder / str(step) / "state"
        item = shapes
        for key in reversed(part.split("/")):
            item = {key: item}
        try:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                stored = reader.metadata(path).item_metadata.tree
                for key in part.split("/"):
                    stored = stored[key]
                # Orbax would hand on what it does not find, and say nothing of what is left over.
                trees.check(trees.flatten(stored), shapes, str(path))
                found = reader.restore(
                    path,
                    args=ocp.args.PyTreeRestore(
                        item=item,
                        restore_args=ocp.checkpoint_utils.construct_restore_args(item),
                        partial_restore=True,
                    ),
                )
        except UserError:
            raise
        except Exception as error:
            raise UserError(self._broken(step, error)) from error
        for key in part.split("/"):
            found = found[key]
        return found

    def newest(self) -> int | None:
        """Returns the newest whole step, or None."""
        return self._manager.latest_step()

    def wait(self) -> None:
        """Blocks until what `save` started is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and releases the folder."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _require(self, step: int | None) -> None:
        steps = self.steps()
        if step is None or step not in steps:
            has = f"it has {', '.join(map(str, steps))}" if steps else "it has none"
            raise UserError(f"{self.folder}: no checkpoint of step {step}; {has}")

    def _checked(self, meta, step: int) -> dict:
        if not isinstance(meta, dict) or not set(META) <= set(meta):
            raise UserError(self._broken(step, KeyError(f"meta lacks one of {', '.join(META)}")))
        return meta

    def _broken(self, step: int, error: Exception) -> str:
        first = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
        return (
            f"{self.folder / str(step)}: this checkpoint cannot be read "
            f"({type(error).__name__}: {first}); delete that folder to use the one before it"
        )


def append_json(path: Path, record: dict) -> None:
    """Adds one line of JSON, with the time, to a log file."""
    with path.open("a") as file:
        file.write(json.dumps({"time": round(time.time(), 3), **record}) + "\n")


def cut_jsonl(path: Path, last_step: int) -> None:
    """Drops the lines of a metrics file after `last_step` (and a line cut short by a kill)."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        step = record.get("step", 0) if isinstance(record, dict) else None
        if isinstance(step, int) and step <= last_step:
            kept.append(line + "\n")
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(kept))
    temporary.replace(path)
