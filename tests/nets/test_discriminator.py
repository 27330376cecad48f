"""The read-out heads against golden logits, and what a discriminator must and must not see."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from apt_golden import load, manifest, near, params_by_rule

from diffjax.errors import UserError
from diffjax.nets import discriminator, dit, stacking
from diffjax.nets.discriminator import ReadOut, captured
from diffjax.nets.dit import DiT
from diffjax.nets.mmdit import MMDiT
from diffjax.nets.unet_small import UNetSmall
from diffjax.weights import trees


def test_taps_table():
    table = load("tiny_model")["taps_table"]
    assert len(table) > 10
    for depth, *taps in table:
        # The formula gives a tap 0 for one block: that is before the first.
        assert discriminator.taps(int(depth)) == tuple(sorted({*taps} - {0})), depth
    with pytest.raises(UserError, match="0 blocks"):
        discriminator.taps(0)


def named(shapes):
    """(golden weights of a read-out, {the manifest's name: shape})."""
    again = lambda path: path.replace("heads_", "heads/").replace("out_", "out/")
    back = {again(path): path for path in trees.flatten(shapes)}
    tree = trees.unflatten({again(p): leaf for p, leaf in trees.flatten(shapes).items()})
    params, names = params_by_rule(tree)
    return trees.unflatten({back[p]: leaf for p, leaf in trees.flatten(params).items()}), names


def test_golden_logits():
    g = load("tiny_model")
    net = MMDiT(width=32, depth=3, heads=2, taps=(1, 2, 3), last_text_pre_only=False, scan=False)
    shapes = jax.eval_shape(net.init, jax.random.key(0), g["x"], g["t"], g["text"])["params"]
    backbone, names = params_by_rule(shapes)
    features = [jax.ShapeDtypeStruct((2, 12, 32), jnp.float32)] * 3
    read = ReadOut(heads=2)
    shapes = jax.eval_shape(read.init, jax.random.key(0), features)["params"]
    params, more = named(shapes)
    assert {**names, **more} == manifest("tiny_discriminator")

    @jax.jit
    def logits(x):
        seen = net.apply({"params": backbone}, x, g["t"], g["text"])
        return read.apply({"params": params}, seen, capture_intermediates=True)

    real, state = logits(g["x"])
    tokens = [state["intermediates"][f"heads_{i}"]["__call__"][0] for i in range(3)]
    near(np.stack(tokens), g["head_tokens"], 2e-5)
    near(real, g["logit_real"], 2e-5)
    near(logits(g["generated_t1"].astype(np.float32))[0], g["logit_generated"], 2e-5)
    near(logits(g["x"] + np.float32(0.1) * g["eps"])[0], g["logit_perturbed"], 2e-5)


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def read():
    """(read-out of two taps, golden weights, tokens of two widths)."""
    net = ReadOut()
    tokens = [normal(2, 6, d) for d in (64, 128)]
    shapes = jax.eval_shape(net.init, jax.random.key(0), tokens)["params"]
    return net, named(shapes)[0], tokens


def test_a_new_read_out_says_nothing_and_learns(read):
    net, _, (tokens, _) = read
    tokens = [tokens]

    @jax.jit
    def logits_and_gradient(key):
        params = net.init(key, tokens)["params"]
        logits, pull = jax.vjp(lambda p: net.apply({"params": p}, tokens), params)
        return logits, pull(jnp.ones_like(logits))[0]

    logits, gradient = logits_and_gradient(jax.random.key(0))
    assert logits.shape == (2,) and not np.any(logits)
    assert np.any(gradient["out_proj"]["kernel"]) and not np.any(gradient["heads_0"]["query"])
    bare = jax.eval_shape(net.clone(bias=False).init, jax.random.key(0), tokens)["params"]
    assert list(bare["out_proj"]) == ["kernel"]


def test_order_and_padding_of_tokens_do_not_count(read):
    net, params, tokens = read
    run = jax.jit(lambda *a: net.apply({"params": params}, *a))
    want = run(tokens)
    assert want.shape == (2,) and abs(want[0] - want[1]) > 1e-3
    order = np.random.default_rng(1).permutation(6)
    near(run([t[:, order] for t in tokens]), want, 1e-5)
    padded = [np.pad(t, ((0, 0), (0, 3), (0, 0)), constant_values=1e3) for t in tokens]
    mask = np.broadcast_to(np.arange(9) < 6, (2, 9))
    near(run(padded, [mask, mask]), want, 1e-6)
    near(run([padded[0], tokens[1]], [mask, None]), want, 1e-6)


@pytest.mark.slow
def test_a_logit_for_each_frame(read):
    net, params, tokens = read
    frames = jax.jit(net.clone(frames=3).apply)({"params": params}, tokens)
    assert frames.shape == (2, 3)
    parts = [t.reshape(2, 3, 2, -1).swapaxes(0, 1).reshape(6, 2, -1) for t in tokens]
    alone = jax.jit(net.apply)({"params": params}, parts)
    near(frames, alone.reshape(3, 2).T, 1e-5)


def test_a_dit_with_taps_is_the_head_of_the_dit():
    net = DiT(channels=4, num_classes=5, width=24, depth=4, heads=2, scan=False)
    inputs = normal(3, 8, 4, 2), np.array([3.0, 500.0, 999.0])
    shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
    params = params_by_rule(shapes)[0]
    run = jax.jit(lambda p, *a: net.apply({"params": p}, *a, capture_intermediates=True))
    _, state = run(params, *inputs)
    blocks = state["intermediates"]["blocks"]
    for scan, whole in ((False, dit.stack(params)), (True, params), (True, dit.stack(params))):
        tapped = net.clone(taps=(1, 3), scan=scan)
        wanted = jax.eval_shape(tapped.init, jax.random.key(0), *inputs)["params"]
        assert "final_layer" not in wanted
        assert sorted(wanted["blocks"]) == (["stack_0", "stack_1"] if scan else ["0", "1", "2"])
        backbone = stacking.backbone(whole, wanted)
        if scan and whole is params:
            stacked = backbone
            continue
        if scan:
            assert jax.tree.all(jax.tree.map(np.array_equal, backbone, stacked))
        seen = jax.jit(tapped.apply)({"params": backbone}, *inputs)
        for tap, tokens in zip((1, 3), seen):
            near(tokens, blocks[str(tap - 1)]["__call__"][0], 1e-6)
    with pytest.raises(UserError, match="4 blocks, none numbered 4"):
        deeper = net.clone(depth=5, taps=(5,))
        stacking.backbone(params, jax.eval_shape(deeper.init, jax.random.key(0), *inputs)["params"])


class Pyramid(nn.Module):
    """[B, H, W, C] -> the same, by way of half the size."""

    @nn.compact
    def __call__(self, x):
        y = nn.Conv(8, (1, 1), name="down")(x[:, ::2, ::2])
        return x + nn.Dense(x.shape[-1], name="up")(y).repeat(2, 1).repeat(2, 2)


def test_any_network_s_blocks_can_be_read():
    net, x = Pyramid(), normal(2, 4, 6, 3)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda s: jnp.ones(s.shape), shapes)
    up, down = captured(net, ("up", "down"))(params, x)
    want = x[:, ::2, ::2].sum(-1).reshape(2, 6, 1) + 1
    near(down, np.repeat(want, 8, -1), 1e-5)
    near(up, np.repeat(8 * want + 1, 3, -1), 1e-5)
    with pytest.raises(UserError, match="no module 'upp'"):
        captured(net, ("upp",))(params, x)


@pytest.mark.slow
def test_a_u_net_s_blocks_can_be_read():
    net = UNetSmall(channels=3, num_classes=2, widths=(8, 16), patch=2, embedding=16)
    inputs = jnp.ones((2, 8, 8, 3)), jnp.ones(2), jnp.zeros(2, jnp.int32)
    params = jax.jit(net.init)(jax.random.key(0), *inputs)["params"]
    names = ("up_0_1", "down_1", "middle")
    seen = jax.jit(captured(net, names))(params, *inputs)
    assert [t.shape for t in seen] == [(2, 16, 8), (2, 4, 16), (2, 4, 16)]
