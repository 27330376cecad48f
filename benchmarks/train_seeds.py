"""Several trainings of one config under different seeds, in one vmapped step: a run directory each.

    python benchmarks/train_seeds.py --config configs/mdm_bvh.py --seeds 5 --out runs/t50
        [--seconds 110] [--config.field=value ...]

For small networks, which alone leave an accelerator idle: n trainings at once cost far less than n
times one. Seed s is trained as train.py trains it with config.seed = s: the same initial weights,
batches and noise. With --seconds the number of steps is what the speed of a first hundred allows,
and is printed: give it to the trainings that are to be compared, as --config.steps. The runs,
OUT_s0, OUT_s1 ..., hold the averaged weights alone; sample.py and the studies take them.
"""

import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from diffjax import convert, systems
from diffjax.errors import UserError, command
from diffjax.run import cli, devices, loop, sampling, update
from diffjax.run import mesh as meshes
from diffjax.run.feed import make_feed
from diffjax.weights import trees

PROBE = 100  # steps that tell the speed


class Seeded:
    """A config whose seed is another one, and may be traced."""

    def __init__(self, config, seed):
        self._config, self.seed = config, seed

    def __getattr__(self, name):
        return getattr(self._config, name)


def initial(system, config, seed: int) -> update.State:
    """The state that train.py begins with under this seed."""
    mesh = meshes.make_mesh(config.mesh)
    shardings = update.state_shapes(system, config, mesh)[1]
    return update.init_state(system, Seeded(config, seed), shardings)


def stepper(system, config, mesh):
    """Returns step(states, seeds, fed, progress) -> (states, losses [n]), jitted, donating."""
    feed = make_feed(system, config, mesh)

    def one(state, seed, fed, progress):
        step = update.step_function(system, Seeded(config, seed), feed, mesh)
        state, metrics = step(state, fed, progress)
        return state, metrics["loss"]

    return feed, jax.jit(jax.vmap(one, in_axes=(0, 0, None, None)), donate_argnums=0)


@command
def main(argv: list[str]) -> int:
    argv, overrides = cli.split_overrides(argv)
    parser = cli.Parser(prog="train_seeds.py", description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="the file of a config")
    parser.add_argument("--seeds", type=cli.positive, default=5, help="how many: 0, 1, ...")
    parser.add_argument("--out", type=Path, required=True, help="runs are OUT_s0, OUT_s1, ...")
    parser.add_argument("--seconds", type=float, default=0.0, help="of training; 0: config.steps")
    args = parser.parse(argv)
    runs = [args.out.with_name(f"{args.out.name}_s{s}") for s in range(args.seeds)]
    for run in runs:
        if run.exists():
            raise UserError(f"{run} exists already: give another --out")
    devices.start()
    config = cli.apply_overrides(cli.load_config(args.config), overrides)
    loop.check_config(config)
    system, mesh = systems.make(config), meshes.make_mesh(config.mesh)
    feed, step = stepper(system, config, mesh)
    if config.ema and len(config.ema) != 1:
        raise UserError("config.ema: one average, whose weights are kept")

    def train(steps: int, title: str):
        states = [initial(system, config, s) for s in range(args.seeds)]
        states = jax.tree.map(lambda *a: jnp.stack(a), *states)
        seeds, fed = jnp.arange(args.seeds, dtype=jnp.uint32), feed.start(0)
        states, losses = step(states, seeds, next(fed), np.float32(0))  # compiles
        jax.block_until_ready(losses)
        begin = time.monotonic()
        with tqdm(range(1, steps), desc=title, initial=1, total=steps) as bar:
            for i in bar:
                states, losses = step(states, seeds, next(fed), np.float32(i / steps))
                if i % 50 == 0:
                    bar.set_postfix(loss=f"{float(losses.mean()):.4f}")
        jax.block_until_ready(losses)
        return states, time.monotonic() - begin

    if args.seconds:
        _, taken = train(PROBE, "how fast")
        with config.unlocked():
            config.steps = max(1, int(args.seconds / taken * PROBE))
    states, taken = train(config.steps, args.out.name)
    if (np.asarray(states.bad_step) >= 0).any():
        raise UserError(f"{args.out}: a loss was not finite")
    (average,) = states.ema.values()
    for s, run in enumerate(runs):
        with config.unlocked():
            config.seed = s
        params = trees.flatten(sampling.fetch(jax.tree.map(lambda a, s=s: a[s], average)))
        convert.write(config, system.assets, params, run, f"{args.out.name}, seed {s}")
    print(f"{args.seeds} trainings of {config.steps} steps in {taken:.0f} s: {runs[0]} ...")
    return 0


if __name__ == "__main__":
    sys.exit(main())
