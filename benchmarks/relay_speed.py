"""How fast is a relay's second stage, and what do its blur and its block noise cost?

    python benchmarks/relay_speed.py [--out speed.json] [--toy]

For the network of configs/relay_imagenet256.py (ADM, 553.8 M parameters, bfloat16) at batch 16:
`network` is one evaluation of D, `sample` the sampler that sample.py compiles, of 8 steps (15
evaluations) without guidance, in evaluations of a picture a second. `forward_process` times what a
training step adds to the network, x0 to x_t with patch-wise DCTs and block noise, beside the same
with white noise and no blur. Random weights and data; medians of synchronised calls. Prints a line.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import timing
from timing import compiled, record, synchronised

from diffjax import nets, systems
from diffjax.core import processes
from diffjax.errors import command
from diffjax.run import cli

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "relay_imagenet256.py"
FORWARD = 2.239e12  # FLOP of one evaluation of one picture, counted by hand
STEPS = 8
TOY = ("model_channels=32", "channel_mult=(1,2)", "num_blocks=1", "attn_resolutions=(8,)")


def rates(pictures: int, seconds: float, flop: float) -> dict:
    found = {"images_per_second": round(pictures / seconds, 1), "seconds": round(seconds, 5)}
    return {**found, "tflops": round(pictures / seconds * flop / 1e12, 1)} if flop else found


@command
def main(argv: list[str]) -> int:
    argv, overrides = cli.split_overrides(argv)
    parser = timing.parser("relay_speed.py", __doc__, 10)
    parser.add_argument("--batch", type=cli.positive, default=16)
    args = parser.parse(argv)
    size = 64 if args.toy else 256
    words = [f"network.{word}" for word in TOY] if args.toy else []
    words += [f"data.image_size={size}", "parent=", "data.path=random", *overrides]
    config = cli.apply_overrides(cli.load_config(str(CONFIG)), words)
    about = {"image_shape": [size, size, 3], "class_names": [str(i) for i in range(1000)]}
    system = systems.make(config, {"data": about})
    # Leaf by leaf: jitting the whole of `init` takes minutes to compile. Random, since of zeros the
    # card multiplies faster than of anything else.
    shapes = jax.eval_shape(system.init, jax.random.key(0))
    leaves, tree = jax.tree.flatten(shapes)
    random = np.random.default_rng(0)
    make = lambda s: jnp.asarray(random.standard_normal(s.shape, np.float32) * 0.02)
    params = jax.tree.unflatten(tree, [make(leaf) for leaf in leaves])
    params = jax.jit(lambda p: nets.rounded(config.network, p))(params)
    batch, shape = args.batch, (size, size, 3)
    normal = lambda i: jax.random.normal(jax.random.key(i), (batch, *shape))
    x, white, other, label = normal(0), normal(1), normal(2), jnp.arange(batch)
    count = sum(leaf.size for leaf in leaves)
    found = {**timing.about(), "parameters": count}

    def time(name, pictures, flop, function, *arguments):
        program, seconds, memory = compiled(jax.jit(function), *arguments)
        call = lambda: program(*arguments)
        result = rates(pictures, synchronised(call, args.repeats), flop)
        record(args.profile if name == "network" else "", call)
        timing.told(found, name, {**result, "compile": seconds, "gib": memory})

    flop = 0 if args.toy else FORWARD
    t = jnp.full((batch, 1, 1, 1), 0.5)
    time(
        "network",
        batch,
        flop,
        lambda p, x, label: system.denoiser(p, x, t, label),
        params,
        x,
        label,
    )
    request = dataclasses.replace(system.request, steps=STEPS, guidance=1.0, truncation=1e3)
    keys, small = jax.random.split(jax.random.key(3), batch), x[:, ::4, ::4]
    time(
        "sample", batch * (2 * STEPS - 1), flop,
        lambda p, k, c: system.sample(p, k, c, request)["image"], params, keys, (label, small),
    )  # fmt: skip
    u = jnp.linspace(0.01, 2.0, batch)[:, None, None, None]
    for name, process in (("blurred", system.process), ("white", processes.edm())):
        forward = lambda x, a, b, process=process: process.perturb(  # noqa: E731
            x, process.colour(a, b), process.at(u)
        )
        time(name, batch, 0, forward, x, white, other)
    return timing.end(found, args.out)


if __name__ == "__main__":
    sys.exit(main())
