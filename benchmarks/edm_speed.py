"""How fast are EDM's training and sampling here, in images a second?

    python benchmarks/edm_speed.py [--out speed.json] [--toy] [--config.field=value ...]

Times the very functions that train.py and sample.py call, for configs/edm_cifar10.py (the DDPM++
net of 55.7 M parameters, bfloat16, Adam, EMA, dropout): training at batch 512 without and with
augmentation, and 18 Heun steps (35 evaluations) at batch 256. The data are random bytes on the
device. Every figure is the median of synchronised calls after two to warm up; `pipelined` is what
training reaches with calls in flight, as the loop keeps them. Prints one JSON line.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np
import timing
from timing import compiled, in_flight, record, synchronised, training

from diffjax import systems
from diffjax.data.sources import ArraySource
from diffjax.errors import command
from diffjax.run import cli, sampling, update
from diffjax.run import mesh as meshes

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "edm_cifar10.py"
FORWARD = 42.38e9  # FLOP of one evaluation of one image, counted by hand; training is 3 of them
TOY = ("model_channels=32", "channel_mult=(1,2)", "num_blocks=1", "attn_resolutions=(8,)")


def make_system(config, size: int):
    """The config's system on random pictures [size, size, 3] of ten classes."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (2048, size, size, 3), dtype=np.uint8)
    labels = random.integers(0, 10, 2048).astype(np.int32)
    names = tuple("0123456789")
    about = {"image_shape": [size, size, 3], "class_names": list(names)}
    source = ArraySource(images, labels, names, "random")
    return dataclasses.replace(systems.make(config, {"data": about}), data=lambda split: source)


def rates(batch: int, seconds: float, evaluations: int, toy: bool) -> dict:
    """Images a second, and TFLOP/s where the network's are known."""
    speed = {"images_per_second": round(batch / seconds, 1), "seconds": round(seconds, 4)}
    if not toy:
        speed["tflops"] = round(batch / seconds * evaluations * FORWARD / 1e12, 1)
    return speed


def train(config, size: int, repeats: int, toy: bool, profile: str = "") -> dict:
    """Times run/loop.py's step: jitted with the state donated, data on the device."""
    call, seconds, memory, check = training(make_system(config, size), config)
    median = synchronised(call, repeats)
    pipelined = config.batch_size / in_flight(call, repeats)
    record(profile, call)
    check()
    speed = rates(config.batch_size, median, 3, toy)
    return {**speed, "pipelined": round(pipelined, 1), "compile": seconds, "gib": memory}


def sample(config, size: int, batch: int, repeats: int, toy: bool, profile: str = "") -> dict:
    """Times run/sampling.py's sampler: from a seed to uint8 pictures."""
    system, mesh = make_system(config, size), meshes.make_mesh(meshes.LOCAL)
    _, shardings = update.state_shapes(system, config, mesh)
    params = update.init_state(system, config, shardings).params
    rows = meshes.rows(mesh)
    index = np.arange(batch)
    condition = jax.device_put(system.condition(system.request, index), rows)
    seed = jax.device_put(np.uint32(0), meshes.replicated(mesh))
    index = jax.device_put(index.astype(np.int32), rows)
    run = sampling.sampler(system, system.request, mesh)
    program, seconds, memory = compiled(run, params, seed, index, condition)
    call = lambda: program(params, seed, index, condition)
    median = synchronised(call, repeats)
    record(profile, call)
    evaluations = 2 * system.request.steps - 1
    return {**rates(batch, median, evaluations, toy), "compile": seconds, "gib": memory}


@command
def main(argv: list[str]) -> int:
    argv, overrides = cli.split_overrides(argv)
    parser = timing.parser("edm_speed.py", __doc__, 20, "sample,train,augment")
    parser.add_argument("--sample_batch", type=cli.positive, default=256)
    args = parser.parse(argv)
    size, batch, repeats = 32, args.sample_batch, args.repeats
    words = ["data.path=random"]
    if args.toy:
        size, batch, repeats = 16, 4, 2
        words += ["batch_size=8", "sampling.steps=3", *(f"network.{word}" for word in TOY)]
    config = cli.load_config(str(CONFIG))

    def settings(probability):
        more = [f"augment.probability={probability}", *overrides]
        return cli.apply_overrides(config, [*words, *more])

    plain, augmented = settings(0.0), settings(config.augment.probability)
    jobs = {
        "sample": lambda f: sample(plain, size, batch, max(2, repeats // 4), args.toy, f),
        "train": lambda f: train(plain, size, repeats, args.toy, f),
        "augment": lambda f: train(augmented, size, repeats, args.toy, f),
    }
    result = {**timing.about(), "overrides": overrides}
    for name in args.only.split(","):
        timing.told(result, name, jobs[name](timing.part(args, name)))
    if {"train", "augment"} <= result.keys():
        extra = result["augment"]["seconds"] - result["train"]["seconds"]
        result["augment"]["share"] = round(extra / result["augment"]["seconds"], 4)
    stats = jax.devices()[0].memory_stats() or {}
    result["peak_gib"] = round(stats.get("peak_bytes_in_use", 0) / 2**30, 2) or None
    return timing.end(result, args.out)


if __name__ == "__main__":
    sys.exit(main())
