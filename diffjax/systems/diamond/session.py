"""What the phases of DIAMOND's outer loop share: state, replay, games, clock, logs."""

import collections
import dataclasses
import functools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.errors import UserError
from diffjax.nets.diamond_blocks import no_state
from diffjax.run import loop, run_directory, sampling
from diffjax.run import mesh as meshes
from diffjax.run.checkpoints import append_json
from diffjax.run.logs import read_metrics
from diffjax.run.system import save_assets
from diffjax.systems.diamond import batches, collect, held_out, showing
from diffjax.systems.diamond import state as states
from diffjax.systems.diamond.games.seats import Games
from diffjax.systems.diamond.quantise import to_float
from diffjax.systems.diamond.replay import Replay, fill, first_target
from diffjax.systems.diamond.settings import GROUPS, updates_of

PIECE = 100  # steps a seat that are confirmed at once
GREY = 128  # the level that stands for mid-grey where a start is padded


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
        except (TypeError, KeyError, ValueError) as error:
            raise UserError(f"a checkpoint without the run's position ({error})") from error


class Session:
    """The phases of `fit.fit`, in the order in which it calls them; a context manager.

    Every method goes on where `position` is and returns early on a signal or when time is up; the
    position is then in the middle of a phase.
    """

    def __init__(
        self, system, parts, config, experience, workdir: Path, mesh, shardings, checkpoints, log,
        signals, state, position: Position,
    ):  # fmt: skip
        self.system, self.parts, self.config = system, parts, config
        self.experience, self.workdir, self.mesh = experience, workdir, mesh
        self.checkpoints, self.log, self.signals = checkpoints, log, signals
        self.state, self.position, self.step = state, position, int(state.step)
        self._shardings = shardings
        self._clock, self._before = time.monotonic(), position.elapsed
        self._games = self._memory = None
        self._sampler = None
        self._calls, self._pending = {}, []
        # On CPU gradients of convolutions inside a loop are some twenty times as slow.
        on_cpu = jax.default_backend() == "cpu"
        self._per_call = 1 if on_cpu else config.updates_per_call
        self.replay = None
        if experience.recorded is None:
            self.replay = Replay(workdir / "replay", config.collection.seats)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._games is not None:
            self._games.close()

    # ---- the clock ---------------------------------------------------------------------------

    @property
    def elapsed(self) -> float:
        return self._before + time.monotonic() - self._clock

    def over(self) -> bool:
        """Whether all epochs are done, or the time is up."""
        budget = self.config.time_budget
        return self.position.epoch >= self.config.epochs or bool(budget and self.elapsed >= budget)

    def _stop(self) -> bool:
        return bool(self.signals.got) or self.over()

    # ---- 0: what to begin from, kept from now on -----------------------------------------------

    def begin(self) -> None:
        """Records held-out starts, for pictures, where the run has none yet."""
        self.log.say(
            f"{self.workdir}: epoch {self.position.epoch} of {self.config.epochs}, "
            f"step {self.step}; each network's first update compiles"
        )
        if "starts_obs" not in self.system.assets:
            self._keep_starts(self._test_episodes(held_out.uniform(self.parts.actions), None)[1])

    def _keep_starts(self, episodes) -> None:
        settings = self.config.evaluation
        some = held_out.starts_of(episodes, self.parts.past, settings.horizon, settings.starts)
        save_assets(some, self.workdir)
        self.system.assets.update(some)

    def _test_episodes(self, policy, memory, games: int = 0):
        """(scores of games that were played to their ends, episodes). With `games` 0 a few are
        begun, to have something to look at."""
        settings = self.config.evaluation
        if self.experience.make is None:
            test = self.experience.test
            return [], [test[i] for i in range(len(test))]
        count = games or 4
        seats, most = min(settings.seats, count), None if games else settings.longest
        seed = self.config.seed + held_out.SEED
        if memory is not None:
            memory = self._no_memory(seats)
        with Games(
            self.experience.make, seats, seed, processes=self.config.collection.processes
        ) as played:
            how = {"seed": seed, "keep": settings.longest, "most": most}
            return held_out.play(played, policy, memory, count, **how, stop=self._interrupted)

    def _interrupted(self) -> bool:
        return bool(self.signals.got)

    # ---- 1: play -------------------------------------------------------------------------------

    def collect(self) -> None:
        """Plays this epoch's steps; what a run before a kill played of them counts."""
        if self.position.phase or self.replay is None:
            return self._next_phase(0)
        replay = self.replay
        while not self._stop():
            target = self._target()
            if replay.steps >= target:
                return self._next_phase(0)
            if self._games is None:
                self._sit_down()
            piece = min(target, replay.steps + PIECE)
            self._memory = fill(replay, self._play, self._memory, piece, piece=PIECE)
            self.log.restart(self.step)
        return None

    def _target(self) -> int:
        """Steps a seat that are wanted by the end of this epoch's play."""
        c, seats = self.config.collection, self.config.collection.seats
        each = lambda steps: -(-steps // seats)
        first = first_target(
            self.replay, each(c.first_least), each(c.first_most), enough=c.first_rewards
        )
        return min(each(c.steps), first + self.position.epoch * each(c.epoch_steps))

    def _sit_down(self) -> None:
        """Opens the games and brings them to where the replay ends."""
        c = self.config
        seats = c.collection.seats
        self._games = Games(
            self.experience.make, seats, c.seed, life_ends=True, processes=c.collection.processes
        )
        like = self._no_memory(seats) if "actor_critic" in self.parts.networks else None
        there = self.replay.resume(like)
        self._games.restore(there.game, there.actions)
        self._memory = there.memory

    def _play(self, steps: int, memory):
        c = self.config.collection
        how = {"epsilon": c.epsilon, "temperature": c.temperature}
        return collect.collect(
            self._games, self._policy(), memory, steps, seed=self.config.seed, **how
        )

    def _no_memory(self, seats: int):
        return no_state(seats, self.parts.actor_critic.lstm_dim)

    def _policy(self):
        """The policy as it is now: (uint8 frames, memory) -> (logits, value, memory)."""
        if "actor_critic" not in self.parts.networks:
            return held_out.uniform(self.parts.actions)
        return functools.partial(self._act, self.state.params["actor_critic"])

    @functools.cached_property
    def _act(self):
        net = self.parts.actor_critic
        return jax.jit(lambda p, obs, memory: net.apply({"params": p}, to_float(obs), memory))

    # ---- 2: learn ------------------------------------------------------------------------------

    def learn(self, network: str) -> None:
        """This epoch's updates of a network."""
        phase = 1 + self.parts.networks.index(network)
        if self.position.phase != phase:
            return None
        group = self.config[GROUPS[network]]
        total, budget = updates_of(self.config, network)(self.position.epoch), group.time_budget
        before, begun = self.position.seconds, time.monotonic()
        source = self._batches(network) if total else None
        call = self._learn_acting if network == "actor_critic" else self._learn_world
        in_flight = collections.deque()
        while self.position.done < total and not self._stop():
            if budget and self.position.seconds >= budget:
                break
            done = self.position.done
            size = min(self._per_call - done % self._per_call, total - done)
            metrics = call(network, source, size)
            self._pending.append(metrics)
            # Two calls in flight keep the device busy and Ctrl-C prompt.
            in_flight.append(metrics["loss"])
            if len(in_flight) > 2:
                jax.block_until_ready(in_flight.popleft())
            self.step += size
            self.position = dataclasses.replace(
                self.position, done=done + size, seconds=before + time.monotonic() - begun
            )
            every = self.config.log_every
            if (done + size) // every > done // every:
                self._tell(network)
        self._tell(network)
        if not self._stop():
            self._next_phase(phase)
        return None

    def _batches(self, network: str) -> batches.Batches:
        episodes = self.replay if self.replay is not None else self.experience.recorded
        static = self.replay is None
        return batches.make(
            self.config, episodes, network, static=static, epoch=self.position.epoch
        )

    def _call(self, key, make):
        """A jitted (state, ...) -> (state, metrics), made once."""
        if key not in self._calls:
            out = self._shardings, meshes.replicated(self.mesh)
            self._calls[key] = jax.jit(make(), donate_argnums=0, out_shardings=out)
        return self._calls[key]

    def _learn_world(self, network: str, source: batches.Batches, size: int) -> dict:
        make = lambda: states.train_call(self.parts, network, self.config, self.mesh)
        call = self._call(network, make)
        stacked = source.stack(self._count(network), size, batches.FIELDS[network])
        fed = jax.device_put(stacked, states.stacked_rows(self.mesh))
        with jax.transfer_guard("disallow"):
            self.state, metrics = call(self.state, fed)
        return metrics

    def _count(self, network: str) -> int:
        """Updates of a network so far, of which the last may still be on their way."""
        counted = getattr(self, "_counted", {})
        if network not in counted:
            counted[network] = int(self.state.counts[network]) - self.position.done
        self._counted = counted
        return counted[network] + self.position.done

    def _learn_acting(self, network: str, source: batches.Batches, size: int) -> dict:
        self._bring_starts(source, size)
        make = lambda: states.policy_call(self.parts, self.config, size)
        call = self._call((network, size), make)
        with jax.transfer_guard("disallow"):
            self.state, metrics = call(self.state, self._starts)
        return metrics

    def _bring_starts(self, source: batches.Batches, size: int) -> None:
        """Loads starts where there are none yet, or too few for the updates to come.

        They are functions of seed, epoch, block and the reward and end model, which stands still
        meanwhile: so they are in no checkpoint.
        """
        place = functools.partial(jax.device_put, device=meshes.replicated(self.mesh))
        fresh = self.position.done == 0
        block = 0 if fresh else int(self.state.block)
        if not fresh and self._starts is not None:
            left = self._starts.act.shape[0] - int(self.state.world.cursor)
            wanted = size * self.config.actor_critic.batch_size
            if left >= min(wanted, self._starts.act.shape[0] // 2):
                return
            block += 1
            fresh = True
        count = self.config.imagination.preload
        found = source.stack(block * count, count, ("obs", "act", "mask"))
        found["obs"][~found["mask"]] = GREY
        found = place({name: found[name] for name in ("obs", "act")})
        self._starts = self._preload(self.state.params["rew_end_model"], found["obs"], found["act"])
        self._starts = place(self._starts)
        if not fresh:  # resumed in the middle of them
            return
        if not int(self.state.counts["actor_critic"]):
            begun = states.begin_worlds(self.parts, self.state, self._starts)
            self.state = jax.device_put(begun, self._shardings)
        else:
            world = self.state.world._replace(cursor=place(jnp.int32(0)))
            self.state = self.state._replace(world=world)
        self.state = self.state._replace(block=place(jnp.int32(block)))

    @functools.cached_property
    def _preload(self):
        return jax.jit(self.parts.imagination.preload)

    def _tell(self, network: str) -> None:
        """Logs what the updates since the last time gave; stops at what is not finite."""
        if int(self.state.bad_step) >= 0:
            raise UserError(
                loop.bad_step(int(self.state.bad_step), self.checkpoints, self.workdir)
            )
        if not self._pending:
            return
        found = jax.device_get(self._pending)
        self._pending = []
        values, group = {}, GROUPS[network]
        for name in found[0]:
            every = np.concatenate([np.asarray(metrics[name]) for metrics in found])
            if name.startswith("confusion"):
                short = f"{group}_{name.removeprefix('confusion_')}"
                values |= held_out.of_confusion(short, every.sum(0))
            else:
                values[f"{group}_{name}"] = float(every.mean())
        epoch = self.position.epoch
        record = {"epoch": epoch, "loss": values[f"{group}_loss"], **values}
        self.log.metrics(self.step, record, self._left())

    def _left(self) -> float | None:
        budget = self.config.time_budget
        return budget - self.elapsed if budget else None

    # ---- 3: save -------------------------------------------------------------------------------

    def _next_phase(self, phase: int) -> None:
        if self.position.phase == phase:
            self.position = dataclasses.replace(
                self.position, phase=phase + 1, done=0, seconds=0.0
            )
            self._starts, self._counted = None, {}

    def close_epoch(self) -> None:
        """After the last phase: counts the epoch, and saves if it is one to be saved."""
        if self.position.phase <= len(self.parts.networks):
            return
        epoch = self.position.epoch + 1
        self.position = Position(epoch=epoch, elapsed=self.elapsed)
        if epoch % self.config.checkpoint_every == 0:
            self.save()

    def save(self) -> None:
        """Starts writing a checkpoint of where the run is."""
        if int(self.state.bad_step) >= 0:
            raise UserError(
                loop.bad_step(int(self.state.bad_step), self.checkpoints, self.workdir)
            )
        position = dataclasses.replace(self.position, elapsed=self.elapsed)
        meta = {
            "elapsed": position.elapsed,
            "fingerprint": run_directory.fingerprint(self.system),
            "ema": [],
            "position": dataclasses.asdict(position),
        }
        self.checkpoints.save(self.state, meta)
        record = {"event": "checkpoint", "step": self.step, "epoch": position.epoch}
        append_json(self.workdir / "log.jsonl", record)
        self.log.restart(self.step)

    # ---- 4: look -------------------------------------------------------------------------------

    def look(self, last: bool = False) -> None:
        """After an epoch, or at the end: scores and a picture, where they are due and not there."""
        place, config = self.position, self.config
        if not last and (place.phase or place.done or not place.epoch):
            return
        if last or place.epoch % config.evaluation.every == 0:
            self._evaluate(last)
        picture = self.workdir / "samples" / f"step_{self.step:08d}{self.system.suffix}"
        if (last or place.epoch % config.sample_every == 0) and not picture.exists():
            self._draw(picture)
        self.log.restart(self.step)

    def _evaluate(self, last: bool) -> None:
        file, key = self.workdir / "metrics.jsonl", "final" if last else "evaluated"
        known = read_metrics(self.workdir) if file.is_file() else []
        if any(record.get(key) == self.step for record in known):
            return
        settings = self.config.evaluation
        games = settings.final_games if last else settings.games
        acting = "actor_critic" in self.parts.networks
        record = {"step": self.step, "epoch": self.position.epoch, key: self.step}
        if games and acting and self.experience.make is not None:
            played, episodes = self._test_episodes(self._policy(), True, games)
            if self._interrupted():
                return
            scores = [p.score for p in played]
            record |= {"score_mean": float(np.mean(scores)), "score_std": float(np.std(scores))}
            record |= {"games": len(scores)}
            record["game_steps"] = float(np.mean([p.length for p in played]))
            self._keep_starts(episodes)
        else:
            episodes = self._test_episodes(held_out.uniform(self.parts.actions), None)[1]
        for network in self.parts.networks:
            if network != "actor_critic":
                record |= self._test_losses(network, episodes)
        append_json(file, record)
        told = {k: v for k, v in record.items() if k in ("score_mean", "test_denoiser_loss")}
        self.log.say(f"{self.workdir}: step {self.step}, held out: {told}")

    def _test_losses(self, network: str, episodes) -> dict[str, float]:
        group = GROUPS[network]
        span, size = batches.spans(self.config)[network], self.config[group].batch_size
        loss = self._test_loss(network)
        params, names = self.state.params[network], batches.FIELDS[network]
        found = held_out.losses(loss, params, episodes, size, span, names, self.config.seed)
        record = {}
        for name, value in found.items():
            if name.startswith("confusion"):
                short = f"test_{group}_{name.removeprefix('confusion_')}"
                record |= held_out.of_confusion(short, value)
            else:
                record[f"test_{group}_{name}"] = float(value)
        return record

    @functools.cache  # noqa: B019  a session lives as long as its run
    def _test_loss(self, network: str):
        return jax.jit(states.loss_of(self.parts, network, self.config))

    def _draw(self, picture: Path) -> None:
        """Writes samples.gif, real beside imagined, and the curves of the losses."""
        num, request = self.config.num_samples, self.system.request
        if self._sampler is None:
            self._sampler = sampling.sampler(self.system, request, self.mesh)
        how = {"num": num, "seed": self.config.seed, "batch": num, "mesh": self.mesh}
        outputs = sampling.collect(
            self.system, self.state.params, request, **how, run=self._sampler
        )
        newest = self.workdir / f"samples{self.system.suffix}"
        self.system.show(outputs, newest)
        showing.loss_plot(self.workdir / "metrics.jsonl", self.workdir / "loss.png")
        run_directory.copy(newest, picture)  # last: it says that all are made
