"""MDM's published files: names and sizes of all configurations, forwards at full size, refusals."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mdm_original import load, manifest, ours, params_of, state_of, theirs
from ml_collections import ConfigDict
from relay_checkpoint import Tensor, write

from diffjax import nets
from diffjax.errors import UserError
from diffjax.systems.mdm import published
from diffjax.weights import trees

BERT = {"text_encoder_type": "bert"}
DECODER = {"arch": "trans_dec"}
DIP = {"context_len": 20, "pred_len": 40, "mask_frames": True, **BERT, **DECODER}
# configuration -> (what its args.json says, numbers in millions as the paper's authors' code has)
PUBLISHED = {
    "humanml_trans_enc_512": ({}, 17.880),
    "humanml_trans_enc_512_50steps": ({"mask_frames": True, "use_ema": True}, 17.880),
    "kit_trans_enc_512": ({"dataset": "kit"}, 17.868),
    "humanml_trans_dec_512": (DECODER, 26.294),
    "humanml_trans_dec_emb_512": ({"emb_trans_dec": True, **DECODER}, 26.294),
    "humanml_trans_dec_512_bert_50steps": ({**DECODER, **BERT}, 26.425),
    "dip_no_target_10steps_context20_predict40": (DIP, 26.425),
    "humanact12": ({"dataset": "humanact12"}, 17.508),
    "uestc": ({"dataset": "uestc"}, 17.522),
    "humanact12_unconstrained": ({"dataset": "humanact12", "unconstrained": True}, 17.502),
    "humanml_gru_512": ({"arch": "gru"}, 13.928),
}
CONDITIONS = {"action": jnp.zeros(1, int), "none": None}


def inputs(model):
    """x, t and the condition of a model, as `net.init` takes them."""
    size = {"clip": 512, "bert": 768, "": 0}[model.text]
    text = (jnp.zeros((1, 1, size)), jnp.ones((1, 1), bool))
    x = jnp.zeros((1, 8, model.features))
    return x, jnp.zeros(1), CONDITIONS.get(model.condition, text)


def module(model):
    given = {"features": model.features, "condition": model.condition}
    return nets.make_motion(model.network, num_actions=model.num_actions, **given)


def shapes(model):
    return jax.eval_shape(module(model).init, jax.random.key(0), *inputs(model))["params"]


def flags(tmp_path, given):
    file = tmp_path / "args.json"
    file.write_text(json.dumps(given))
    return published.args_of(file)


ALIKE = ("kit_trans_enc_512", "humanml_trans_dec_emb_512", "uestc", "humanml_trans_enc_512")
slow = lambda name: pytest.param(name, marks=pytest.mark.slow) if name in ALIKE else name


@pytest.mark.parametrize("name", map(slow, PUBLISHED))
def test_names_and_sizes(name, tmp_path):
    given, millions = PUBLISHED[name]
    state = {
        n: np.broadcast_to(np.float32(0), s) for n, (s, _) in manifest("published")[name].items()
    }
    model = published.model_of(state, flags(tmp_path, given), name)
    trees.check(model.params, shapes(model), name)
    count = sum(array.size for array in model.params.values())
    assert round(count / 1e6, 3) == millions
    assert model.frames == {"humanact12": 60, "uestc": 60}.get(name.split("_")[0], model.frames)


def test_a_planner_with_goals_is_refused(tmp_path):
    shape = manifest("published")["dip_target_10steps_context20_predict40"]
    state = {n: np.broadcast_to(np.float32(0), s) for n, (s, _) in shape.items()}
    with pytest.raises(UserError, match="goals"):
        published.model_of(state, flags(tmp_path, DIP), "dip")


def draw(seed, *shape):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)  # noqa: NPY002


def test_full_size_text(tmp_path):
    name = "humanml_trans_enc_512_50steps"
    model = published.model_of(
        state_of(manifest("published")[name]), flags(tmp_path, PUBLISHED[name][0]), name
    )
    condition = (draw(71, 1, 1, 512), np.ones((1, 1), bool))
    mask = np.arange(196)[None] < 120
    check_full_size(name, model, draw(70, 1, 263, 1, 196), 25, condition, mask=mask)


@pytest.mark.slow
def test_full_size_action(tmp_path):
    model = published.model_of(
        state_of(manifest("published")["humanact12"]),
        flags(tmp_path, PUBLISHED["humanact12"][0]),
        "humanact12",
    )
    check_full_size("humanact12", model, draw(76, 1, 25, 6, 60), 500, np.asarray([7]))


def check_full_size(name, model, x, t, condition, **given):
    g = load("fullsize")
    params = trees.fit(model.params, shapes(model), name)
    args = ({"params": params}, ours(x), np.asarray([t]), condition)
    out = theirs(jax.jit(module(model).apply)(*args, **given), x)
    assert out.shape == tuple(g[f"{name}_shape"])
    print("error", np.abs(out.ravel()[:64] - g[f"{name}_head64"]).max())
    near = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=5e-5)
    near(out.ravel()[:64], g[f"{name}_head64"])
    wide = out.astype(np.float64)
    near([wide.mean(), wide.std(), np.abs(wide).max()], g[f"{name}_stats"])


# ---- files ---------------------------------------------------------------------------------------

SMALL = {"latent_dim": 16, "layers": 2, "arch": "trans_dec", "unknown_flag": [1, {"a": None}]}


@pytest.fixture(scope="module")
def small():
    """A small network as a published file's: (state dict, our {path: array})."""
    network = {"kind": "trans_dec", "width": 16, "layers": 2, "dropout": 0.1, "dtype": "float32"}
    network |= {"heads": 4, "ff": 1024, "attention": "auto", "mask_frames": False}
    network |= {"emb_trans_dec": False, "emb_policy": "add"}
    net = nets.make_motion(ConfigDict(network), features=263, condition="text")
    x, text = jnp.zeros((1, 4, 263)), (jnp.zeros((1, 1, 512)), jnp.ones((1, 1), bool))
    params = jax.eval_shape(net.init, jax.random.key(0), x, jnp.zeros(1), text)["params"]
    params = {path: draw(i, *a.shape) for i, (path, a) in enumerate(trees.flatten(params).items())}
    state = published.from_params(params)
    assert "seqTransDecoder.layers.1.multihead_attn.in_proj_weight" in state
    return state | {"sequence_pos_encoder.pe": draw(0, 50, 1, 16)}, params


def write_model(folder, state, args):
    (folder / "args.json").write_text(args if isinstance(args, str) else json.dumps(args))
    file = folder / "model000600000.pt"
    tensors = lambda state: {name: Tensor(array) for name, array in state.items()}
    nested = all(isinstance(value, dict) for value in state.values())
    write(file, {k: tensors(v) for k, v in state.items()} if nested else tensors(state))
    return file


@pytest.mark.parametrize("ema", ["none", "unused", "used"])
def test_a_file(tmp_path, small, ema):
    state, params = small
    other = {name: array + 1 for name, array in state.items()}
    tree = {"none": state, "unused": {"model": state, "model_avg": other}}
    tree["used"] = {"model": other, "model_avg": state}
    file = write_model(tmp_path, tree[ema], {**SMALL, "use_ema": ema == "used"})
    model = published.read(file)
    fitted = trees.flatten(trees.fit(model.params, shapes(model), str(file)))
    for path, array in params.items():
        np.testing.assert_array_equal(fitted[path], array)
    assert model.network.kind == "trans_dec" and model.args["diffusion_steps"] == 1000
    assert (model.condition, model.text, model.frames) == ("text", "clip", 196)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("[1]", "args.json: no JSON object"),
        ("{", "args.json: no JSON file"),
        ("[" * 100_000, "args.json: no JSON file"),
        ({"layers": 10**9}, "args.json: its layers is 1000000000"),
        ({"layers": "8"}, "args.json: its layers is '8'"),
        ({"layers": True}, "args.json: its layers is True"),
        ({"dataset": "../x"}, "args.json: its dataset is"),
        ({"dataset": "amass"}, "unknown dataset in"),
        ({"dataset": "kit"}, "its last layer is not of kit's 251 numbers"),
        ({"arch": "mlp"}, "unknown arch in"),
        ({"lambda_target_loc": 1}, "goals"),
        ({"emb_before_mask": True}, "trained with emb_before_mask True"),
        ({"keyframe_cond_type": "target"}, "trained with keyframe_cond_type target"),
        ({"text_encoder_type": "t5"}, "unknown text_encoder_type in"),
    ],
)
def test_flags_that_are_refused(tmp_path, small, args, words):
    file = write_model(tmp_path, small[0], args)
    with pytest.raises(UserError, match=words) as error:
        published.read(file)
    assert "\n" not in str(error.value)


def test_files_that_are_refused(tmp_path, small):
    state, _ = small
    file = write_model(tmp_path, {**state, "a/b": state["embed_text.bias"]}, SMALL)
    with pytest.raises(UserError, match="'a/b' is no weight"):
        published.read(file)
    twice = {"seqTransDecoder.layers.1.self_attn.in_proj.bias": state["embed_text.bias"]}
    with pytest.raises(UserError, match="two arrays for 'seqTransDecoder/layers/1/self_attn/in_pr"):
        published.to_params({**state, **twice}, "x.pt")
    file = write_model(tmp_path, {**state, "surplus.weight": state["embed_text.bias"]}, SMALL)
    model = published.read(file)
    with pytest.raises(UserError, match="1 weights that the network lacks, first 'surplus/scale'"):
        trees.fit(model.params, shapes(model), str(file))
    file = write_model(tmp_path, {"model": {}}, SMALL)
    with pytest.raises(UserError, match="no state dict"):
        published.read(file)
    (tmp_path / "args.json").unlink()
    with pytest.raises(UserError, match="args.json: no such file"):
        published.read(file)


def test_evaluators_file(tmp_path):
    tree = {f"{name}_encoder": None for name in ("movement", "motion", "text")}
    tree = {tag: state_of(manifest("tiny_evaluators")[tag]) for tag in tree}
    write(
        file := tmp_path / "finest.tar",
        {tag: {name: Tensor(a) for name, a in state.items()} for tag, state in tree.items()}
        | {"epoch": 268},
    )
    # That they compute what they should is in tests/nets/test_motion_gru.py.
    found = published.read_evaluators(file)
    sizes = {name: (net.hidden, net.out) for name, (net, _) in found.items()}
    assert sizes == {"movement": (16, 12), "motion": (16, 10), "text": (14, 10)}
    for name, (_, params) in found.items():
        wanted = params_of(manifest("tiny_evaluators")[f"{name}_encoder"])
        jax.tree.map(np.testing.assert_array_equal, params, wanted)
    write(file, {"movement_encoder": {}})
    with pytest.raises(UserError, match="movement_encoder: no state dict"):
        published.read_evaluators(file)
    write(file, {"movement_encoder": {"main.0.weight": Tensor(np.zeros(4))}})
    with pytest.raises(UserError, match="no weights named 'main/0/kernel'"):
        published.read_evaluators(file)


def test_action_classifier_file(tmp_path):
    state = state_of(manifest("tiny_evaluators")["a2m_classifier"])
    write(file := tmp_path / "a.tar", {"model": {n: Tensor(a) for n, a in state.items()}})
    net, params = published.read_action_classifier(file)
    assert (net.actions, net.hidden, net.layers, net.features) == (12, 16, 2, 30)
    wanted = params_of(manifest("tiny_evaluators")["a2m_classifier"])
    jax.tree.map(np.testing.assert_array_equal, params, wanted)
