"""Text encoders from folders: the hub's names and OpenAI's, and folders that are refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny_tokenizers
from mdm_original import drawn
from relay_checkpoint import Tensor, write
from safetensors.numpy import save_file

from diffjax.errors import UserError
from diffjax.nets.clip_text import ClipText
from diffjax.nets.distilbert import DistilBert
from diffjax.systems.mdm import published, text_folders
from diffjax.weights import trees

TEXTS = ["a person walks slowly.", "", "a person " * 20, "It's a person!"]
CLIP = tiny_tokenizers.clip({"person": 513, "walk": 515}, start=700)


def hub_names(state):
    """A state dict of OpenAI's names under the hub's."""
    found = {"logit_scale": np.zeros(1, np.float32)}
    found["vision_model.embeddings.class_embedding"] = np.zeros(3, np.float32)
    for name, array in state.items():
        name = name.replace("transformer.resblocks", "text_model.encoder.layers")
        for old, new in (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"), ("c_fc", "fc1")):
            name = name.replace(old, new)
        name = name.replace("c_proj", "fc2").replace("ln_final", "text_model.final_layer_norm")
        name = name.replace("token_embedding.", "text_model.embeddings.token_embedding.")
        if name == "positional_embedding":
            name = "text_model.embeddings.position_embedding.weight"
        if name == "text_projection":
            name, array = "text_projection.weight", array.T
        if ".attn.in_proj_" in name:
            for part, a in zip("qkv", np.split(array, 3)):
                found[name.replace("attn.in_proj_", f"self_attn.{part}_proj.")] = a
        else:
            found[name.replace(".attn.", ".self_attn.")] = array
    return {name: np.ascontiguousarray(array) for name, array in found.items()}


def put(folder, state, config, tokenizer):
    save_file({n: np.ascontiguousarray(a) for n, a in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


@pytest.fixture(scope="module")
def clip():
    """A small tower, its weights, and what they make of two texts."""
    net = ClipText(1000, 30, width=32, layers=2, heads=4, hidden=48, out=8)
    params = drawn(net, jnp.zeros((1, 4), int))
    return net, params


CONFIG = {"model_type": "clip", "text_config": {"num_attention_heads": 4}}


@pytest.mark.parametrize("names", ["hub", "openai", "half"])
def test_clip(tmp_path, clip, names):
    net, params = clip
    state = published.from_params(params)
    assert "transformer.resblocks.1.attn.in_proj_weight" in state
    if names == "half":
        state = {name: array.astype(ml_dtypes.bfloat16) for name, array in state.items()}
    put(tmp_path, state if names == "openai" else hub_names(state), CONFIG, CLIP)
    encoder = text_folders.load(tmp_path)
    tokens, mask = encoder.encode(TEXTS)
    assert tokens.shape == (4, 1, 8) and tokens.dtype == np.float32 and mask.all()
    ids, there = encoder.tokens(TEXTS)
    assert ids.shape == (4, 22) and ids[2, -1] == 701 and there[2].all()
    assert list(ids[1, :3]) == [700, 701, 0] and list(there[1, :3]) == [True, True, False]
    wanted = jax.jit(net.apply)({"params": trees.unflatten(params)}, ids)[:, None]
    np.testing.assert_allclose(tokens, wanted, atol=0.1 if names == "half" else 1e-5)
    # A text does not depend on the others, or on how many there are at a time.
    if names == "openai":
        apart = dataclasses.replace(encoder, batch=2).encode(TEXTS[1:])
        np.testing.assert_allclose(apart[0], tokens[1:], atol=1e-5)
    assert encoder.encode([])[0].shape == (0, 1, 8)


def test_clip_without_a_config_has_heads_of_64(tmp_path):
    net = ClipText(1000, 30, width=128, layers=1, heads=2, hidden=48, out=8)
    params = drawn(net, jnp.zeros((1, 4), int))
    put(tmp_path, published.from_params(params), {}, CLIP)
    (tmp_path / "config.json").unlink()
    encoder = text_folders.load(tmp_path, context=77)
    ids, _ = encoder.tokens(TEXTS)
    assert ids.shape == (4, 30)  # the table of positions has no more
    wanted = jax.jit(net.apply)({"params": trees.unflatten(params)}, ids)[:, None]
    np.testing.assert_allclose(encoder.encode(TEXTS)[0], wanted, atol=1e-5)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_distilbert(tmp_path, form):
    net = DistilBert(20, 48, width=16, layers=1, heads=4, hidden=24)
    params = drawn(net, jnp.zeros((1, 4), int), jnp.ones((1, 4), bool))
    state = {f"distilbert.{name}": a for name, a in published.from_params(params).items()}
    state["vocab_transform.weight"] = np.zeros((2, 2), np.float32)
    put(tmp_path, state, {"model_type": "distilbert", "n_heads": 4}, tiny_tokenizers.bert())
    if form == "bin":
        (tmp_path / "model.safetensors").unlink()
        write(tmp_path / "pytorch_model.bin", {n: Tensor(a) for n, a in state.items()})
    encoder = text_folders.load(tmp_path)
    tokens, mask = encoder.encode(TEXTS)
    assert tokens.shape == (4, 48, 16) and tokens.dtype == np.float32
    assert list(mask.sum(1)) == [9, 2, 42, 8]
    ids, there = encoder.tokens(TEXTS)
    wanted = jax.jit(net.apply)({"params": trees.unflatten(params)}, ids, there)
    np.testing.assert_allclose(tokens[mask], np.asarray(wanted)[mask], atol=1e-5)
    if form == "bin":
        alone, alone_mask = encoder.encode(TEXTS[:1])
        assert alone.shape == (1, 16, 16) and alone_mask.sum() == 9
        np.testing.assert_allclose(alone[0, :9], tokens[0, :9], atol=1e-5)
    with pytest.raises(UserError, match="a text of 102 tokens, at most 48: 'a a a"):
        encoder.encode(["a", "a " * 100])


def refuse(tmp_path, words, context=22):
    with pytest.raises(UserError, match=words) as error:
        text_folders.load(tmp_path, context)
    assert "\n" not in str(error.value)


def test_folders_that_are_refused(tmp_path, clip):
    _, params = clip
    state = hub_names(published.from_params(params))
    refuse(tmp_path / "none", "no such folder")
    refuse(tmp_path, "no model.safetensors and no pytorch_model.bin")
    change = lambda **more: put(tmp_path, state, {**CONFIG, **more}, CLIP)
    change(model_type="bert")
    refuse(tmp_path, "unknown model_type in .*config.json: 'bert'")
    change(model_type=None)
    refuse(tmp_path, "no 'model_type'")
    change(text_config={"num_attention_heads": 5})
    refuse(tmp_path, "num_attention_heads 5, width 32")
    change(text_config={"num_attention_heads": "4"})
    refuse(tmp_path, "num_attention_heads '4'")
    change(text_config={"num_attention_heads": 4, "hidden_act": "relu"})
    refuse(tmp_path, "unknown hidden_act beside")
    change(text_config=[])
    refuse(tmp_path, "config.json")
    put(tmp_path, state, CONFIG, tiny_tokenizers.clip({}, start=2000))
    refuse(tmp_path, "2002 tokens, of which the network knows 1000")
    put(tmp_path, state, CONFIG, tiny_tokenizers.clip({"person": 800}, start=700))
    refuse(tmp_path, "its end, 701, is not the last of its tokens")
    put(tmp_path, state, CONFIG, CLIP)
    (tmp_path / "tokenizer.json").write_text("{")
    refuse(tmp_path, "tokenizer.json: no JSON file")
    (tmp_path / "tokenizer.json").unlink()
    refuse(tmp_path, "tokenizer.json: no such file")
    for name, words in (
        ("text_model.encoder.layers.1.self_attn.k_proj.bias", "no q, k and v of one shape"),
        ("text_model.final_layer_norm.bias", "no weights named 'ln_final/bias'"),
        ("text_projection.weight", "no weights named 'text_projection'"),
    ):
        put(tmp_path, {n: a for n, a in state.items() if n != name}, CONFIG, CLIP)
        refuse(tmp_path, words)
    put(tmp_path, {**state, "surplus": state["logit_scale"]}, CONFIG, CLIP)
    refuse(tmp_path, "the network lacks, first 'surplus'")
