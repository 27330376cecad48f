"""FLOPs of traced programs against closed forms, and against convolutions of ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from diffjax.run.pods import flops


def of(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_a_product_is_two_a_multiplication():
    assert flops.count(jnp.matmul, of(3, 4), of(4, 5)) == flops.Count(2 * 3 * 4 * 5)
    batched = flops.count(lambda a, b: jnp.einsum("bhij,bjhk->bihk", a, b), *BATCHED)
    assert batched.flops == 2 * 2 * 7 * 3 * 4 * 5


BATCHED = of(2, 7, 3, 4), of(2, 4, 7, 5)


def chain(w, x):
    return jnp.sum(jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, w)[0])


def test_a_scan_counts_as_often_as_it_runs_and_its_gradient_twice_more():
    one = 2 * 16 * 32 * 32
    assert flops.count(chain, of(7, 32, 32), of(16, 32)).flops == 7 * one
    both = flops.count(jax.grad(chain, (0, 1)), of(7, 32, 32), of(16, 32))
    assert both == flops.Count(3 * 7 * one)


def test_loops_in_loops_and_jitted_functions():
    def outer(w, x):
        return jax.lax.scan(lambda c, _: (c + jax.jit(chain)(w, x), None), 0.0, None, 5)[0]

    assert flops.count(outer, of(3, 8, 8), of(4, 8)).flops == 5 * 3 * 2 * 4 * 8 * 8


def test_rematerialised_layers_are_computed_again():
    one = 2 * 16 * 32 * 32

    def loss(w, x, layer):
        return jnp.sum(layer(w, x) ** 2)

    layer = lambda w, x: jnp.tanh(jnp.tanh(x @ w) @ w)
    plain = flops.count(jax.grad(lambda w, x: loss(w, x, layer)), of(32, 32), of(16, 32))
    # Forward 2, of the second layer both gradients, of the first that of the weights.
    assert plain.flops == (2 + 2 + 1) * one
    again = jax.checkpoint(layer, policy=jax.checkpoint_policies.nothing_saveable)
    remat = flops.count(jax.grad(lambda w, x: loss(w, x, again)), of(32, 32), of(16, 32))
    assert remat.flops == (2 + 2 + 2 + 1) * one


def test_a_branch_counts_as_the_dearest_and_a_loop_of_unknown_length_is_told():
    def branch(p, x):
        return jax.lax.cond(p, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert flops.count(branch, jax.ShapeDtypeStruct((), bool), of(4, 4)).flops == 2 * 2 * 4**3

    def loop(n, x):
        return jax.lax.fori_loop(0, n, lambda _, x: x @ x, x)

    count = flops.count(loop, jax.ShapeDtypeStruct((), jnp.int32), of(4, 4))
    assert count.flops == 2 * 4**3 and count.unknown == ("a while loop",)


def test_what_is_written_for_one_device_counts_for_all(mesh_of):
    mesh = mesh_of(data=4, tensor=2)
    rows = P(("data", "tensor"))
    cut = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(rows, P()), out_specs=rows)
    assert flops.count(cut, of(16, 8), of(8, 4)).flops == 2 * 16 * 8 * 4


SETTINGS = [
    {"window_strides": (1, 1), "padding": "VALID"},
    {"window_strides": (1, 1), "padding": "SAME"},
    {"window_strides": (2, 3), "padding": "SAME"},
    {"window_strides": (2, 1), "padding": ((2, 0), (0, 3)), "rhs_dilation": (1, 2)},
    {"window_strides": (1, 1), "padding": ((1, 2), (2, 2)), "lhs_dilation": (2, 3)},
    {"window_strides": (1, 1), "padding": "SAME", "feature_group_count": 2},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=range(len(SETTINGS)))
def test_convolutions_count_what_a_convolution_of_ones_adds_up(settings):
    numbers = ("NHWC", "HWIO", "NHWC")
    convolve = lambda x, k: jax.lax.conv_general_dilated(
        x, k, dimension_numbers=numbers, **settings
    )
    groups = settings.get("feature_group_count", 1)
    x, kernel = of(2, 9, 8, 4), of(3, 3, 4 // groups, 6)
    ones = convolve(np.ones(x.shape, np.float32), np.ones(kernel.shape, np.float32))
    wanted = 2 * int(np.asarray(ones).sum())
    assert flops.count(convolve, x, kernel).flops == wanted
    # Each of the two gradients multiplies what the convolution itself does.
    loss = lambda x, k: jnp.sum(convolve(x, k) ** 2)
    assert flops.count(jax.grad(loss, (0, 1)), x, kernel).flops == 3 * wanted


def test_a_same_convolution_by_hand():
    convolve = lambda x, k: jax.lax.conv(x, k, (1, 1), "SAME")
    count = flops.count(convolve, of(1, 3, 8, 8), of(5, 3, 3, 3))
    # Of 3 taps at 8 places, 2 lie in the padding along each axis.
    assert count.flops == 2 * 3 * 5 * (3 * 8 - 2) ** 2
