"""How fast are MDM's training and sampling here?

    python benchmarks/mdm_speed.py [--out speed.json] [--toy] [--config.field=value ...]

Times the very functions that train.py and sample.py call, for configs/mdm_humanml.py in bfloat16
(17.9 M parameters, 196 frames, 50 steps, guidance in one batch of 2B): sampling of 1, 64 and 1,024
motions, from a seed to joints, and a training step of 64 and 512, with Adam and EMA. Random text
vectors and motions. First the attention that is used ("auto") is held against plain einsum, both
against float32. Medians of synchronised calls. Prints one JSON line.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import timing
from timing import compiled, in_flight, record, synchronised

from diffjax import nets, systems
from diffjax.data.motion.skeletons import HUMANML3D
from diffjax.errors import command
from diffjax.run import cli, sampling, update
from diffjax.run import mesh as meshes

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "mdm_humanml.py"
WIDTH = 512  # of a text's vector
TOY = ("network.width=32", "network.layers=1", "network.ff=32", "data.max_frames=40")


class Fed:
    """A feed whose batch is what it is fed."""

    @staticmethod
    def take(fed, key, step):
        return fed


def make_system(config):
    """The config's system without data: HumanML3D's body, texts as vectors."""
    size = HUMANML3D.size
    about = {"kind": "features", "max_frames": config.data.max_frames, "class_names": []}
    return systems.make(
        config,
        {
            "data": {**about, "captions": ["a person walks."], "fingerprint": ""},
            "skeleton": HUMANML3D.to_json(),
            "mean": np.zeros(size, np.float32),
            "std": np.ones(size, np.float32),
            "text": {"width": WIDTH, "pooled": True},
        },
    )


def given_of(count: int, frames: int) -> dict:
    """Conditions of so many samples of full length."""
    random = np.random.default_rng(0)
    return {
        "mask": np.ones((count, frames), bool),
        "length": np.full(count, frames, np.int32),
        "drop": np.zeros(count, bool),
        "text": random.standard_normal((count, 1, WIDTH)).astype(np.float32),
        "text_mask": np.ones((count, 1), bool),
        "caption": np.zeros((count, 240), np.uint8),
    }


def attention(config) -> dict:
    """Largest and root mean square difference of one evaluation in bfloat16 from float32, by
    attention; half of the motions are padded."""
    frames, size = config.data.max_frames, HUMANML3D.size
    random = np.random.default_rng(0)
    x = jnp.asarray(random.standard_normal((8, frames, size)), jnp.float32)
    t, lengths = jnp.arange(8) * 6.0, np.linspace(frames // 2, frames, 8).astype(int)
    mask = jnp.asarray(np.arange(frames) < lengths[:, None])
    given = given_of(8, frames)
    told = jnp.asarray(given["text"]), jnp.asarray(given["text_mask"])

    def evaluated(kind, dtype):
        network = config.network.copy_and_resolve_references()
        network.update(attention=kind, dtype=dtype)
        net = nets.make_motion(network, features=size, condition="text")
        params = net.init(jax.random.key(0), x, t, told, mask=mask)
        precision = "highest" if dtype == "float32" else "default"
        with jax.default_matmul_precision(precision):
            return np.asarray(jax.jit(lambda p: net.apply(p, x, t, told, mask=mask))(params))

    exact = evaluated("einsum", "float32")
    found = {}
    for kind in ("einsum", "auto"):
        away = (evaluated(kind, "bfloat16") - exact)[np.asarray(mask)]
        found[kind] = {"max": float(np.abs(away).max()), "rms": float(np.sqrt((away**2).mean()))}
    return found


def sample(config, count: int, repeats: int, profile: str) -> dict:
    system, mesh = make_system(config), meshes.make_mesh(meshes.LOCAL)
    params = update.init_state(system, config, update.state_shapes(system, config, mesh)[1]).params
    request = dataclasses.replace(system.request, seconds=0.0, frames=config.data.max_frames)
    rows, index = meshes.rows(mesh), np.arange(count, dtype=np.int32)
    given = jax.device_put(given_of(count, config.data.max_frames), rows)
    arguments = params, np.uint32(0), jax.device_put(index, rows), given
    program, seconds, memory = compiled(sampling.sampler(system, request, mesh), *arguments)
    median = synchronised(lambda: program(*arguments), repeats)
    record(profile, lambda: program(*arguments))
    return {"ms": round(1e3 * median, 2), "compile": seconds, "gib": memory}


def train(config, count: int, repeats: int) -> dict:
    with config.unlocked():
        config.batch_size = count
    system, mesh = make_system(config), meshes.make_mesh(config.mesh)
    shardings = update.state_shapes(system, config, mesh)[1]
    step = jax.jit(update.step_function(system, config, Fed, mesh), donate_argnums=0)
    random, frames = np.random.default_rng(0), config.data.max_frames
    given = given_of(count, frames)
    batch = {
        "motion": random.standard_normal((count, frames, HUMANML3D.size)).astype(np.float32),
        "length": random.integers(frames // 4, frames + 1, count).astype(np.int32),
        "index": np.arange(count, dtype=np.int32),
        "text": given["text"],
        "text_mask": given["text_mask"],
    }
    batch = jax.device_put(batch, meshes.rows(mesh))
    state, share = update.init_state(system, config, shardings), np.float32(0)
    program, seconds, memory = compiled(step, state, batch, share)

    def call():
        nonlocal state
        state, metrics = program(state, batch, share)
        return metrics["loss"]

    median = synchronised(call, repeats)
    flight = in_flight(call, repeats)
    about = {"compile": seconds, "gib": memory}
    return {"ms": round(1e3 * median, 2), "in_flight_ms": round(1e3 * flight, 2), **about}


@command
def main(argv: list[str]) -> int:
    argv, overrides = cli.split_overrides(argv)
    parts = "attention,1,64,1024,train64,train512"
    args = timing.parser("mdm_speed.py", __doc__, 20, parts).parse(argv)
    result = {**timing.about(), "overrides": overrides}
    for name in args.only.split(","):
        words = ["network.dtype=bfloat16", *(TOY if args.toy else ()), *overrides]
        config = cli.apply_overrides(cli.load_config(str(CONFIG)), words)
        count = int(name.removeprefix("train")) if name != "attention" else 0
        count, repeats = (min(count, 4), 2) if args.toy else (count, args.repeats)
        if not count:
            found = attention(config)
        elif name.startswith("train"):
            found = train(config, count, repeats)
        else:
            folder = timing.part(args, name)
            found = sample(config, count, max(2, min(repeats, 2000 // count)), folder)
        timing.told(result, name, found)
    return timing.end(result, args.out)


if __name__ == "__main__":
    sys.exit(main())
