"""How fast does DIAMOND imagine and learn here?

    python benchmarks/diamond_speed.py [--out speed.json] [--toy] [--config.field=value ...]

Times the functions that sample.py and train.py call, for configs/diamond.py in bfloat16 (denoiser
of 4.4 M parameters, 64x64, three Euler steps, 18.3 GFLOP a frame): one more frame of 1, 32 and 256
worlds, each call waited for and each fed the frame of the one before; a step of imagination of 32
worlds (policy, sampler, reward and end), in rollouts of 15 without a gradient; a denoiser's update
of 32 segments (two passes of the network). Random frames. Programs are compiled as the commands
compile them (`run.devices.captured`), but where XLA_FLAGS says what is recorded into CUDA graphs;
the line of JSON tells.
"""

import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import timing
from timing import compiled, in_flight, record, synchronised

from diffjax.errors import command
from diffjax.run import cli, devices
from diffjax.run import mesh as meshes
from diffjax.systems.diamond import forecast, imagination, settings, state
from diffjax.systems.diamond.rollout import rollout

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "diamond.py"
ACTIONS = 4
GFLOP = 18.3  # a frame, three evaluations
NETS = ("denoiser", "reward_end", "actor_critic")
TOY = ("frame_size=16", "denoiser.cond_channels=64", "actor_critic.lstm_dim=32")
TOY += tuple(f"{net}.depths=(1,)" for net in NETS[:2])
TOY += tuple(f"{net}.channels=(16,)" for net in NETS)
TOY += tuple(f"{net}.attention=(False,)" for net in NETS[:2]) + ("actor_critic.down=(True,)",)


def jitted(function, **options):
    """As the commands compile it."""
    return jax.jit(function, compiler_options=devices.captured(), **options)


def made(config) -> tuple:
    """(parts, State of random weights, frames(*shape) uint8, random actions)."""
    parts = settings.make(config, ACTIONS)
    random = np.random.default_rng(0)
    frames = lambda *shape: random.integers(0, 256, (*shape, *parts.frame), dtype=np.uint8)
    acts = lambda *shape: random.integers(0, ACTIONS, shape).astype(np.int32)
    worlds = config.actor_critic.batch_size
    return parts, state.create(parts, worlds, jax.random.key(0)), frames, acts


def frame(config, count: int, repeats: int, profile: str) -> dict:
    parts, at, frames, acts = made(config)
    past = jnp.asarray(frames(count, parts.past), jnp.float32) / 127.5 - 1
    act, keys = jnp.asarray(acts(count, parts.past)), imagination.split(jax.random.key(1), count)
    sampler = parts.imagination.sampler

    def ready(params):
        return parts.for_sampling(params)[1]["denoiser"]

    denoiser = parts.for_sampling(at.params)[0]
    params = jax.jit(ready)(at.params)

    def following(params, past, act, keys):
        made = forecast.forecast(denoiser, sampler, params, past, act, keys)
        return jnp.concatenate([past[:, 1:], made], 1)

    program, seconds, memory = compiled(jitted(following), params, past, act, keys)
    median = synchronised(lambda: program(params, past, act, keys), repeats)
    record(profile, lambda: program(params, past, act, keys))

    def fed():
        nonlocal past
        past = program(params, past, act, keys)
        return past

    flight = in_flight(fed, repeats)
    rate = count / median
    return {
        "frames_per_second": round(rate, 1), "in_flight": round(count / flight, 1),
        "ms": round(1e3 * median, 3), "tflops": round(rate * GFLOP / 1e3, 1),
        "compile": seconds, "gib": memory,
    }  # fmt: skip


def imagine(config, repeats: int) -> dict:
    parts, at, frames, acts = made(config)
    worlds, steps = config.actor_critic.batch_size, config.actor_critic.rollout
    model = at.params["rew_end_model"]
    starts = parts.imagination.preload(
        model, jnp.asarray(frames(4, worlds, parts.past)), jnp.asarray(acts(4, worlds, parts.past))
    )
    at = state.begin_worlds(parts, at, starts)
    denoiser, models = parts.for_sampling(at.params)
    world = imagination.Imagination(
        denoiser, parts.reward_end, parts.imagination.sampler, parts.imagination.horizon
    )

    def roll(params, models, starts, at, seat, key):
        keys = imagination.split(key, worlds)
        fold = lambda k: jax.vmap(lambda key: jax.random.fold_in(key, k))(keys)
        step = lambda place, act, k: world.step(
            models, starts, place, act, imagination.draw(fold(2 * k + 1), parts.frame)
        )
        uniforms = lambda k: jax.vmap(jax.random.uniform)(fold(2 * k))
        found = rollout(parts.actor_critic, params, step, at, seat, uniforms, steps)
        return found[1:], found[0].rew

    given = at.params["actor_critic"], models, starts, at.world, at.seat, jax.random.key(2)
    program, seconds, memory = compiled(jitted(roll), *given)
    median = synchronised(lambda: program(*given), repeats)
    whole = jitted(state.policy_call(parts, config, 1))
    update, _, _ = compiled(whole, at, starts)
    updated = synchronised(lambda: update(at, starts)[1], repeats)
    about = {"compile": seconds, "gib": memory}
    return {
        "ms_a_step": round(1e3 * median / steps, 3), "update_ms": round(1e3 * updated, 1), **about
    }  # fmt: skip


def train(config, repeats: int) -> dict:
    parts, at, frames, acts = made(config)
    count, span = config.denoiser.batch_size, parts.past + 1 + config.denoiser.generated_frames
    batch = {
        "obs": frames(1, count, span), "act": acts(1, count, span),
        "mask": np.ones((1, count, span), bool),
    }  # fmt: skip
    mesh = meshes.make_mesh(config.mesh)
    batch = jax.device_put(batch, state.stacked_rows(mesh))
    call = jax.jit(state.train_call(parts, "denoiser", config, mesh), donate_argnums=0)
    at = at._replace(world=None, seat=None)
    program, seconds, memory = compiled(call, at, batch)

    def once():
        nonlocal at
        at, metrics = program(at, batch)
        return metrics["loss"]

    median = synchronised(once, repeats)
    flight = in_flight(once, repeats)
    about = {"compile": seconds, "gib": memory}
    return {"ms": round(1e3 * median, 2), "in_flight_ms": round(1e3 * flight, 2), **about}


@command
def main(argv: list[str]) -> int:
    argv, overrides = cli.split_overrides(argv)
    args = timing.parser("diamond_speed.py", __doc__, 30, "1,32,256,imagine,train").parse(argv)
    flags = os.environ.get("XLA_FLAGS", "")
    options = devices.captured()
    result = {**timing.about(), "flags": flags, "options": options, "overrides": overrides}
    for name in args.only.split(","):
        words = [f"{net}.dtype=bfloat16" for net in NETS] + [*(TOY if args.toy else ()), *overrides]
        config = cli.apply_overrides(cli.load_config(str(CONFIG)), words)
        repeats = 2 if args.toy else args.repeats
        if name == "imagine":
            found = imagine(config, repeats)
        elif name == "train":
            found = train(config, repeats)
        else:
            count = min(int(name), 4) if args.toy else int(name)
            found = frame(config, count, repeats, timing.part(args, name))
        timing.told(result, name, found)
    return timing.end(result, args.out)


if __name__ == "__main__":
    sys.exit(main())
