from itertools import product
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.data.motion import rotations as rot

GOLDEN = Path(__file__).parents[2] / "golden" / "motion"


@pytest.fixture(scope="module")
def prim():
    arrays = np.load(GOLDEN / "features.npz")
    return {k.removeprefix("prim_"): arrays[k] for k in arrays if k.startswith("prim_")}


def quaternions(n=50, seed=0):
    return rot.unit(np.random.default_rng(seed).standard_normal((n, 4)))


def test_the_published_rotations(prim):
    q1, q2, v1, v2 = (prim[k] for k in ("q1", "q2", "v1", "v2"))
    for xp in (np, jnp):
        a, b, v, w = (xp.asarray(x) for x in (q1, q2, v1, v2))
        found = {
            "qmul": rot.multiply(a, b),
            "qrot": rot.rotate(a, v),
            "qbetween": rot.between(v, w),
            "cont6d": rot.to_6d_columns(rot.to_matrix(a)),
            "cont6d_to_matrix": rot.from_6d_columns(xp.concatenate([v, w], -1)),
            "axis_angle_to_matrix": rot.to_matrix(rot.from_axis_angle(v)),
        }
        for key, value in found.items():
            assert value.dtype == np.float32 and isinstance(value, type(a))
            np.testing.assert_allclose(value, prim[key], atol=1e-6, err_msg=key)
    rows = rot.from_6d_rows(np.concatenate([v1, v2], -1))
    np.testing.assert_allclose(rows, prim["rot6d_to_matrix_rows"], atol=1e-6)
    np.testing.assert_allclose(rot.to_6d_rows(rows), prim["matrix_to_rot6d_rows"], atol=1e-6)


@pytest.mark.parametrize("order", rot.ORDERS)
def test_euler_angles_of_every_order(order):
    angles = np.radians(np.array(list(product((-170, -30, 0, 100), (-89, -20, 0, 70), (-150, 40)))))
    q = rot.from_euler(angles, order)
    np.testing.assert_allclose(rot.to_euler(rot.to_matrix(q), order), angles, atol=1e-12)
    # Closed form: the product of three matrices.
    one = angles[:, 0], angles[:, 1], angles[:, 2]
    matrices = [rot.to_matrix(rot.about(axis, a)) for axis, a in zip(order, one)]
    np.testing.assert_allclose(
        rot.to_matrix(q), matrices[0] @ matrices[1] @ matrices[2], atol=1e-14
    )


@pytest.mark.parametrize("order", rot.ORDERS)
@pytest.mark.parametrize("middle", (90, -90))
def test_locked_euler_angles_still_give_the_rotation(order, middle):
    angles = np.radians([[30.0, middle, -50.0], [200.0, middle, 0.0]])
    m = rot.to_matrix(rot.from_euler(angles, order))
    again = rot.to_matrix(rot.from_euler(rot.to_euler(m, order), order))
    np.testing.assert_allclose(again, m, atol=1e-7)


def test_zxy_is_the_inverse_that_bvh_files_need():
    q = quaternions()
    m = rot.to_matrix(q)
    z, x, y = np.moveaxis(rot.to_euler(m, "zxy"), -1, 0)
    np.testing.assert_allclose(x, np.arcsin(m[:, 2, 1]), atol=1e-12)
    np.testing.assert_allclose(z, np.arctan2(-m[:, 0, 1], m[:, 1, 1]), atol=1e-12)
    np.testing.assert_allclose(y, np.arctan2(-m[:, 2, 0], m[:, 2, 2]), atol=1e-12)


def test_round_trips():
    q = quaternions()
    m = rot.to_matrix(q)
    np.testing.assert_allclose(
        m @ m.swapaxes(-1, -2), np.broadcast_to(np.eye(3), m.shape), atol=1e-14
    )
    back = rot.from_matrix(m)
    np.testing.assert_allclose(abs((back * q).sum(-1)), 1, atol=1e-14)
    np.testing.assert_allclose(rot.from_6d_columns(rot.to_6d_columns(m)), m, atol=1e-14)
    np.testing.assert_allclose(rot.from_6d_rows(rot.to_6d_rows(m)), m, atol=1e-14)
    half = np.array([[0.0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # w = 0
    np.testing.assert_allclose(abs(rot.from_matrix(rot.to_matrix(half))), half, atol=1e-15)
    v = np.random.default_rng(1).standard_normal((50, 3))
    np.testing.assert_allclose(rot.rotate(q, v), (m @ v[..., None])[..., 0], atol=1e-14)


def test_between_turns_one_vector_to_the_other_also_to_its_opposite():
    random = np.random.default_rng(0)
    a, b = random.standard_normal((2, 40, 3))
    b[:3] = -a[:3]
    b[3] = 2 * a[3]
    a[4], b[4] = [1.0, 0, 0], [-3.0, 0, 0]
    turned = rot.rotate(rot.between(a, b), rot.unit(a))
    np.testing.assert_allclose(turned, rot.unit(b), atol=1e-12)
    still = rot.between(np.zeros((1, 3)), a[:1])
    np.testing.assert_array_equal(still, [[1, 0, 0, 0]])


def test_slerp_halfway_is_the_mean_and_takes_the_short_way():
    a, b = quaternions(), quaternions(seed=1)
    near = np.where((a * b).sum(-1, keepdims=True) < 0, -b, b)
    half = rot.slerp(a, b, np.full(50, 0.5))
    np.testing.assert_allclose(half, rot.unit(a + near), atol=1e-12)
    x = rot.about("x", np.array([0.0, 0.2, 1.0]))
    np.testing.assert_allclose(rot.slerp(x[:1], x[2:], np.array([0.2])), x[1:2], atol=1e-12)
    np.testing.assert_allclose(rot.slerp(a, a, np.full(50, 0.3)), a, atol=1e-12)


def test_gradients_are_finite_where_a_length_is_zero():
    def total(x):
        both = rot.from_6d_columns(jnp.tile(x, 2)).sum()
        return rot.unit(x).sum() + rot.from_axis_angle(x).sum() + both

    assert np.isfinite(jax.grad(total)(jnp.zeros(3))).all()
