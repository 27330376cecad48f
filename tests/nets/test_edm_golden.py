"""EDM's UNets against the released networks: outputs, activations, gradients, at full size too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffjax import nets
from diffjax.core import denoisers
from diffjax.weights import trees

NAMES = ("ddpmpp", "ncsnpp", "skip", "adm", "adm_sigma")


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def case(name, tiny, golden):
    return tiny(name), golden(f"net_{name}")


def nchw(a):
    return np.asarray(a).transpose(0, 3, 1, 2)


def inputs(arrays, x="x"):
    return jnp.asarray(arrays[x].transpose(0, 2, 3, 1))


def test_parameters_are_the_originals(name, case, manifest):
    flat = trees.flatten(case[0].params)
    suffix = {"kernel": "weight", "scale": "weight"}
    ours = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(leaf.ndim, (0,))
        ours[".".join(["model", *parents, suffix.get(last, last)])] = [leaf.shape[i] for i in order]
    wanted = {k: s for k, (s, _) in manifest(f"manifest_tiny_{name}.json").items()}
    buffers = ("resample_filter", "u")
    assert ours == {k: s for k, s in wanted.items() if k.split(".")[-1] not in buffers}
    assert all(leaf.dtype == np.float32 for leaf in flat.values())


def test_outputs(case, near):
    net, g = case
    arguments = inputs(g), g["c_noise"], g["labels"].argmax(1).astype(np.int32)
    f, _ = net.run(net.params, *arguments, g["augment_labels"])
    near(nchw(f), g["F"], 2e-5)
    near(nchw(net.run(net.params, *arguments, 0 * g["augment_labels"])[0]), g["F_noaug"], 2e-5)


def test_activations(case, near):
    net, g = case
    label = g["labels"].argmax(1).astype(np.int32)
    _, seen = net.run(net.params, inputs(g), g["c_noise"], label, g["augment_labels"])
    checked = 0
    for key in (k for k in g if k.startswith("act_")):
        _, half, module = key.split("_", 2)
        (a,) = seen[half][module]["__call__"]
        a = nchw(a)
        near([a.mean(), a.std(), *a.ravel()[:6]], g[key], 2e-5)
        checked += 1
    assert checked >= 11
    near(seen["map_noise"]["__call__"][0], g["map_noise_out"], 2e-5)
    layer = net.params["map_layer0"]
    wanted = g["emb_in"] @ layer["kernel"] + layer["bias"]
    near(seen["map_layer0"]["__call__"][0], wanted, 2e-5)


def test_denoisers(name, case, near):
    net, g = case
    coefficients = denoisers.edm_coefficients()
    x, label = inputs(g, "x_noisy"), g["labels"].argmax(1).astype(np.int32)
    nobody = np.full(2, 10, np.int32)
    if name == "adm_sigma":
        coefficients = denoisers.iddpm_coefficients()
    d = net.denoise(x, g["sigma"], label, g["augment_labels"], coefficients)
    scale = max(1, np.abs(g["D"]).max())  # adm_sigma's D reaches 44, at sigma 12
    near(nchw(d), g["D"], 2e-5, scale)
    d = net.denoise(x, g["sigma"], nobody, 0 * g["augment_labels"], coefficients)
    near(nchw(d), g["D_nolabel_noaug"], 2e-5, scale)


# Compiling is all that these cost; test_edm_training.py's four steps hold ddpmpp's every time.
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_gradients(name, tiny, golden, near):
    net, g = tiny(name), golden(f"net_{name}")
    label = g["labels"].argmax(1).astype(np.int32)

    def loss(params):
        f = net.net.apply(
            {"params": params}, inputs(g), g["c_noise"], label, g["augment_labels"], train=False
        )
        return jnp.mean(f**2)

    flat = trees.flatten(jax.jit(jax.grad(loss))(net.params))
    if "map_noise/freqs" in flat:
        assert not np.any(flat.pop("map_noise/freqs"))
    as_original = lambda path: (
        path.replace("/", ".").replace("kernel", "weight").replace("scale", "weight")
    )
    names = sorted(flat, key=as_original)
    assert len(names) == len(g["grad"])
    norm = np.array([np.linalg.norm(np.float64(flat[n])) for n in names])
    total = np.array([np.sum(np.float64(flat[n])) for n in names])
    near(norm / np.maximum(g["grad"][:, 0], 1e-12), np.ones_like(norm), 1e-4)
    near(total / np.maximum(g["grad"][:, 0], 1e-12), g["grad"][:, 1] / g["grad"][:, 0], 1e-4)


PUBLISHED = (
    "cifar10-32x32-cond-vp",
    "cifar10-32x32-cond-ve",
    "ffhq-afhqv2-64x64-uncond-vp",
    "imagenet-64x64-cond-adm",
)
KINDS = {"vp": "ddpmpp", "ve": "ncsnpp", "adm": "adm"}


def published(manifest, name):
    """A published configuration: (config.network, classes, resolution), and its manifest."""
    entry = manifest("manifests_published.json.gz")[name]
    given = entry["init_kwargs"]
    adm = given["model_type"] == "DhariwalUNet"
    network = {
        "kind": KINDS[name.split("-")[-1]],
        "model_channels": given["model_channels"],
        "channel_mult": given["channel_mult"],
        "num_blocks": 3 if adm else 4,
        "attn_resolutions": [32, 16, 8] if adm else [16],
        "dropout": given.get("dropout", 0.1),
        "augment_dim": given.get("augment_dim", 0),
        "dtype": "float32",
    }
    return network, given["label_dim"], given["img_resolution"], entry


@pytest.mark.slow  # three of them are also the configs' (tests/systems)
def test_published_sizes(manifest):
    count = 0
    for name in manifest("manifests_published.json.gz"):
        if "baseline" in name:
            continue
        network, classes, size, entry = published(manifest, name)
        net = nets.make(ConfigDict(network), channels=3, num_classes=classes, shape=(size, size, 3))
        struct = jax.ShapeDtypeStruct
        inputs = struct((1, size, size, 3), jnp.float32), struct((1,), jnp.float32)
        flat = trees.flatten(jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"])
        flat.pop("map_noise/freqs", None)
        assert sum(leaf.size for leaf in flat.values()) == entry["num_params"], name
        count += 1
    assert count == 7


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_full_size(name, build, manifest, golden, near):
    network, classes, size, _ = published(manifest, name)
    g = {k.split("/")[1]: v for k, v in golden("full_size").items() if k.startswith(name + "/")}
    net = build(network, classes, 3, size)
    draw = np.random.RandomState(1234).standard_normal((1, 3, size, size))  # noqa: NPY002
    total = np.sqrt(0.25 + 1.5**2)
    x = (draw * total).astype(np.float32)
    near(x.ravel()[:8], g["x_first8"], 1e-6)
    label = np.array([5 if classes else 0], np.int32)
    c_noise = np.array([np.log(1.5) / 4], np.float32)
    augment = np.zeros((1, 9), np.float32)
    x = jnp.asarray(x.transpose(0, 2, 3, 1))
    f = nchw(net.run(net.params, x / np.float32(total), c_noise, label, augment)[0])
    d = nchw(net.denoise(x, np.array([1.5], np.float32), label, augment))
    for out, key in ((f, "F"), (d, "D")):
        near(out.ravel()[:64], g[f"{key}_first64"], 2e-5)
        near([out.mean(), out.std()], g[f"{key}_stats"], 2e-5)
