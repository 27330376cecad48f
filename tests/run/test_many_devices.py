"""One device equals eight, however they are laid out; and what should be in pieces is."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from diffjax import systems
from diffjax.errors import UserError
from diffjax.run import mesh as meshes
from diffjax.run import update
from diffjax.run.feed import make_feed

# Adam divides by the root of the squared gradient: a large eps keeps the rounding of gradients
# near zero from becoming whole steps.
SMOOTH = ["batch_size=16", "network.widths=(16,)", "network.patch=1", "optimizer.eps=1e-2"]


@pytest.fixture(scope="module")
def config(make_config):
    return make_config(*SMOOTH)


@pytest.fixture(scope="module")
def new(config, mesh_of):
    """The state of step 0, made on one device, on the host."""
    system = systems.make(config)
    single = update.state_shapes(system, config, mesh_of(data=1))[1]
    return jax.device_get(update.init_state(system, config, single))


@pytest.fixture(scope="module")
def steps(config, mesh_of, new):
    """steps(mesh sizes) -> (state after three steps, losses)."""

    def go(**sizes):
        system, mesh = systems.make(config), mesh_of(**sizes)
        _, shardings = update.state_shapes(system, config, mesh)
        state = jax.device_put(new, shardings)
        feed = make_feed(system, config, mesh)
        step = jax.jit(
            update.step_function(system, config, feed, mesh),
            donate_argnums=0,
            out_shardings=(shardings, meshes.replicated(mesh)),
        )
        data, losses = feed.start(0), []
        for i in range(3):
            fed = next(data)
            share = jax.device_put(np.float32(i / 3), meshes.replicated(mesh))
            with jax.transfer_guard("disallow"):
                state, metrics = step(state, fed, share)
            losses.append(metrics["loss"])
        return state, jax.device_get(losses)

    return go


@pytest.fixture(scope="module")
def one(steps):
    return jax.device_get(steps(data=1))


@pytest.mark.parametrize(
    "sizes", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=["data", "data-fsdp-tensor"]
)
def test_one_device_equals_eight(steps, new, one, sizes):
    state, losses = steps(**sizes)
    np.testing.assert_allclose(losses, one[1], rtol=2e-6)
    alone = one[0]
    for got, wanted in ((state.params, alone.params), (state.ema, alone.ema)):
        for a, b in zip(jax.tree.leaves(jax.device_get(got)), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=5e-6)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), alone.params, new.params)
    assert max(jax.tree.leaves(moved)) > 2e-3  # three steps went somewhere


def test_parameters_are_in_pieces(config, mesh_of, new):
    mesh, system = mesh_of(data=2, fsdp=2, tensor=2), systems.make(config)
    shapes, shardings = update.state_shapes(system, config, mesh)
    state = update.init_state(system, config, shardings)
    moments = next(part for part in state.opt_state if hasattr(part, "mu"))
    pieces = lambda leaf: {shard.data.shape for shard in leaf.addressable_shards}
    for tree in state.params, state.ema["ema"], moments.mu, moments.nu:
        block = tree["down_0"]
        assert block["conv_in"]["kernel"].shape == (3, 3, 16, 16)
        assert pieces(block["conv_in"]["kernel"]) == {(3, 3, 8, 8)}
        assert pieces(block["dense_film"]["kernel"]) == {(8, 16)}  # of (16, 32)
        assert pieces(block["norm_in"]["scale"]) == {(16,)}  # no rule: whole everywhere
        assert pieces(tree["conv_out"]["kernel"]) == {(3, 3, 8, 3)}  # 3 colours stay together
    for leaf, shape in zip(jax.tree.leaves(state), jax.tree.leaves(shapes), strict=True):
        assert leaf.sharding.is_equivalent_to(shape.sharding, leaf.ndim)

    # Born in pieces or made on one device: the same numbers.
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(new), strict=True):
        np.testing.assert_allclose(np.asarray(a), b, rtol=1e-5, atol=1e-6)


def test_rules_are_tried_in_order(mesh_of):
    mesh = mesh_of(fsdp=2, tensor=2)
    tree = {"a": {"kernel": np.zeros((4, 6)), "bias": np.zeros(6)}, "b": {"kernel": np.zeros(3)}}
    rules = (
        (r"^a/kernel$", PartitionSpec("fsdp", ("fsdp", "tensor"))),
        (r"kernel", PartitionSpec("tensor")),
        (r"bias", PartitionSpec(None, "tensor")),
    )
    found = meshes.tree_shardings(tree, rules, mesh)
    # 6 does not divide by 4, 3 not by 2; a rule with more dimensions than the array is no rule.
    assert found["a"]["kernel"].spec == PartitionSpec("fsdp", None)
    assert found["b"]["kernel"].spec == PartitionSpec(None)
    assert found["a"]["bias"].spec == PartitionSpec()


def test_meshes_cover_all_devices():
    count = jax.device_count()
    assert count == 8, "tests/conftest.py asks for eight"
    assert dict(meshes.make_mesh({"data": -1}).shape)["data"] == 8
    mesh = meshes.make_mesh({"data": 2, "fsdp": -1, "tensor": 2, "context": 1})
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2, "context": 1}
    assert meshes.batch_shards(mesh) == 4
    for sizes in {"data": 3}, {"data": 4}, {"data": -1, "fsdp": -1}, {"data": 0}, {"data": -2}:
        with pytest.raises(UserError, match="config.mesh"):
            meshes.make_mesh(sizes)
