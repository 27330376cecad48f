"""What the phases of DIAMOND's outer loop share: state, position, clock, checkpoints, logs."""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from diffjax.errors import UserError
from diffjax.nets.diamond_blocks import no_state
from diffjax.run import loop, run_directory
from diffjax.run.checkpoints import Checkpoints, append_json
from diffjax.run.logs import Logger
from diffjax.run.processes import Signals
from diffjax.run.system import System
from diffjax.systems.diamond import held_out
from diffjax.systems.diamond.experience import Experience
from diffjax.systems.diamond.quantise import to_float
from diffjax.systems.diamond.replay import Replay
from diffjax.systems.diamond.settings import GROUPS, Parts
from diffjax.systems.diamond.state import State

SAVE_AFTER = 600.0  # seconds without a checkpoint: the first epoch may take hours


@dataclasses.dataclass(frozen=True)
class Position:
    """Where in its plan a run is.

    Attributes:
      epoch: how many are over.
      phase: of this one: 0 play, then the networks in turn.
      done: updates of this phase; seconds: that they took.
      elapsed: seconds of the whole run.
    """

    epoch: int = 0
    phase: int = 0
    done: int = 0
    seconds: float = 0.0
    elapsed: float = 0.0

    @classmethod
    def of(cls, meta: dict) -> "Position":
        """Of a checkpoint's dict; `UserError` where it has none."""
        found = meta.get("position")
        try:
            return cls(**{f.name: f.type(found[f.name]) for f in dataclasses.fields(cls)})
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            raise UserError(f"a checkpoint without the run's position ({error!r})") from error


@dataclasses.dataclass(kw_only=True)
class Session:
    """One start of a run. `collecting`, `learning` and `looking` are its phases.

    Each goes on where `position` is and returns early on a signal or when time is up; the position
    is then in the middle of a phase.

    Attributes:
      system, parts, config, experience: made from the config.
      workdir: the run directory.
      mesh, shardings: of the state.
      state, position: where the run is. step: of the state, which may still be on its way.
      replay: what was played; None where all is recorded.
      sampler: of pictures; losses: on held-out episodes, of each network. Compiled once.
    """

    system: System
    parts: Parts
    config: Any
    experience: Experience
    workdir: Path
    mesh: Mesh
    shardings: State
    checkpoints: Checkpoints
    log: Logger
    signals: Signals
    state: State
    position: Position
    step: int
    replay: Replay | None = None
    sampler: Any = None
    losses: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        self._clock, self._before = time.monotonic(), self.position.elapsed
        self._saved = self._clock
        if self.experience.recorded is None:
            self.replay = Replay(self.workdir / "replay", self.config.collection.seats)
            if self.replay.shapes - {self.parts.frame} or self.replay.actions > self.parts.actions:
                raise UserError(f"{self.replay.path}: it is of another game, or of other frames")

    # ---- the clock ---------------------------------------------------------------------------

    @property
    def elapsed(self) -> float:
        """Seconds of the whole run."""
        return self._before + time.monotonic() - self._clock

    def over(self) -> bool:
        """Whether all epochs are done, or the time is up."""
        budget = self.config.time_budget
        return self.position.epoch >= self.config.epochs or bool(budget and self.elapsed >= budget)

    def interrupted(self) -> bool:
        """Whether a signal came."""
        return bool(self.signals.got)

    def stopping(self) -> bool:
        """Whether a phase has to return, finished or not."""
        return self.interrupted() or self.over()

    # ---- the position ------------------------------------------------------------------------

    def next_phase(self, phase: int) -> None:
        """Ends phase number `phase`, if it is the present one."""
        if self.position.phase == phase:
            here = dataclasses.replace(self.position, phase=phase + 1, done=0, seconds=0.0)
            self.position = here

    def close_epoch(self) -> None:
        """After the last phase: counts the epoch, and saves if it is one to be saved."""
        if self.position.phase <= len(self.parts.networks):
            return
        epoch = self.position.epoch + 1
        self.position = Position(epoch=epoch, elapsed=self.elapsed)
        if epoch % self.config.checkpoint_every == 0:
            self.save()

    def check_finite(self) -> None:
        """Raises `UserError` where a loss or gradient was not; waits for the updates so far."""
        step = int(self.state.bad_step)
        if step >= 0:
            network = self.parts.networks[max(0, self.position.phase - 1)]
            field = f"config.{GROUPS[network]}"
            raise UserError(loop.bad_step(step, self.checkpoints, self.workdir, field))

    def save_in_time(self) -> None:
        """Saves in the middle of a phase, if the last checkpoint is old."""
        if time.monotonic() - self._saved > SAVE_AFTER:
            self.save()

    def save(self) -> None:
        """Starts writing a checkpoint of where the run is."""
        self.check_finite()
        position = dataclasses.replace(self.position, elapsed=self.elapsed)
        meta = {
            "elapsed": position.elapsed,
            "fingerprint": run_directory.fingerprint(self.system),
            "ema": [],
            "position": dataclasses.asdict(position),
        }
        self.checkpoints.save(self.state, meta)
        self._saved = time.monotonic()
        record = {"event": "checkpoint", "step": self.step, "epoch": position.epoch}
        append_json(self.workdir / "log.jsonl", record)
        self.log.restart(self.step)

    # ---- the policy in the real game -----------------------------------------------------------

    @property
    def acting(self) -> bool:
        """Whether there is a policy."""
        return self.parts.actor_critic is not None

    def policy(self):
        """The policy as it is now, (uint8 frames, memory) -> (logits, value, memory); without one,
        that which knows nothing."""
        if not self.acting:
            return held_out.uniform(self.parts.actions)
        return functools.partial(self._act, self.state.params["actor_critic"])

    def no_memory(self, seats: int):
        """The memory of a policy that has seen nothing."""
        return no_state(seats, self.parts.actor_critic.lstm_dim) if self.acting else None

    @functools.cached_property
    def _act(self):
        net = self.parts.actor_critic
        return jax.jit(lambda p, obs, memory: net.apply({"params": p}, to_float(obs), memory))
