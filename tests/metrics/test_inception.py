"""The net of the FID against pytorch-fid's, with weights made by a rule."""

import gzip
import json
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffjax.errors import UserError
from diffjax.metrics import inception
from diffjax.metrics.features import extract, feature_net

FILES = Path(__file__).parents[1] / "golden" / "metrics"
TOLERANCE = 1e-5


def rule(name: str, shape) -> np.ndarray:
    last = name.split(".")[-1]
    if last == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    random = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)  # noqa: NPY002
    w = random.standard_normal(shape).astype(np.float32)
    if len(shape) >= 2:
        return w * np.float32(1 / np.sqrt(np.prod(shape[1:])))
    return np.float32(last in ("weight", "running_var")) + np.float32(0.1) * w


@pytest.fixture(scope="module")
def golden():
    with np.load(FILES / "inception.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def state():
    manifest = json.loads(gzip.decompress((FILES / "manifest_inception_fid.json.gz").read_bytes()))
    return {name: rule(name, shape) for name, (shape, _) in manifest.items()}


@pytest.fixture(scope="module")
def path(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    save_file(state, path)
    return path


@pytest.fixture(scope="module")
def net(path):
    return feature_net(f"inception:{path}")


def nhwc(a):
    return a.transpose(0, 2, 3, 1)


def test_the_graph(golden, state):
    """pytorch-fid's own input: half-pixel bilinear of u / 255, then 2 x - 1."""
    x = nhwc(golden["images"]).astype(np.float32) / 255
    x = 2 * jax.image.resize(x, (2, 299, 299, 3), "bilinear", antialias=False) - 1
    params = inception.to_params(state, "here")
    with jax.default_matmul_precision("highest"):
        out, layers = jax.jit(
            lambda p, x: inception.InceptionV3().apply(
                {"params": p}, x, capture_intermediates=True, mutable="intermediates"
            )
        )(params, x)
    near = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE)
    near(out.pool, golden["pool"])
    near(out.logits, golden["logits"])
    near(jax.nn.softmax(out.unbiased)[:, :16], golden["softmax_nobias_first16"])
    near(out.spatial[..., :7], golden["spatial7"])
    made = layers["intermediates"]["Mixed_6d.branch1x1"]["__call__"][0]
    first = made.transpose(0, 3, 1, 2).ravel()[:8]
    near([made.mean(), made.std(), *first], golden["stats/Mixed_6d.branch1x1"])
    # Of a block, the channels of its branches one after another.
    for block, branches in {
        "5b": ("1x1", "5x5_2", "3x3dbl_3", "_pool"),
        "6b": ("1x1", "7x7_3", "7x7dbl_5", "_pool"),
        "7c": ("1x1", "3x3_2a", "3x3_2b", "3x3dbl_3a", "3x3dbl_3b", "_pool"),
    }.items():
        parts = [layers["intermediates"][f"Mixed_{block}.branch{b}"]["__call__"] for b in branches]
        whole = np.concatenate([part[0] for part in parts], -1)
        first = whole.transpose(0, 3, 1, 2).ravel()[:8]
        near([whole.mean(), whole.std(ddof=1), *first], golden[f"stats/Mixed_{block}"])


def test_as_a_feature_net(net, golden):
    images = nhwc(golden["images"])
    pool = extract(net, images, batch_size=2)
    np.testing.assert_allclose(pool, golden["pool_tf1resize_128norm"], rtol=0, atol=TOLERANCE)
    assert (net.name, net.dim, net.is_fid) == ("inception", 2048, True)
    assert len(net.version) == 16 and pool.dtype == np.float32


def test_tf1_resizing_by_hand():
    """Output i of 299 lies at i n / 299 of the input; beyond the last pixel it is that pixel."""
    images = np.zeros((1, 2, 299, 3), np.uint8)
    images[:, 1] = 128
    out = inception.prepared(images)[0]
    assert out.shape == (299, 299, 3)
    np.testing.assert_allclose(out[:150, 0, 0], np.arange(150) * 2 / 299 - 1, atol=1e-6)
    assert (np.abs(out[150:]) < 1e-6).all()
    same = np.random.default_rng(0).integers(0, 256, (1, 299, 299, 3), np.uint8)
    np.testing.assert_array_equal(inception.prepared(same), (same - np.float32(128)) / 128)


def test_other_outputs(net, golden):
    images = nhwc(golden["images"])
    probs = extract(net, images, batch_size=2, output="probs")
    assert probs.shape == (2, 1008)
    np.testing.assert_allclose(probs.sum(1), 1, rtol=1e-5)
    assert extract(net, images, batch_size=2, output="spatial").shape == (2, 17 * 17 * 7)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("fc.weight"), "no weights named 'fc.weight'"),
        (lambda s: s.pop("Mixed_7c.branch1x1.bn.running_var"), "Mixed_7c.branch1x1.bn.running_var"),
        (
            lambda s: s.pop("Mixed_7c.branch1x1.conv.weight"),
            "no weights named 'Mixed_7c.branch1x1/",
        ),
        (
            lambda s: s.update({"fc.weight": np.zeros((1000, 2048)), "fc.bias": np.zeros(1000)}),
            r"has shape \(1000,\), the network wants \(1008,\)",
        ),
    ],
)
def test_weights_of_another_network(state, change, message):
    other = dict(state)
    change(other)
    with pytest.raises(UserError, match=message):
        inception.to_params(other, "here")


def test_what_needs_no_weights_is_ignored(state):
    more = {**state, "AuxLogits.conv0.conv.weight": np.zeros((1, 1, 1, 1), np.float32)}
    assert inception.to_params(more, "here").keys() == inception.to_params(state, "here").keys()


def test_names(tmp_path):
    with pytest.raises(UserError, match="needs its weights: inception:FILE"):
        feature_net("inception")
    with pytest.raises(UserError, match="no such weights file"):
        feature_net(f"inception:{tmp_path / 'a.pth'}")
    with pytest.raises(UserError, match="'pixels' takes no file"):
        feature_net("pixels:a.pth")
    with pytest.raises(UserError, match="did you mean 'inception'"):
        feature_net("inceptoin:a.pth")
