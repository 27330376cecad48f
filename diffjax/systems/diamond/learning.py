"""The later phases of an epoch: the updates of each network, several in a call of the device."""

import collections
import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.run import devices
from diffjax.run import mesh as meshes
from diffjax.systems.diamond import batches, collecting, held_out
from diffjax.systems.diamond import state as states
from diffjax.systems.diamond.session import Session
from diffjax.systems.diamond.settings import GROUPS, updates_of

GREY = 128  # the level that stands for mid-grey where a start is padded


def per_call(config) -> int:
    """How many updates a call of the device makes: config.updates_per_call, but one on a CPU, where
    gradients of convolutions inside a loop are some twenty times as slow."""
    return 1 if jax.default_backend() == "cpu" else config.updates_per_call


class Learner:
    """Compiles a network's updates once and makes them, epoch after epoch."""

    def __init__(self, session: Session):
        self._session, self._calls, self._pending, self._starts = session, {}, [], None
        self._per_call, self._block = per_call(session.config), 0

    def learn(self, network: str) -> None:
        """This epoch's updates of a network."""
        session = self._session
        phase = 1 + session.parts.networks.index(network)
        if session.position.phase != phase:
            return
        config, group = session.config, session.config[GROUPS[network]]
        total, budget = updates_of(config, network)(session.position.epoch), group.time_budget
        before, begun, self._starts = session.position.seconds, time.monotonic(), None
        first = int(session.state.counts[network]) - session.position.done
        source = self._batches(network) if total else None
        acting = network == "actor_critic"
        call = self._acting if acting else functools.partial(self._world, network, first)
        in_flight = collections.deque()
        while session.position.done < total and not session.stopping():
            done = session.position.done
            if budget and session.position.seconds >= budget:
                break
            size = min(self._per_call - done % self._per_call, total - done)
            metrics = call(source, size)
            self._pending.append(metrics)
            # Two calls in flight keep the device busy and Ctrl-C prompt.
            in_flight.append(metrics["loss"])
            if len(in_flight) > 2:
                jax.block_until_ready(in_flight.popleft())
            session.step += size
            seconds = before + time.monotonic() - begun
            session.position = dataclasses.replace(
                session.position, done=done + size, seconds=seconds
            )
            if (done + size) // config.log_every > done // config.log_every:
                self._tell(network)
                session.save_in_time()
        self._tell(network)
        if not session.stopping():
            session.next_phase(phase)

    def _batches(self, network: str) -> batches.Batches:
        session = self._session
        static = session.replay is None
        epoch, episodes = session.position.epoch, session.experience.recorded
        if not static:  # after a kill it may be ahead of the networks
            steps = collecting.target_of(session.config, session.replay, epoch)
            episodes = batches.Before(session.replay, steps)
        return batches.make(session.config, episodes, network, static=static, epoch=epoch)

    def _call(self, key, make, **options):
        """A jitted (state, ...) -> (state, metrics), made once."""
        if key not in self._calls:
            session = self._session
            out = session.shardings, meshes.replicated(session.mesh)
            self._calls[key] = jax.jit(make(), donate_argnums=0, out_shardings=out, **options)
        return self._calls[key]

    def _world(self, network: str, first: int, source: batches.Batches, size: int) -> dict:
        """Updates of the denoiser or of the model of rewards and ends."""
        session = self._session
        make = lambda: states.train_call(session.parts, network, session.config, session.mesh)
        call = self._call(network, make)
        stacked = source.stack(first + session.position.done, size, batches.FIELDS[network])
        fed = jax.device_put(stacked, states.stacked_rows(session.mesh))
        with jax.transfer_guard("disallow"):
            session.state, metrics = call(session.state, fed)
        return metrics

    def _acting(self, source: batches.Batches, size: int) -> dict:
        """Updates of the policy."""
        session = self._session
        self._bring_starts(source, size)
        make = lambda: states.policy_call(session.parts, session.config, size)
        options = devices.captured()
        call = self._call(("actor_critic", size), make, compiler_options=options)
        with jax.transfer_guard("disallow"):
            session.state, metrics = call(session.state, self._starts)
        return metrics

    def _bring_starts(self, source: batches.Batches, size: int) -> None:
        """Loads the first starts of an epoch, or others where too few are left.

        They are functions of seed, epoch, block and the model of rewards and ends, which stands
        still meanwhile: so they are in no checkpoint, and after a kill they are made again.

        The host alone begins a block, and knows which it is. How many starts are used it has to ask
        the device for, as worlds end when they do, and new starts come from disk: once a call, of
        `updates_per_call` updates, so that what it waits for is a number in seconds of work. To
        choose on the device, a block more than is used would have to be loaded in every epoch.
        """
        session = self._session
        if session.position.done:
            if self._starts is None:
                self._block = int(session.state.block)
                self._starts = self._load(source, self._block)
            there = self._starts.act.shape[0]
            wanted = min(size * session.config.actor_critic.batch_size, there // 2)
            if there - int(session.state.world.cursor) >= wanted:
                return
            self._block += 1
        else:
            self._block = 0
        self._starts = self._load(source, self._block)
        state, place = session.state, meshes.replicated(session.mesh)
        if int(state.counts["actor_critic"]):
            zero = jax.device_put(jnp.int32(0), place)
            state = state._replace(world=state.world._replace(cursor=zero))
        else:
            begun = states.begin_worlds(session.parts, state, self._starts)
            state = jax.device_put(begun, session.shardings)
        session.state = state._replace(block=jax.device_put(jnp.int32(self._block), place))

    def _load(self, source: batches.Batches, block: int):
        session = self._session
        count, place = session.config.imagination.preload, meshes.replicated(session.mesh)
        found = source.stack(block * count, count, ("obs", "act", "mask"))
        found["obs"][~found["mask"]] = GREY
        fed = jax.device_put((found["obs"], found["act"]), place)
        return jax.device_put(self._preload(session.state.params["rew_end_model"], *fed), place)

    @functools.cached_property
    def _preload(self):
        return jax.jit(self._session.parts.imagination.preload)

    def _tell(self, network: str) -> None:
        """Logs what the updates since the last time gave; stops at what is not finite."""
        session = self._session
        session.check_finite()
        if not self._pending:
            return
        found, self._pending = jax.device_get(self._pending), []
        values, group = {}, GROUPS[network]
        for name in found[0]:
            every = np.concatenate([np.asarray(metrics[name]) for metrics in found])
            if name.startswith("confusion"):
                short = f"{group}_{name.removeprefix('confusion_')}"
                values |= held_out.of_confusion(short, every.sum(0))
            else:
                values[f"{group}_{name}"] = float(every.mean())
        record = {"epoch": session.position.epoch, "loss": values[f"{group}_loss"], **values}
        budget = session.config.time_budget
        session.log.metrics(session.step, record, budget - session.elapsed if budget else None)
