"""The judge of motion: learns from made-up clips, sees spoiled ones, and comes back from a file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.metrics import motion_judge
from diffjax.nets.motion_classifier import MotionClassifier
from diffjax.weights import trees

HEADS = {"content": ("slow", "fast"), "style": ("calm", "wild", "shifted")}
FRAMES, NUMBERS = 24, 3


def made_up(n: int, seed: int):
    """Waves of two frequencies (content), of small and large swing or off the middle (style)."""
    random = np.random.default_rng(seed)
    content, style = random.integers(0, 2, n), random.integers(0, 3, n)
    phase = random.uniform(0, 2 * np.pi, (n, 1, NUMBERS))
    speed = np.where(content, 1.5, 0.4)[:, None, None] * random.uniform(0.9, 1.1, (n, 1, 1))
    wave = np.sin(speed * np.arange(FRAMES)[None, :, None] + phase)
    wave = wave * np.array([1.0, 3.0, 1.0])[style][:, None, None]
    wave += np.array([0.0, 0.0, 4.0])[style][:, None, None]
    clips = 50 + 10 * wave + 0.3 * random.normal(size=wave.shape)
    lengths = random.integers(16, FRAMES + 1, n)
    clips[~motion_judge.masks(lengths, FRAMES)] = np.nan  # nobody may look there
    return clips, lengths, {"content": content, "style": style}


@pytest.fixture(scope="module")
def judge():
    how = {"steps": 600, "batch": 32, "width": 16, "features": 16}
    return motion_judge.train(*made_up(200, 0), HEADS, **how)


def test_it_learns_and_sees_what_is_spoiled(judge):
    clips, lengths, labels = made_up(400, 1)
    found = motion_judge.trial(judge, clips, lengths, labels)
    assert found["accuracy"]["content"] > 0.95 and found["accuracy"]["style"] > 0.95
    assert found["sees"] and found["kid_spoiled"] > 0


def test_padding_and_batches_do_not_matter(judge):
    clips, lengths, _ = made_up(7, 2)
    want = motion_judge.see(judge, clips, lengths)
    assert want.features.shape == (7, 16) and want.logits["style"].shape == (7, 3)
    longer = np.pad(clips, ((0, 0), (0, 5), (0, 0)), constant_values=1e9)
    for got in (
        motion_judge.see(judge, longer, lengths),
        motion_judge.see(judge, clips, lengths, batch=3),
    ):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)


def test_it_comes_back_from_a_file(judge, tmp_path):
    clips, lengths, _ = made_up(5, 3)
    saved = motion_judge.save(judge, tmp_path / "judge.safetensors")
    back = motion_judge.load(tmp_path / "judge.safetensors")
    assert len(saved.version) == 16 and back.version == saved.version and judge.version == ""
    assert back.heads == HEADS and back.module == judge.module
    want, got = (motion_judge.see(j, clips, lengths).features for j in (judge, back))
    np.testing.assert_array_equal(got, want)
    other = judge._replace(mean=judge.mean + 1)
    assert motion_judge.save(other, tmp_path / "other.safetensors").version != saved.version


@pytest.mark.slow
def test_the_same_seed_is_the_same_judge():
    short = {"steps": 2, "batch": 8, "width": 8, "features": 4, "seed": 3}
    a, b = (motion_judge.train(*made_up(20, 0), HEADS, **short) for _ in range(2))
    assert jax.tree.all(jax.tree.map(np.array_equal, a.params, b.params))


def test_it_judges_a_system_s_samples(judge):
    real, lengths, _ = made_up(100, 4)
    arrays = lambda outputs: (outputs["clip"], outputs["length"])
    made = motion_judge.scored(judge, "kid", real, lengths, arrays)
    clips, size, _ = made_up(60, 5)
    good = made.score({"clip": clips, "length": size})
    bad = made.score({"clip": clips + 20, "length": size})
    every = np.ones(60, bool)
    assert good(every) < bad(every) and made.floor(50) > 0 and made.sign == -1
    with pytest.raises(UserError, match="unknown metric 'fdd'"):
        motion_judge.scored(judge, "fdd", real, lengths, arrays)


def test_smoothing_is_a_gaussian_mean_over_the_clip():
    x = jnp.zeros((21, 1)).at[10].set(1.0)
    got = motion_judge.smoothed(x, jnp.ones(21, bool), 2.0)[:, 0]
    want = np.exp(-((np.arange(21) - 10) ** 2) / 8)
    np.testing.assert_allclose(got[5:16], (want / want.sum())[5:16], rtol=0.05)
    mask = jnp.arange(21) < 12
    constant = motion_judge.smoothed(jnp.ones((21, 1)) * mask[:, None], mask, 3.0)[:, 0]
    np.testing.assert_allclose(constant, mask, atol=1e-6)
    still = motion_judge.smoothed(x, mask, 0.0)
    np.testing.assert_allclose(still, x, atol=1e-6)


def test_an_empty_clip_is_no_accident():
    module = MotionClassifier((2,), width=8, features=4)
    x, mask = jnp.zeros((1, 6, 3)), jnp.zeros((1, 6), bool)
    params = module.init(jax.random.key(0), x, mask)
    out = module.apply(params, x, mask)
    assert np.isfinite(out.features).all()
    np.testing.assert_array_equal(module.apply(params, x + 1, mask).features, out.features)


def test_refusals(judge, tmp_path):
    clips, lengths, labels = made_up(10, 6)
    bad = [
        ((clips, lengths * 0, labels, HEADS), "from 1 to 24 frames"),
        ((clips * np.nan, lengths, labels, HEADS), "not finite"),
        ((clips[:1], lengths[:1], labels, HEADS), "cannot learn from 1 clips"),
        ((clips, lengths, {"content": labels["content"]}, HEADS), "must be the same"),
        ((clips, lengths, {**labels, "style": labels["style"] + 1}, HEADS), "from 0 to 2"),
    ]
    for given, words in bad:
        with pytest.raises(UserError, match=words):
            motion_judge.train(*given, steps=1)
    trees.save({"a": np.zeros(2, np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="not a judge of motion"):
        motion_judge.load(tmp_path / "a.safetensors")
    about = {motion_judge.KEY: 100_000 * "["}
    trees.save({"a": np.zeros(2, np.float32)}, tmp_path / "a.safetensors", about)
    with pytest.raises(UserError, match="not a judge of motion"):
        motion_judge.load(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_text("no")
    with pytest.raises(UserError, match="not a safetensors file"):
        motion_judge.load(tmp_path / "b.safetensors")
    saved = motion_judge.save(judge, tmp_path / "c.safetensors")
    flat = trees.load(tmp_path / "c.safetensors")
    flat.pop("mean")
    trees.save(flat, tmp_path / "c.safetensors", trees.metadata(tmp_path / "c.safetensors"))
    with pytest.raises(UserError, match="no weights named 'mean'"):
        motion_judge.load(tmp_path / "c.safetensors")
    assert saved.version
