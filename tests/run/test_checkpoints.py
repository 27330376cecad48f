"""The checkpoints folder: what is written is what was there, and old ones go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.run import mesh as meshes
from diffjax.run.checkpoints import Checkpoints
from diffjax.run.update import State

META = {"elapsed": 1.5, "fingerprint": "abc", "ema": ["ema"]}


def make(step: int, mesh) -> State:
    """A state of several megabytes in which every number tells the step."""
    fill = lambda n: jnp.full((n, 512, 512), step, jnp.float32)
    params = {"a": {"kernel": fill(2)}, "b": fill(1)}
    state = State(
        step=jnp.int32(step),
        params=params,
        ema={"ema": jax.tree.map(jnp.copy, params)},
        opt_state=(jax.tree.map(jnp.copy, params),),
        bad_step=jnp.int32(-1),
    )
    return jax.device_put(state, meshes.replicated(mesh))


def shapes(state: State) -> State:
    struct = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding)
    return jax.tree.map(struct, state)


@pytest.mark.parametrize("devices", [1, 8])
def test_what_is_saved_is_the_state_of_that_moment(tmp_path, mesh_of, devices):
    # The files are written while later steps reuse the memory of the state that they are of.
    state = make(0, mesh_of(data=devices))
    add = jax.jit(lambda s: jax.tree.map(lambda a: a + a.dtype.type(1), s), donate_argnums=0)
    state = add(state)
    checkpoints = Checkpoints(tmp_path, keep=9)
    for _ in range(3):
        checkpoints.save(state, META)
        for _ in range(10):
            state = add(state)
    checkpoints.wait()
    assert checkpoints.steps() == [1, 11, 21] and checkpoints.newest() == 21
    for step in checkpoints.steps():
        found, meta = checkpoints.restore(shapes(state), step)
        assert meta == META and checkpoints.meta(step) == META
        for leaf in jax.tree.leaves(found._replace(bad_step=found.step)):
            assert (np.asarray(leaf) == step).all()
    checkpoints.close()


def test_what_is_kept(tmp_path, mesh_of):
    checkpoints = Checkpoints(tmp_path, keep=2, keep_every=4)
    for step in range(1, 8):
        checkpoints.save(make(step, mesh_of(data=1)), META)
    checkpoints.save(make(7, mesh_of(data=1)), META)  # there already: nothing to do
    checkpoints.close()
    assert Checkpoints(tmp_path, read_only=True).steps() == [4, 6, 7]


def test_restored_on_other_devices(tmp_path, mesh_of):
    checkpoints, state = Checkpoints(tmp_path), make(3, mesh_of(data=8))
    checkpoints.save(state, META)
    checkpoints.wait()
    mesh = mesh_of(fsdp=2, tensor=2)
    rules = ((r"kernel", jax.sharding.PartitionSpec(None, "fsdp", "tensor")),)
    wanted = jax.tree.map(
        lambda a, h: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=h),
        state,
        meshes.tree_shardings(state, rules, mesh),
    )
    found, _ = checkpoints.restore(wanted)
    kernel = found.params["a"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 256, 256)}
    assert (np.asarray(kernel) == 3).all()
    part = checkpoints.restore_part("ema/ema", wanted.ema["ema"], 3)
    assert part["b"].sharding.mesh == mesh and (np.asarray(part["a"]["kernel"]) == 3).all()
    with pytest.raises(UserError, match="no checkpoint of step 2; it has 3"):
        checkpoints.restore(wanted, 2)
    checkpoints.close()


def test_a_write_that_was_cut_short_is_cleared_away(tmp_path, mesh_of):
    first = Checkpoints(tmp_path)
    first.save(make(3, mesh_of(data=1)), META)
    first.close()
    half = tmp_path / "checkpoints" / "5.orbax-checkpoint-tmp-0"
    (half / "state").mkdir(parents=True)
    again = Checkpoints(tmp_path)
    assert again.newest() == 3
    again.save(make(5, mesh_of(data=1)), META)
    again.close()
    assert not half.exists()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["3", "5"]
