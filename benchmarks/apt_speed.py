"""How fast are DiT-XL/2, an alternation of APT, and one step of an 8 B film generator here?

    python benchmarks/apt_speed.py [--only train,forward,alternation,film] [--toy] [--out FILE]

`train`: DiT-XL/2 on latents 32x32x4, bfloat16, batch --batch, through run/loop.py's own step.
`forward`: one evaluation of it for one picture. `alternation`: a step of stage C over a step of
diffusion training of the same network and batch (DiT-B/2), both through the loop's step. `film`:
one evaluation of an MMDiT of 8.24 B parameters (36 blocks of 3072) on 46,800 visual and 256 text
tokens, random bfloat16 weights. Data are random. Medians of synchronised calls after two to warm
up, compilation apart. Prints one JSON line; claims SPEED-8 to SPEED-11 of docs/claims.md.
"""

import dataclasses
import json
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from timing import compiled, synchronised, training

from diffjax import systems
from diffjax.data.sources import ArraySource
from diffjax.errors import choose, command
from diffjax.nets.mmdit import SIZES, MMDiT
from diffjax.run import cli
from diffjax.run.system import save_assets

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
FORWARD = {"XL": 118.6e9 * 2, "B": 23.0e9 * 2}  # FLOP of a picture: 256 tokens, multiply-adds twice
FILM, TEXT = (13, 90, 160, 16), (256, 5120)
FILM_FLOP = 1.36e15


def base_config(size: str, batch: int, toy: bool):
    """A run of EDM's system with a DiT on latents 32x32x4 of 1000 classes, as rectified flow."""
    config = cli.load_config(str(CONFIGS / "emoji.py"))
    config.update(batch_size=batch, steps=10**6)
    config.data.update(path="random", balanced=False)
    kind = {"kind": "dit", "size": size, "patch": 2, "time_scale": 1000.0}
    config.network = {**kind, "scan": True, "remat": not toy, "dtype": "bfloat16"}
    if toy:  # nothing of a DiT's sizes is small
        small = {"width": 24, "depth": 3, "heads": 2, "class_tokens": 1, "patch": 4}
        style = {"modulation": "adaln", "feed": "gelu", "time_scale": 1000.0}
        config.network = {"kind": "mmdit", **small, **style, **PLAIN}
    config.diffusion.update(times="uniform", sigma_data=0.5)
    return config


PLAIN = {"scan": True, "remat": False, "dtype": "float32"}


def source(toy: bool):
    random = np.random.default_rng(0)
    count, side = (64, 8) if toy else (4096, 32)
    images = random.integers(0, 256, (count, side, side, 4), dtype=np.uint8)
    names = tuple(map(str, range(10 if toy else 1000)))
    return ArraySource(images, random.integers(0, len(names), count).astype(np.int32), names, "r")


def about(data) -> dict:
    shape, names = list(data.images.shape[1:]), list(data.class_names)
    return {"data": {"image_shape": shape, "class_names": names, "fingerprint": ""}}


def step_time(system, config, data, repeats: int) -> dict:
    """Times run/loop.py's step: jitted with the state donated, data on the device."""
    call, seconds, memory, check = training(
        dataclasses.replace(system, data=lambda _: data), config
    )
    median = synchronised(call, repeats)
    check()
    speed = {"seconds": round(median, 4), "images_per_second": round(config.batch_size / median, 1)}
    return {**speed, "compile": seconds, "gib": memory}


def train(args) -> dict:
    config, data = base_config("XL", args.batch, args.toy), source(args.toy)
    speed = step_time(systems.make(config, about(data)), config, data, args.repeats)
    if not args.toy:
        flop = 3 * FORWARD["XL"] * args.batch
        speed["tflops"] = round(flop / speed["seconds"] / 1e12, 1)
    return speed


def forward(args) -> dict:
    config, data = base_config("XL", args.batch, args.toy), source(args.toy)
    config.network["remat"] = False
    system = systems.make(config, about(data))
    params = jax.jit(system.init)(jax.random.key(0))
    x, label = jnp.ones((1, *data.images.shape[1:])), jnp.zeros(1, jnp.int32)
    run = jax.jit(lambda params, x: system.denoiser(params, x, jnp.float32(1.0), label))
    program, seconds, memory = compiled(run, params, x)
    median = synchronised(lambda: program(params, x), 2 * args.repeats)
    return {"milliseconds": round(1e3 * median, 3), "compile": seconds, "gib": memory}


def alternation(args) -> dict:
    """The whole of both steps, averages and optimisers included."""
    data, found = source(args.toy), {}
    config = base_config("B", args.batch, args.toy)
    config.network["remat"] = False
    base = systems.make(config, about(data))
    found["diffusion"] = step_time(base, config, data, args.repeats)
    with tempfile.TemporaryDirectory() as folder:  # what a base is to stage C, beside its weights
        place = Path(folder)
        save_assets(about(data), place)
        (place / "config.json").write_text(cli.config_json(config))
        whole = cli.load_config(str(CONFIGS / "apt.py"))
        whole.update(base=folder, batch_size=args.batch)
        whole.adversarial.g_from = "diffusion"
        ((stage, _),) = systems.stages(whole, place / "apt")
        found["alternation"] = step_time(systems.make(stage), stage, data, args.repeats)
    ratio = found["alternation"]["seconds"] / found["diffusion"]["seconds"]
    return {**found, "ratio": round(ratio, 2)}


def film(args) -> dict:
    fields = {"channels": 16, "dtype": jnp.bfloat16, "attention": "cudnn", **SIZES["7B"]}
    shape, text = (1, *FILM), (1, *TEXT)
    if args.toy:
        shape, text = (1, 2, 8, 8, 16), (1, 8, 32)
        fields |= {"width": 32, "depth": 3, "heads": 2, "attention": "einsum"}
    net = MMDiT(**fields)
    struct = jax.ShapeDtypeStruct
    inputs = struct(shape, jnp.float32), struct((1,), jnp.float32), struct(text, jnp.float32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    # Leaf by leaf and in half precision: the float32 tree would not leave room for the rest.
    draw = jax.jit(
        lambda key, like: 0.02 * jax.random.normal(key, like, jnp.bfloat16), static_argnums=1
    )
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    params = jax.tree.unflatten(tree, [draw(k, a.shape) for k, a in zip(keys, leaves)])
    z, c = jnp.ones(shape), jnp.ones(text)
    run = jax.jit(lambda params, z, c: z - net.apply({"params": params}, z, jnp.ones(1), c))
    program, seconds, memory = compiled(run, params, z, c)
    median = synchronised(lambda: program(params, z, c), max(2, args.repeats // 2))
    speed = {"parameters": count, "seconds": round(median, 4), "compile": seconds, "gib": memory}
    return speed if args.toy else {**speed, "tflops": round(FILM_FLOP / median / 1e12, 1)}


JOBS = {"train": train, "forward": forward, "alternation": alternation, "film": film}


@command
def main(argv: list[str]) -> int:
    parser = cli.Parser(prog="apt_speed.py", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(JOBS), help="which of these")
    parser.add_argument("--batch", type=cli.positive, default=256, help="of the training steps")
    parser.add_argument("--repeats", type=cli.positive, default=10, help="calls timed")
    parser.add_argument("--toy", action="store_true", help="tiny nets, to try it on a CPU")
    parser.add_argument("--out", default="", help="a JSON file")
    args = parser.parse(argv)
    if args.toy:
        args.batch, args.repeats = 4, 2
    device = jax.devices()[0]
    result = {"device": device.device_kind, "jax": jax.__version__, "batch": args.batch}
    for name in args.only.split(","):
        result[name] = choose(name, JOBS, "--only")(args)
        print(name, result[name], file=sys.stderr)
    text = json.dumps(result)
    print(text)
    if args.out:
        Path(args.out).write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
