"""MDM's transformers against the released code's arrays, and what those arrays do not show."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mdm_original import TINY, load, manifest, ours, params_of, theirs

from diffjax.nets.attention import attend_masked
from diffjax.nets.motion_transformer import MotionTransformer, positions, sinusoids
from diffjax.weights import trees

TOLERANCE = 2e-5
DROPS = {"cond": [False] * 3, "uncond": [True] * 3, "dropmask101": [True, False, True]}


@pytest.fixture(scope="module")
def g():
    return load("nets")


def mask_of(g, name="mask"):
    return jnp.asarray(g[name][:, 0, 0])


def clip(g):
    """The text of the golden arrays as one token each."""
    tokens = jnp.asarray(g["text_embed"].swapaxes(0, 1))
    return tokens, jnp.ones(tokens.shape[:2], bool)


def words(g):
    """The text as five tokens each, of which some are padding."""
    return jnp.asarray(g["bert_embed"].swapaxes(0, 1)), jnp.asarray(~g["bert_padding_mask"])


def ready(net, tag, *args):
    """The net with the golden weights of a manifest's tag, compiled: (**given) -> output."""
    params = params_of(manifest("tiny")[tag])
    apply = jax.jit(net.apply)
    return lambda **given: apply({"params": params}, *args, **given)


@pytest.mark.parametrize(("masked", "attention"), [(0, "einsum"), (1, "einsum"), (0, "xla")])
def test_encoder(g, masked, attention, near):
    net = MotionTransformer(13, mask_frames=bool(masked), attention=attention, **TINY)
    run = ready(net, "enc_text", ours(g["x"]), g["t"], clip(g))
    for drop, flags in DROPS.items():
        got = run(mask=mask_of(g), drop=jnp.asarray(flags))
        near(theirs(got, g["x"]), g[f"enc_text_mf{masked}_{drop}"], TOLERANCE)


def test_no_mask(g, near):
    run = ready(MotionTransformer(13, **TINY), "enc_text", ours(g["x"]), g["t"], clip(g))
    near(theirs(run(), g["x"]), g["enc_text_mf1_mask1"], TOLERANCE)


def test_inside_the_encoder(g, near):
    net = MotionTransformer(13, **TINY)
    args = (ours(g["x"]), g["t"], clip(g))
    params = params_of(manifest("tiny")["enc_text"])
    apply = jax.jit(functools.partial(net.apply, capture_intermediates=True))
    out, state = apply({"params": params}, *args, mask=mask_of(g))
    inside = state["intermediates"]
    after = inside["seqTransEncoder"]["layers"]
    time, text = inside["embed_timestep"], inside["embed_text"]
    for got, name in (
        (time["__call__"][0][:, None], "time_emb"),
        (time["__call__"][0][:, None] + text["__call__"][0], "emb"),
        (inside["input_process"]["__call__"][0], "input"),
        (inside["Dropout_0"]["__call__"][0], "seq"),
        (after["0"]["__call__"][0], "layer0"),
        (after["1"]["__call__"][0], "layer1"),
    ):
        near(np.swapaxes(got, 0, 1), g[f"enc_text_int_{name}"], TOLERANCE)
    near(theirs(out, g["x"]), g["enc_text_int_out"], TOLERANCE)


def test_table(g, near):
    near(positions(16, 32), g["pe_table_head"], 1e-6)
    near(sinusoids(jnp.arange(16.0), 32), g["pe_table_head"], 1e-6)


def test_actions(g, near):
    net = MotionTransformer(150, "action", 5, mask_frames=False, **TINY)
    x, label = ours(g["x_rot6d"]), g["action"][:, 0]
    run = ready(net, "enc_action", x, g["t"], label)
    with_, without = run(), run(drop=jnp.ones(3, bool))
    near(theirs(with_, g["x_rot6d"]), g["enc_action_cond"], TOLERANCE)
    near(theirs(without, g["x_rot6d"]), g["enc_action_uncond"], TOLERANCE)
    guided = without + g["cfg_scale"][:, None, None] * (with_ - without)
    near(theirs(guided, g["x_rot6d"]), g["cfg_action"], TOLERANCE)
    nobody = ready(net, "enc_action", x, g["t"], np.full(3, 5))()
    np.testing.assert_array_equal(nobody, without)


@pytest.mark.parametrize("tag", ["nocond", "xyz", "rotvel"])
def test_without_a_condition(g, tag, near):
    x = g["x_xyz" if tag == "xyz" else "x_rot6d"]
    settings = {"rot_vel": tag == "rotvel", "mask_frames": False, **TINY}
    net = MotionTransformer(x.shape[1] * x.shape[2], "none", **settings)
    got = ready(net, f"enc_{tag}", ours(x), g["t"])(mask=mask_of(g))
    near(theirs(got, x), g[f"enc_{tag}"], TOLERANCE)


@pytest.mark.parametrize("emb", [0, 1])
@pytest.mark.parametrize("kind", ["clip_mf0", "clip_mf1", "bert_add", "bert_concat"])
def test_decoder(g, kind, emb, near):
    attention = "einsum" if emb else "xla"
    memory, setting = kind.split("_")
    bert = memory == "bert"
    settings = {"emb_policy": setting if bert else "add", "mask_frames": setting != "mf0"}
    settings |= {"decoder": True, "emb_trans_dec": bool(emb), "attention": attention}
    net = MotionTransformer(13, **settings, **TINY)
    run = ready(net, f"dec_{memory}", ours(g["x"]), g["t"], words(g) if bert else clip(g))
    tag = f"bert_{setting}_emb{emb}" if bert else f"clip_emb{emb}_{setting}"
    for drop in ("cond", "uncond"):
        got = run(mask=mask_of(g), drop=jnp.asarray(DROPS[drop]))
        near(theirs(got, g["x"]), g[f"dec_{tag}_{drop}"], TOLERANCE)


@pytest.mark.parametrize("which", ["emb0", "emb1", "enc"])
def test_after_a_prefix(g, which, near):
    attention = "xla" if which == "emb1" else "einsum"
    decoder = which != "enc"
    settings = {"decoder": decoder, "emb_trans_dec": which == "emb1", "attention": attention}
    net = MotionTransformer(13, **settings, **TINY)
    text = words(g) if decoder else clip(g)
    run = ready(net, "dip" if decoder else "dip_enc", ours(g["dip_x"]), g["t"], text)
    given = {"mask": mask_of(g, "dip_mask"), "prefix": ours(g["dip_prefix"])}
    for drop in ("cond", "uncond") if decoder else ("cond",):
        got = run(drop=jnp.asarray(DROPS[drop]), **given)
        near(theirs(got, g["dip_x"]), g[f"dip_{which}_{drop}"], TOLERANCE)


def test_guidance_as_one_batch(g, near):
    twice = lambda a: jnp.concatenate([a, a])
    args = jax.tree.map(twice, (ours(g["x"]), g["t"], clip(g)))
    run = ready(MotionTransformer(13, **TINY), "enc_text", *args)
    with_, without = jnp.split(run(mask=twice(mask_of(g)), drop=jnp.arange(6) >= 3), 2)
    guided = without + g["cfg_scale"][:, None, None] * (with_ - without)
    near(theirs(guided, g["x"]), g["cfg_text"], TOLERANCE)


def test_all_layers_begin_with_the_same_weights():
    net = MotionTransformer(13, **TINY)
    args = (jnp.zeros((1, 4, 13)), jnp.zeros(1), (jnp.zeros((1, 1, 16)), jnp.ones((1, 1), bool)))
    layers = jax.jit(net.init)(jax.random.key(3), *args)["params"]["seqTransEncoder"]["layers"]
    flat = trees.flatten(layers["0"])
    jax.tree.map(np.testing.assert_array_equal, layers["1"], layers["0"])
    # Xavier of the packed matrix, the others U(-1, 1) / sqrt(fan_in); the attention's biases zero.
    largest = {name: float(np.abs(array).max()) for name, array in flat.items()}
    assert largest["self_attn/in_proj/kernel"] == pytest.approx((6 / 128) ** 0.5, rel=0.01)
    assert largest["linear2/kernel"] == pytest.approx(64**-0.5, rel=0.01)
    assert 0.8 * 64**-0.5 < largest["linear2/bias"] <= 64**-0.5
    assert largest["self_attn/in_proj/bias"] == largest["self_attn/out_proj/bias"] == 0
    # No buffer twice, or a step could not donate the state.
    pointers = [array.unsafe_buffer_pointer() for array in jax.tree.leaves(layers)]
    assert len({*pointers}) == len(pointers)


def test_dropout_and_gradients(g):
    net = MotionTransformer(13, decoder=True, **{**TINY, "dropout": 0.3, "layers": 1})
    args = (ours(g["x"]), g["t"], words(g))
    params = params_of(manifest("tiny")["dec_bert"])
    params["seqTransDecoder"]["layers"].pop("1")

    def loss(params, key):
        out = net.apply({"params": params}, *args, train=True, rngs={"dropout": key})
        return jnp.square(out).mean()

    step = jax.jit(jax.value_and_grad(loss))
    first, gradient = step(params, jax.random.key(0))
    assert first == step(params, jax.random.key(0))[0] != step(params, jax.random.key(1))[0]
    assert all(np.isfinite(a).all() and a.any() for a in jax.tree.leaves(gradient))


def test_half_precision(g, near):
    args = (ours(g["x"]), g["t"], clip(g))
    full, half = (
        ready(MotionTransformer(13, dtype=dtype, **TINY), "enc_text", *args)()
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert half.dtype == jnp.float32
    near(half, full, 0.05)


def test_attention_that_drops_weights():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 5, 4, 8))
    mask = jnp.arange(5) < jnp.asarray([[3], [5]])
    seen = []
    out = attend_masked(q, k, v, mask, "xla", lambda w: seen.append(w) or w)
    np.testing.assert_allclose(out, attend_masked(q, k, v, mask), atol=1e-6)
    np.testing.assert_allclose(seen[0].sum(-1), 1, atol=1e-6)
    assert not seen[0][0, ..., 3:].any()


def test_an_encoder_takes_one_token(g):
    args = (ours(g["x"]), g["t"], words(g))
    with pytest.raises(AssertionError):
        jax.eval_shape(MotionTransformer(13, **TINY).init, jax.random.key(0), *args)
