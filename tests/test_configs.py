"""Every config in configs/ makes a system, a state and a step, without its data or its memory."""

from pathlib import Path

import diamond_runs
import jax
import mdm_runs
import numpy as np
import pytest

from diffjax import systems
from diffjax.run import cli, loop, update
from diffjax.run import mesh as meshes

CONFIGS = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.py"))
SIZES = {
    "edm_cifar10": 32,
    "edm_cifar10_short": 32,
    "edm_ffhq64": 64,
    "edm_imagenet64": 64,
    "images": 64,
    "autoencoder": 64,
    "film": 64,
    "film_tiny": 16,
    "relay_tiny_base": 12,
    "relay_emoji64": 64,
    "relay_emoji256": 256,
    "relay_celebahq64": 64,
    "relay_celebahq256": 256,
    "relay_imagenet256": 256,
}


LARGE = ("relay_celebahq64", "relay_celebahq256", "relay_imagenet256", "edm_imagenet64")
LARGE += ("edm_cifar10", "edm_ffhq64", "apt", "apt_tiny")


def marked(path: Path):
    marks = [pytest.mark.slow] if path.stem in LARGE else []  # seconds each to trace
    return pytest.param(path, id=path.stem, marks=marks)


STAGES = [path for path in CONFIGS if path.stem.startswith("apt")]
OWN_LOOP = [path for path in CONFIGS if path.stem.startswith("diamond")]


@pytest.mark.parametrize("path", OWN_LOOP, ids=lambda path: path.stem)
def test_a_config_of_an_outer_loop_makes_its_networks(path):
    config = cli.load_config(str(path))
    system = systems.make(config, diamond_runs.assets_of(config))
    shapes = jax.eval_shape(system.init, jax.random.key(0))
    assert set(shapes) == {"denoiser", "rew_end_model", "actor_critic"}
    assert system.condition(system.request, np.arange(3))["obs"].shape[0] == 3
    if path.stem == "diamond":  # the released networks, with 4 actions
        released = systems.make(config, diamond_runs.assets_of(config, 4))
        shapes = jax.eval_shape(released.init, jax.random.key(0))
        # The noise embedding's fixed numbers are a buffer there.
        sizes = {k: sum(a.size for a in jax.tree.leaves(v)) for k, v in shapes.items()}
        assert sizes["rew_end_model"] == 5_900_864 and sizes["actor_critic"] == 3_229_637
        assert sizes["denoiser"] == 4_405_955 + 128


@pytest.mark.parametrize("path", map(marked, STAGES[:1]))
def test_a_config_in_stages_makes_their_states(path, tmp_path):
    config = cli.load_config(str(path))
    config.mesh.data = 1
    (base, _), *stages = systems.stages(config, tmp_path)
    assert [c.stage for c, _ in stages] == ["distil", "adversarial"]
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1, 1), meshes.AXES)
    about = {"image_shape": [24, 24, 3], "class_names": ["a", "b"], "fingerprint": ""}
    for config, _ in stages:
        system = systems.make(config, {"data": about, "base": {"config": base.to_dict()}})
        loop.check_config(config)
        loop.check_request(system, system.request, config.num_samples)
        state, _ = update.state_shapes(system, config, mesh)
        shape = {"image": ((24, 24, 3), np.uint8), "label": ((), np.int32)}
        batch = {k: jax.ShapeDtypeStruct((config.batch_size, *s), d) for k, (s, d) in shape.items()}
        beside = [] if system.beside is None else [jax.eval_shape(system.init, jax.random.key(0))]
        step = update.step_function(system, config, Passed, mesh)
        after, metrics = jax.eval_shape(step, state, batch, np.float32(0), *beside)
        shapes = [[a.shape for a in jax.tree.leaves(tree)] for tree in (after, state)]
        assert shapes[0] == shapes[1]
        assert {"loss", "grad_norm", "learning_rate"} <= set(metrics)


ONE_RUN = [p for p in CONFIGS if p not in (*OWN_LOOP, *STAGES)]


@pytest.mark.parametrize("path", map(marked, ONE_RUN))
def test_a_config_makes_a_state(path):
    config = cli.load_config(str(path))
    size = SIZES.get(path.stem, 24)
    if not config.data.path:
        config.data.path = "somewhere"
    config.mesh.data = 1
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1, 1), meshes.AXES)
    frames = config.data.get("frames", 0) if "data" in config else 0
    shape = [frames, size, size, 3] if frames else [size, size, 3]
    about = {"image_shape": shape, "class_names": ["a", "b"], "fingerprint": ""}
    motions = config.system == "mdm"
    assets = mdm_runs.assets_of(config) if motions else {"data": about}
    if config.system == "autoencoder":  # it is asked for these pictures again
        assets["pictures"] = np.zeros((2, *shape), np.uint8)
    system = systems.make(config, assets)
    loop.check_config(config)
    update.check_batch(config, mesh)
    if not motions or config.text.encoder == "words":  # else texts need their encoder's files
        loop.check_request(system, system.request, config.num_samples)
    state, shardings = update.state_shapes(system, config, mesh)
    assert jax.tree.structure(state) == jax.tree.structure(shardings)
    # The step is traced, not compiled: what it returns has the state's own shapes.
    fields = {"image": (tuple(shape), np.uint8), "label": ((), np.int32)}
    fields = mdm_runs.fields_of(config, system) if motions else fields
    batch = {k: jax.ShapeDtypeStruct((config.batch_size, *s), d) for k, (s, d) in fields.items()}
    step = update.step_function(system, config, Passed, mesh)
    after, metrics = jax.eval_shape(step, state, batch, np.float32(0))
    assert [a.shape for a in jax.tree.leaves(after)] == [a.shape for a in jax.tree.leaves(state)]
    assert {"loss", "grad_norm", "learning_rate"} <= set(metrics)


class Passed:
    """A feed whose batch is what it is fed."""

    @staticmethod
    def take(fed, key, step):
        return fed
