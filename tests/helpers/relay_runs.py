"""Runs of relay stages with random weights."""

import jax

from diffjax import systems
from diffjax.run import cli, sampling
from diffjax.run.system import save_assets
from diffjax.weights import trees

NAMES = ["red", "green", "blue"]


def run_of(folder, config, assets, seed):
    """A run directory with random weights, as of a run that is done."""
    system = systems.make(config, assets)
    params = system.init(jax.random.key(seed))
    # A network's last layer starts at zero: so that it says something, every weight is moved.
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    moved = [a + 0.1 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys)]
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(cli.config_json(config))
    save_assets(assets, folder)
    trees.save(jax.tree.unflatten(tree, moved), folder / sampling.WEIGHTS)
    return folder
