import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffjax.data.motion import features, rigs, walker
from diffjax.data.motion.skeletons import HUMANML3D, KIT
from diffjax.errors import UserError

GOLDEN = Path(__file__).parents[2] / "golden" / "motion"
CASES = {"t2m": HUMANML3D, "t2m_turn": HUMANML3D, "kit": KIT}


@pytest.fixture(scope="module")
def golden():
    arrays = np.load(GOLDEN / "features.npz")
    return {k: arrays[k] for k in arrays}


@pytest.fixture(scope="module")
def walking():
    """A clip of the walker with its skeleton, in metres."""
    clip = walker.clip("turn_left", seconds=5)
    skeleton, rig = rigs.derive([clip], fps=20)
    return rigs.joints_of(clip, rig), skeleton


def skeleton_of(golden, case):
    offsets = golden[f"{case}_target_offsets"]
    skeleton = CASES[case].with_lengths(np.linalg.norm(offsets, axis=-1))
    np.testing.assert_allclose(skeleton.offsets, offsets, atol=1e-6 / skeleton.unit)
    return skeleton


@pytest.mark.parametrize("case", CASES)
def test_the_published_extraction(golden, case):
    skeleton = skeleton_of(golden, case)
    scale, joints = 1 / skeleton.unit, golden[f"{case}_joints"]
    clip = features.canonical(features.unify(joints, skeleton), skeleton)
    if f"{case}_canonical" in golden:
        np.testing.assert_allclose(clip, golden[f"{case}_canonical"], atol=5e-6 * scale)
    found = features.extract(joints, skeleton, published=True)
    want, blocks = golden[f"{case}_features"], features.channels(len(skeleton))
    assert found.shape == want.shape and found.dtype == np.float32
    loose = 1e-4 if case == "t2m_turn" else 5e-5
    for name, block in blocks.items():
        tolerance = {"rotations": 2e-4, "yaw": loose, "contacts": 0}.get(name, loose * scale)
        np.testing.assert_allclose(found[:, block], want[:, block], atol=tolerance, err_msg=name)
    again = features.recover(want, skeleton)
    np.testing.assert_allclose(again, golden[f"{case}_recovered"], atol=1e-5 * scale)


def test_the_root_as_published(golden):
    turn, place = features.root(golden["t2m_features"])
    np.testing.assert_allclose(turn, golden["t2m_root_quat"], atol=1e-5)
    np.testing.assert_allclose(place, golden["t2m_root_pos"], atol=1e-5)


@pytest.mark.parametrize("case", ["t2m", "t2m_turn"])
def test_the_corrected_extraction_recovers_exactly(golden, case):
    skeleton, joints = skeleton_of(golden, case), golden[f"{case}_joints"]
    found = features.extract(joints, skeleton, unified=True)
    np.testing.assert_allclose(found, golden[f"{case}_features_corrected"], atol=1e-6)
    clip = features.canonical(features.unify(joints, skeleton), skeleton)[:-1]
    np.testing.assert_allclose(features.recover(found, skeleton), clip, atol=2e-5)
    np.testing.assert_allclose(features.recover_from_rotations(found, skeleton), clip, atol=2e-5)


def test_without_the_mended_sign_a_turning_clip_is_lost(golden):
    skeleton, joints = skeleton_of(golden, "t2m_turn"), golden["t2m_turn_joints"]
    clip = features.canonical(features.unify(joints, skeleton), skeleton)
    r = features.root_rotations(clip, skeleton)
    r[0] = [1, 0, 0, 0]
    yaw = features.rot.multiply(r[1:], features.rot.conjugate(r[:-1]))
    assert (yaw[:, 0] < 0).any()
    found = features.extract(joints, skeleton, unified=True).astype(np.float64)
    found[:, 0] = np.arcsin(yaw[:, 2])
    wrong = abs(features.recover(found, skeleton) - clip[:-1]).max()
    assert wrong == pytest.approx(0.197, abs=2e-3)


def test_jax_recovers_as_numpy_does(walking):
    joints, skeleton = walking
    found = features.extract(joints, skeleton)
    batch = jnp.stack([found, found[::-1]])
    for recover in (features.recover, features.recover_from_rotations):
        traced = jax.jit(recover, static_argnums=1)(batch, skeleton)
        assert traced.shape == (2, *joints[1:].shape)
        np.testing.assert_allclose(traced[0], recover(found, skeleton), atol=1e-5)
        np.testing.assert_allclose(traced[0], features.canonical(joints, skeleton)[:-1], atol=2e-5)
    faced = jax.jit(features.facing, static_argnums=1)(traced, skeleton)
    assert faced.dtype == np.float32
    np.testing.assert_allclose(
        faced[0], features.facing(np.asarray(traced[0]), skeleton), atol=1e-6
    )


def test_padding_does_not_change_what_is_recovered(walking):
    joints, skeleton = walking
    found = features.extract(joints, skeleton)
    padded = np.concatenate([found, np.full((7, skeleton.size), 9, np.float32)])
    want = features.recover(found, skeleton)
    np.testing.assert_array_equal(features.recover(padded, skeleton)[: len(found)], want)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.booleans())
def test_joints_come_back_up_to_a_turn_and_a_shift(seed, frames, wild):
    random = np.random.default_rng(seed)
    clip = walker.clip("walk", seed=seed % 1000, seconds=frames / 20)
    skeleton, rig = rigs.derive([clip], fps=20)
    joints = rigs.joints_of(clip, rig)
    if wild:  # not a body's motion any more, but features must not care
        joints = joints + random.normal(0, 0.02, joints.shape)
    again = features.recover(features.extract(joints, skeleton), skeleton)
    height = skeleton.height
    # Distances between joints of a frame, heights, and distances over time have no turn or shift.
    tied = joints[:-1] - joints[:1, :1]
    found = again - again[:1, :1]
    want_flat, found_flat = (a[..., ::2].reshape(-1, 2) for a in (tied, found))
    u, _, vt = np.linalg.svd(found_flat.T @ want_flat)
    turn = u @ vt
    assert np.linalg.det(turn) > 0
    assert abs(found_flat @ turn - want_flat).max() < 1e-4 * height
    assert np.ptp(again[..., 1] - joints[:-1, :, 1]) < 1e-5 * height
    assert again[..., 1].min() >= -1e-6


def test_facing_and_the_signs_of_the_root(walking):
    joints, skeleton = walking
    found = features.extract(joints, skeleton)
    blocks = features.channels(len(skeleton))
    # It walks forward (+z of its own frame), and to its left: r turns the other way.
    velocity = found[:, blocks["velocity"]]
    assert velocity[:, 1].mean() * 20 == pytest.approx(1.25, rel=0.12)
    assert abs(velocity[:, 0].mean()) < 0.2 * velocity[:, 1].mean()
    assert 2 * found[:, 0].sum() == pytest.approx(-0.8 * 5, rel=0.25)
    hip = skeleton.names.index("LeftUpperLeg")
    positions = found[:, blocks["positions"]].reshape(len(found), -1, 3)
    assert (positions[:, hip - 1, 0] > 0.05).all()
    assert (found[:, blocks["velocities"]][:, 2] > 0).all()


def test_contacts_are_the_feet_that_stand(walking):
    joints, skeleton = walking
    contacts = features.extract(joints, skeleton)[:, -4:]
    assert set(np.unique(contacts)) == {0, 1}
    toes = joints[:-1, [skeleton.feet[1], skeleton.feet[3]]]
    standing = contacts[:, [1, 3]] == 1
    assert toes[standing][:, 1].max() < 0.06 and 0.5 < standing.mean() < 0.8
    assert (contacts[:, [1, 3]].sum(1) >= 1).all(), "a walker has a foot on the floor"


def test_mirror_is_its_own_inverse_and_exchanges_the_feet(walking):
    joints, skeleton = walking
    seen = features.mirror(joints, skeleton)
    np.testing.assert_array_equal(features.mirror(seen, skeleton), joints)
    one, other = (features.extract(j, skeleton) for j in (joints, seen))
    np.testing.assert_allclose(other[:, 0], -one[:, 0], atol=1e-7)
    np.testing.assert_allclose(other[:, 1:3], one[:, 1:3] * [-1, 1], atol=1e-6)
    np.testing.assert_array_equal(other[:, -4:], one[:, [-2, -1, -4, -3]])
    with pytest.raises(UserError, match="no left and right pairs"):
        features.mirror(joints, dataclasses.replace(skeleton, pairs=()))


@pytest.mark.parametrize(
    "joints, message",
    [
        (np.zeros((5, 21, 3)), r"\[frames, 22, 3\], not float64 \(5, 21, 3\)"),
        (np.zeros((1, 22, 3)), "2 frames or more"),
        (np.full((3, 22, 3), np.nan), "finite"),
        (np.full((3, 22, 3), "x"), "numbers"),
    ],
)
def test_what_is_no_clip_is_refused(joints, message):
    with pytest.raises(UserError, match=message):
        features.extract(joints, HUMANML3D)


def test_a_body_that_does_not_move_or_has_no_bones_gives_finite_features():
    still = np.zeros((4, 22, 3))
    assert np.isfinite(features.extract(still, HUMANML3D)).all()
    with pytest.raises(UserError, match="legs have no length"):
        features.extract(still, HUMANML3D, published=True)
