"""MMDiT against golden blocks and a tiny model, and properties that no golden shows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from apt_golden import load, manifest, near, params_by_rule
from ml_collections import ConfigDict

from diffjax import nets
from diffjax.errors import UserError
from diffjax.nets import mmdit, rope3d, stacking
from diffjax.nets.mmdit import MMDiT
from diffjax.nets.mmdit_blocks import Block

TINY = {"width": 32, "depth": 3, "heads": 2, "last_text_pre_only": False, "scan": False}


def turns(length, grid, channels):
    both = rope3d.angles("mm3d", length, grid, channels)
    return tuple(rope3d.turns(a[:, None]) for a in both)


@pytest.mark.parametrize("modulation", ["adaln", "single"])
def test_golden_block(modulation):
    g, single = load("mmdit_block"), modulation == "single"
    block = Block(32, 2, modulation=modulation)
    if single:
        block = block.clone(feed="swiglu", hidden=88)
    inputs = g["vid"], g["txt"], g["emb6"] if single else g["c"], turns(3, (2, 2, 2), 16)
    shapes = jax.eval_shape(block.init, jax.random.key(0), *inputs)["params"]
    params, names = params_by_rule(shapes, "sblock." if single else "block.")
    assert names == manifest(f"block_{modulation}")
    watched = lambda module, name: name in ("__call__", "queries")
    run = jax.jit(functools.partial(block.apply, capture_intermediates=watched))
    (vid, txt), state = run({"params": params}, *inputs)
    prefix = "single_" if single else ""
    near(vid, g[f"{prefix}vid_out"], 1e-5)
    near(txt, g[f"{prefix}txt_out"], 1e-5)
    if single:
        return
    seen = state["intermediates"]
    q, k, _ = (
        jnp.concatenate(pair, 1).swapaxes(1, 2)  # [B, heads, text then visual, c]
        for pair in zip(*(seen[s]["queries"][0] for s in ("txt", "vid")))
    )
    near(q, g["q_after_rope"], 1e-5)
    near(k, g["k_after_rope"], 1e-5)
    near(jax.nn.softmax(q @ k.swapaxes(2, 3) / 4), g["attn"], 1e-5)


@functools.cache
def tiny(channels=4, **fields):
    net = MMDiT(channels=channels, **{**TINY, **fields})
    g = load("tiny_model")
    shapes = jax.eval_shape(net.init, jax.random.key(0), g["x"], g["t"], g["text"])["params"]
    params, names = params_by_rule(shapes)
    return net, params, names


def test_golden_generator():
    g = load("tiny_model")
    net, params, names = tiny()
    assert names == manifest("tiny_generator")
    tokens, grid = mmdit.patches(g["x"], 1, 2)
    assert grid == (2, 2, 3)
    near(tokens, g["tokens"], 0)
    np.testing.assert_array_equal(mmdit.unpatched(tokens, grid, 1, 2), g["x"])
    run = jax.jit(net.apply)
    near(run({"params": params}, g["x"], g["t"], g["text"]), g["velocity"], 2e-5)
    at_1 = run({"params": params}, g["x"], np.ones(2, np.float32), g["text"])
    near(g["x"] - at_1, g["generated_t1"], 2e-5)


def test_golden_taps():
    g = load("tiny_model")
    net, params, _ = tiny(taps=(1, 2, 3))
    assert "final" not in params
    seen = jax.jit(net.apply)({"params": params}, g["x"], g["t"], g["text"])
    for i, tokens in enumerate(seen):
        near(tokens, g[f"feat_tap{i + 1}"], 2e-5)


def small(**fields):
    """(a net of narrow blocks for labels, its parameters' shapes, films of 2 frames)."""
    net = MMDiT(
        channels=2, num_classes=3, class_tokens=2, width=24, heads=2, **{"depth": 2, **fields}
    )
    random = np.random.default_rng(0)
    inputs = random.normal(size=(3, 2, 4, 6, 2)).astype(np.float32)
    inputs = inputs, np.array([0.1, 0.5, 1.0], np.float32), np.array([0, 2, 3], np.int32)
    shapes = None
    if not fields.get("taps"):
        shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
    return net, shapes, inputs


@pytest.mark.slow
@pytest.mark.parametrize("modulation", ["adaln", "single"])
@pytest.mark.parametrize("shared_from", [None, 2])
def test_scanned_and_rematerialised_are_the_same(modulation, shared_from):
    more = {"last_text_pre_only": shared_from is None, "shared_from": shared_from}
    net, shapes, inputs = small(depth=3, scan=False, modulation=modulation, feed="swiglu", **more)
    params = params_by_rule(shapes)[0]
    other = net.clone(scan=True, remat=True)
    wanted = jax.eval_shape(other.init, jax.random.key(0), *inputs)["params"]
    stacked = {**params, "blocks": stacking.like(params["blocks"], wanted["blocks"])}
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, wanted)
    assert sorted(wanted["blocks"]) == ["2", "stack_0"]

    def loss_and_gradient(net, params):
        loss = lambda p: jnp.sum(net.apply({"params": p}, *inputs) ** 2)
        return jax.jit(jax.value_and_grad(loss))(params)

    loss, gradient = loss_and_gradient(net, params)
    again, stacked_gradient = loss_and_gradient(other, stacked)
    np.testing.assert_allclose(again, loss, rtol=1e-5)
    back = {**stacked_gradient, "blocks": stacking.unstack(stacked_gradient["blocks"])}
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())
    jax.tree.map(same, back, gradient)


def test_a_new_network_is_silent_and_its_blocks_are_the_identity():
    net, shapes, inputs = small(depth=1, last_text_pre_only=False)
    tapped = net.clone(taps=(1,))
    wanted = jax.eval_shape(tapped.init, jax.random.key(0), *inputs)["params"]
    assert sorted(set(shapes) - set(wanted)) == ["final"]

    @jax.jit
    def run(key):
        params = net.init(key, *inputs)["params"]
        backbone = stacking.backbone(params, wanted)
        out = net.apply({"params": params}, *inputs)
        return out, tapped.apply({"params": backbone}, *inputs), params["patch_in"]

    out, (tokens,), embed = run(jax.random.key(0))
    assert not np.any(out)
    near(tokens, mmdit.patches(inputs[0], 1, 2)[0] @ embed["kernel"] + embed["bias"], 1e-5)


def test_what_it_listens_to():
    net, shapes, (x, t, label) = small(last_text_pre_only=False)
    params = params_by_rule(shapes)[0]
    run = jax.jit(lambda *a: net.apply({"params": params}, *a))
    base = run(x, t, label)
    assert base.shape == x.shape and base.dtype == jnp.float32
    for i in range(3):
        alone = run(*(np.roll(a, -i, 0) for a in (x, t, label)))[0]
        np.testing.assert_allclose(alone, base[i], rtol=1e-4, atol=1e-5)
    assert np.abs(run(x, t, np.full(3, 1, np.int32)) - base).max() > 1e-3
    assert np.abs(run(x, t / 2, label) - base).max() > 1e-3
    # Order of the frames, the rows and the columns matters.
    for axis in (1, 2, 3):
        turned = np.flip(x, axis)
        assert np.abs(np.flip(run(turned, t, label), axis) - base).max() > 1e-3


@pytest.mark.slow
def test_a_picture_is_a_film_of_one_frame_and_no_label_is_no_class():
    net, shapes, (x, t, label) = small()
    run = jax.jit(functools.partial(net.apply, {"params": params_by_rule(shapes)[0]}))
    np.testing.assert_allclose(run(x[:, :1], t, label)[:, 0], run(x[:, 0], t, label), atol=1e-6)
    near(run(x, t, None), run(x, t, np.full(3, 3, np.int32)), 1e-6)


def test_text_tokens_with_their_positions_may_change_places():
    random = np.random.default_rng(0)
    g = load("mmdit_block")
    block = Block(32, 2, modulation="adaln")
    txt, vid = g["txt"], g["vid"]
    shapes = jax.eval_shape(block.init, jax.random.key(0), vid, txt, g["c"], (None, None))
    params = {"params": params_by_rule(shapes["params"])[0]}
    of_txt, of_vid = rope3d.angles("mm3d", 3, (2, 2, 2), 16)
    order = random.permutation(3)
    turn = lambda a: rope3d.turns(a[:, None])
    run = jax.jit(block.apply)
    want, _ = run(params, vid, txt, g["c"], (turn(of_txt), turn(of_vid)))
    got, _ = run(params, vid, txt[:, order], g["c"], (turn(of_txt[order]), turn(of_vid)))
    near(got, want, 1e-6)


def test_masked_text_does_not_count():
    net, params, _ = tiny()
    g = load("tiny_model")
    run = jax.jit(functools.partial(net.apply, {"params": params}))
    mask = np.arange(5)[None] < np.array([5, 3])[:, None]
    garbage = np.where(mask[..., None], g["text"], 1e3).astype(np.float32)
    want = run(g["x"], g["t"], g["text"], mask=mask)
    np.testing.assert_array_equal(run(g["x"], g["t"], garbage, mask=mask), want)
    near(want[0], run(g["x"], g["t"], g["text"])[0], 1e-5)
    assert np.abs(want[1] - run(g["x"], g["t"], g["text"])[1]).max() > 1e-3


@pytest.mark.slow
def test_bfloat16_stays_close():
    g = load("tiny_model")
    net, params, _ = tiny()
    inputs = g["x"], g["t"], g["text"]
    run = lambda net: jax.jit(net.apply)({"params": params}, *inputs)
    full, half = run(net), run(net.clone(dtype=jnp.bfloat16))
    assert half.dtype == jnp.float32
    assert 1e-4 < np.linalg.norm(half - full) / np.linalg.norm(full) < 5e-2


def test_a_config_makes_it():
    network = {"kind": "mmdit", "width": 48, "depth": 2, "heads": 2, "class_tokens": 3, "patch": 2}
    network |= {"modulation": "single", "feed": "gelu", "time_scale": 1000.0, "scan": True}
    network = ConfigDict({**network, "remat": False, "dtype": "bfloat16"})
    net = nets.make(network, channels=3, num_classes=5, shape=(8, 8, 3))
    inputs = jnp.ones((2, 8, 8, 3)), jnp.ones(2), jnp.zeros(2, jnp.int32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
    assert shapes["class_in"].shape == (6, 3, 48) and "ada" in shapes["final"]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))
    assert nets.sharding(network) == mmdit.SHARDING
    for heads in (5, 12):
        network.heads = heads
        with pytest.raises(UserError, match="network.width 48"):
            nets.make(network, channels=3, num_classes=5, shape=(8, 8, 3))


def test_taps_are_blocks():
    net, _, inputs = small(taps=(2, 3))
    with pytest.raises(UserError, match="from 1 to 2"):
        jax.eval_shape(net.init, jax.random.key(0), *inputs)
