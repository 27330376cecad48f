"""A system whose every number can be worked out by hand, and meshes of some of the devices."""

import contextlib
import functools
import math
import os
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from diffjax import systems
from diffjax.run import logs, update
from diffjax.run import mesh as meshes
from diffjax.run.checkpoints import Checkpoints


@pytest.fixture(scope="session")
def mesh_of():
    """mesh_of(data=2, tensor=2) -> a mesh over that many of the devices, not all."""

    def make(**sizes: int):
        shape = [sizes.get(axis, 1) for axis in meshes.AXES]
        devices = jax.devices()[: math.prod(shape)]
        types = (AxisType.Auto,) * len(shape)
        return jax.make_mesh(shape, meshes.AXES, axis_types=types, devices=devices)

    return make


class Line:
    """Least squares of y = w x + b on noisy data: the stub system of the tests of the step.

    loss = mean over rows of (w . x + b - z)^2, z = normal(fold_in(key, row)); a batch's rows of
    NaN make the loss NaN.
    """

    def __init__(self, width: int = 3):
        self.width, self.sharding = width, ()
        self.assets, self.balanced, self.training, self.target = {}, False, None, ""

    def init(self, key):
        return {"w": jax.random.normal(key, (self.width,)), "b": jnp.zeros(())}

    def loss(self, params, batch, key):
        z = jax.vmap(lambda row: jax.random.normal(jax.random.fold_in(key, row)))(batch["row"])
        error = batch["x"] @ params["w"] + params["b"] - z
        return jnp.mean(error**2), {"bias": params["b"]}

    def gradient(self, params, x, seed: int, step: int):
        """The same loss and gradient by hand, in float64."""
        key = jax.random.fold_in(jax.random.key(seed), step)
        draw = lambda row: jax.random.normal(jax.random.fold_in(key, row))
        z = np.array([draw(r) for r in range(len(x))], np.float64)
        x = np.asarray(x, np.float64)
        error = x @ params["w"] + params["b"] - z
        gradient = {"w": 2 * x.T @ error / len(x), "b": 2 * error.mean()}
        return (error**2).mean(), gradient


@pytest.fixture
def line():
    return Line()


@pytest.fixture(scope="session")
def fed():
    """A feed that hands on what it is given, {"x": [B, 3]}."""
    return SimpleNamespace(take=lambda fed, key, step: fed)


@pytest.fixture(scope="session")
def stopped_at():
    """stopped_at(step, signal) -> a context: a run gets that signal as it logs that step."""

    @contextlib.contextmanager
    def stopped(step: int, number: int):
        tell = logs.Logger.metrics

        def metrics(self, now, *args):
            tell(self, now, *args)
            if now == step:
                os.kill(os.getpid(), number)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(logs.Logger, "metrics", metrics)
            yield

    return stopped


@pytest.fixture(scope="session")
def read_state():
    """read_state(workdir, step=None) -> {"params/...": array, "opt_state/...": ...} of it."""

    @functools.cache  # a step, once written, does not change
    def read(workdir, step=None):
        system, config = systems.load(workdir)
        shapes, _ = update.state_shapes(system, config, meshes.make_mesh(config.mesh))
        checkpoints = Checkpoints(workdir, read_only=True)
        state, _ = checkpoints.restore(shapes, step)
        checkpoints.close()
        leaves = jax.tree_util.tree_leaves_with_path(state)
        return {meshes.path_name(path): np.asarray(leaf) for path, leaf in leaves}

    return read


@pytest.fixture(scope="session")
def same_bits():
    """same_bits(a, b): two dicts of arrays hold the same names and the same bytes."""

    def check(a, b):
        assert a.keys() == b.keys()
        differ = [k for k in a if a[k].dtype != b[k].dtype or a[k].tobytes() != b[k].tobytes()]
        assert not differ

    return check
