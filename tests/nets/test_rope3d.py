"""Rotary positions in three axes: golden angles, and what rotations are for."""

import jax.numpy as jnp
import numpy as np
import pytest
from apt_golden import load, near

from diffjax.errors import UserError
from diffjax.nets import rope3d

GRID = (3, 4, 5)


def test_golden():
    g = load("rope3d")
    np.testing.assert_array_equal(rope3d.text_positions(7), g["txt_pos"])
    np.testing.assert_array_equal(rope3d.grid_positions(GRID, 7), g["vid_pos"])
    for channels in (128, 16):
        txt, vid = rope3d.angles("mm3d", 7, GRID, channels)
        # The golden's visual angles for 128 channels are stored in float32.
        near(txt, g[f"txt_ang_{channels}"], 1e-5)
        near(vid, g[f"vid_ang_{channels}"], 1e-5)
    none, stretched = rope3d.angles("stretch3d", 7, GRID, 128)
    assert none is None
    near(stretched, g["stretch_ang_128"], 5e-5)
    near(rope3d.stretch3d((1, 4, 5), 128), g["stretch_ang_128_image"], 5e-5)
    both = np.concatenate(rope3d.angles("mm3d", 7, GRID, 16))
    near(rope3d.rotate(jnp.asarray(g["q"]), rope3d.turns(both)), g["q_rot"], 1e-5)


@pytest.mark.parametrize("kind", ["mm3d", "stretch3d"])
def test_pairs_keep_their_norm(kind):
    _, angles = rope3d.angles(kind, 4, GRID, 26)
    x = np.random.default_rng(0).normal(size=(60, 26)).astype(np.float32)
    y = np.asarray(rope3d.rotate(jnp.asarray(x), rope3d.turns(angles)))
    norm = lambda a: np.hypot(a[:, ::2], a[:, 1::2])
    np.testing.assert_allclose(norm(y), norm(x), rtol=1e-5)
    m = 2 * angles.shape[1]
    assert m < 26 and np.array_equal(y[:, m:], x[:, m:]) and not np.allclose(y[:, :m], x[:, :m])


def test_products_depend_on_differences_of_positions():
    rows = np.random.default_rng(1).normal(size=(2, 24)).astype(np.float32)
    q, k = (np.broadcast_to(row, (60, 24)) for row in rows)

    def products(first):
        turn = rope3d.turns(rope3d.mm3d(rope3d.grid_positions(GRID, first), 24))
        return np.asarray(
            rope3d.rotate(jnp.asarray(q), turn) @ rope3d.rotate(jnp.asarray(k), turn).T
        )

    near(products(9), products(0), 1e-5)  # a longer text shifts all frames alike
    by_pair = products(0).reshape(*GRID, *GRID)
    near(by_pair[1:, 1:, 1:, 1:, 1:, 1:], by_pair[:-1, :-1, :-1, :-1, :-1, :-1], 1e-5)
    assert abs(by_pair[0, 0, 0, 1, 0, 0] - by_pair[1, 0, 0, 0, 0, 0]) > 1e-2


def test_half_precision_keeps_its_type():
    _, angles = rope3d.angles("mm3d", 200, GRID, 16)
    x = np.random.default_rng(0).normal(size=(60, 16)).astype(np.float32)
    exact = rope3d.rotate(jnp.asarray(x), rope3d.turns(angles))
    half = rope3d.rotate(jnp.asarray(x, jnp.bfloat16), rope3d.turns(angles))
    assert half.dtype == jnp.bfloat16
    near(half.astype(jnp.float32), exact, 1e-2)


def test_what_is_refused():
    with pytest.raises(UserError, match="mm3d or stretch3d"):
        rope3d.angles("rope", 1, GRID, 16)
    with pytest.raises(UserError, match="fewer than 12"):
        rope3d.angles("stretch3d", 1, GRID, 8)
