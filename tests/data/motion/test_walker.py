import numpy as np
import pytest

from diffjax.data.motion import bvh, features, rigs, walker
from diffjax.errors import UserError


def joints_of(action, style="normal", seed=0, **kwargs):
    clip = walker.clip(action, style, seed, **kwargs)
    skeleton, rig = rigs.derive([clip], fps=20)
    return features.canonical(rigs.joints_of(clip, rig), skeleton), skeleton


@pytest.mark.parametrize("style", walker.STYLES)
@pytest.mark.parametrize("action", walker.ACTIONS)
def test_feet_stand_on_the_floor_and_nothing_jerks(action, style):
    joints, skeleton = joints_of(action, style, 1)
    toes = joints[:, [skeleton.feet[1], skeleton.feet[3]]]
    moves = np.linalg.norm(np.diff(toes, axis=0), axis=-1)
    assert abs(joints[..., 1].min()) < 1e-9 and joints[:, 0, 1].min() > 0.5
    down = toes[:-1, :, 1] < 0.005
    # A foot that is down does not slide (4 cm a frame is the threshold of contact), but for the
    # frames in which it lands or leaves.
    assert np.median(moves[down]) < 0.003
    if action not in ("run", "jump"):
        assert (toes[..., 1].min(1) < 0.01).all(), "someone who walks has a foot on the floor"
    speed = np.linalg.norm(np.diff(joints, axis=0), axis=-1) * 20
    assert speed.max() < 12
    bones = np.linalg.norm(joints[:, 1:] - joints[:, list(skeleton.parents[1:])], axis=-1)
    np.testing.assert_allclose(bones, np.tile(skeleton.lengths[1:], (len(joints), 1)), atol=1e-9)


@pytest.mark.parametrize("action", ["walk", "run"])
def test_arms_swing_against_the_legs_and_knees_bend_forwards(action):
    joints, s = joints_of(action, seed=2)
    at = {name: joints[:, i] for i, name in enumerate(s.names)}
    hand, foot, other = (
        at[n][:, 2] - at["Hips"][:, 2] for n in ("LeftHand", "LeftFoot", "RightHand")
    )
    assert np.corrcoef(hand, foot)[0, 1] < -0.7 and np.corrcoef(other, foot)[0, 1] > 0.7
    thigh = at["LeftLowerLeg"] - at["LeftUpperLeg"]
    shank = at["LeftFoot"] - at["LeftLowerLeg"]
    assert (np.cross(thigh, shank)[:, 0] > -1e-6).all(), "a knee bends to one side only"
    assert joints[-1, 0, 2] - joints[0, 0, 2] > 3, "it goes where it looks"
    flying = (joints[:, list(s.feet), 1].min(1) > 0.03).mean()
    assert (flying > 0.1) == (action == "run")


def test_actions_do_what_they_are_called():
    height = {a: joints_of(a, seed=4)[0][:, 0, 1] for a in ("squat", "jump", "walk")}
    assert np.ptp(height["squat"]) > 0.25 > np.ptp(height["walk"])
    assert height["jump"].max() > height["walk"].max() + 0.1
    for side, other in (("Left", "Right"), ("Right", "Left")):
        joints, s = joints_of(f"wave_{side.lower()}", seed=4)
        at = {name: joints[:, i] for i, name in enumerate(s.names)}
        assert (at[f"{side}Hand"][:, 1] > at["Chest"][:, 1]).all()
        assert (at[f"{other}Hand"][:, 1] < at["Chest"][:, 1]).all()
    turned = {}
    for action in ("turn_left", "turn_right", "walk"):
        joints, s = joints_of(action, seed=4)
        turned[action] = -2 * features.extract(joints, s)[:, 0].sum()
    assert turned["turn_left"] > 1.5 and turned["turn_right"] < -1.5 and abs(turned["walk"]) < 0.3


def test_seeds_styles_and_length():
    one, same, other = (walker.clip("walk", seed=k) for k in (3, 3, 4))
    np.testing.assert_array_equal(one.rotations, same.rotations)
    assert abs(one.rotations - other.rotations).max() > 0.05
    assert len(walker.clip("run", seconds=2.5, fps=30)) == 75
    assert len(bvh.parse(bvh.to_text(one))) == len(one) == 80
    texts = {t for a in walker.ACTIONS for s in walker.STYLES for t in walker.captions(a, s)}
    assert len(texts) == 2 * len(walker.ACTIONS) * len(walker.STYLES)
    with pytest.raises(UserError, match="unknown action 'wlak'.*did you mean 'walk'"):
        walker.clip("wlak")
    with pytest.raises(UserError, match="unknown style"):
        walker.clip("walk", "blue")
