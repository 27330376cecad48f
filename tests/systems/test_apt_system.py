"""Stages B and C on a run of EDM, against the same arithmetic put together by hand."""

import dataclasses
import types

import apt_runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import nets, systems
from diffjax.core import denoisers
from diffjax.errors import UserError
from diffjax.nets import discriminator, tapping
from diffjax.run import cli, sampling, update
from diffjax.run import mesh as meshes
from diffjax.systems.apt import adversary, alternation, bases, consistency, student, timesteps
from diffjax.weights import trees

BATCH, SIGMA_DATA, LOW, HIGH, BLOCKS = 8, 0.7, 0.02, 2.0, ("middle",)
ONE = {"data": 1, "fsdp": 1, "tensor": 1, "context": 1}


@pytest.fixture(scope="module")
def mesh():
    return jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1, 1), meshes.AXES)


@pytest.fixture(scope="module")
def net(trained):
    return nets.make(cli.read_config(trained).network, channels=3, num_classes=3, shape=(8, 8, 3))


@pytest.fixture(scope="module")
def weights(trained, mesh):
    """The base's EMA, moved at random: six steps leave last layers that are nearly zero."""
    system, _ = systems.load(trained)
    params = jax.device_get(sampling.load_params(system, trained, mesh)[0])
    random = np.random.default_rng(0)
    noise = lambda a: a + 0.1 * random.standard_normal(a.shape).astype(np.float32)
    return jax.tree.map(noise, params)


@pytest.fixture(scope="module")
def batch():
    random = np.random.default_rng(3)
    return {
        "image": jnp.asarray(random.integers(0, 256, (BATCH, 8, 8, 3), dtype=np.uint8)),
        "label": jnp.asarray(random.integers(0, 3, BATCH), jnp.int32),
        "row": jnp.arange(BATCH, dtype=jnp.int32),
    }


def estimate(net, params, x, sigma, label):
    """Karras et al. 2022, equation 7; sigma [B, 1, 1, 1]."""
    total = sigma**2 + SIGMA_DATA**2
    f = net.apply(
        {"params": params},
        x / jnp.sqrt(total),
        jnp.broadcast_to(jnp.log(sigma) / 4, (len(x), 1, 1, 1)).ravel(),
        label,
    )
    return SIGMA_DATA**2 / total * x + sigma * SIGMA_DATA / jnp.sqrt(total) * f


@pytest.mark.parametrize(("guidance", "target"), [(1.0, ""), (3.0, ""), (1.0, "ema")])
def test_the_distillation_s_loss(trained, mesh, net, weights, batch, guidance, target):
    given = {"distillation__guidance": guidance, "distillation__target": target}
    config = apt_runs.of(trained, "distil", **given)
    system = systems.make(config)
    moved = jax.tree.map(lambda a: 0.9 * a, weights)
    of_target = jax.tree.map(lambda a: 0.8 * a, weights) if target else moved
    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    # Through the step, which is what brings the average.
    state = update.create(system, config, jax.tree.map(jnp.asarray, moved))
    state = state._replace(ema={"ema": jax.tree.map(jnp.asarray, of_target)})
    feed = types.SimpleNamespace(take=lambda fed, key, step: fed)
    step = jax.jit(update.step_function(system, config, feed, mesh))
    got = step(state, batch, np.float32(0), weights)[1]["loss"]

    _, of_n, of_eps = jax.random.split(key, 3)
    n = consistency.indices(of_n, batch["row"], 8)
    eps = alternation.normal(of_eps, batch["row"], (8, 8, 3))
    # On EDM's own x and sigma throughout; the loss is in velocities, which are (x - x0)/t there.
    grid = np.float32(HIGH / (1 + HIGH)) * np.arange(9, dtype=np.float32) / 8
    t, t_next = (jnp.asarray(grid)[n - i].reshape(-1, 1, 1, 1) for i in (0, 1))
    sigma, sigma_next = t / (1 - t), t_next / (1 - t_next)
    x0 = batch["image"] / 127.5 - 1
    x, label = x0 + sigma * eps, batch["label"]
    hat, nobody = (estimate(net, weights, x, sigma, c) for c in (label, jnp.full(BATCH, 3)))
    hat = nobody + guidance * (hat - nobody)
    before = hat + sigma_next / sigma * (x - hat)  # Euler's step: the noise that was estimated
    wanted = estimate(net, of_target, before, jnp.maximum(sigma_next, 1e-4), label)
    wanted = jnp.where(sigma_next > 0, wanted, before)
    wanted = jnp.mean(((estimate(net, moved, x, sigma, label) - wanted) / t) ** 2)
    np.testing.assert_allclose(got, wanted, rtol=2e-4)
    assert wanted > 1e-3


@pytest.mark.slow
def test_the_distillation_has_no_gradient_into_its_target(trained, weights, batch):
    system = systems.make(apt_runs.of(trained, "distil"))
    loss = lambda student, teacher: system.loss(student, batch, jax.random.key(5), teacher)[0]
    of_student, of_teacher = jax.grad(loss, (0, 1))(weights, weights)
    assert all(np.all(a == 0) for a in jax.tree.leaves(of_teacher))
    assert any(np.any(a != 0) for a in jax.tree.leaves(of_student))


@pytest.mark.slow
def test_a_step_is_the_alternation(trained, mesh, net, weights, batch):
    # Not a zero of D's last layer: G has a gradient from the first step on.
    config = apt_runs.of(trained, adversarial__r1_weight=100.0, optimizer__learning_rate=1e-3)
    system = systems.make(config)
    read = discriminator.ReadOut()
    look = discriminator.captured(net, BLOCKS)
    tokens = look(weights, jnp.zeros((1, 8, 8, 3)), jnp.zeros(1), jnp.zeros(1, jnp.int32))
    readout = read.init(jax.random.key(8), tokens)["params"]
    kernel = readout["out_proj"]["kernel"]
    readout["out_proj"]["kernel"] = 0.3 * jax.random.normal(jax.random.key(9), kernel.shape)
    shapes = jax.eval_shape(system.training.init, jax.random.key(0))["d"]["backbone"]
    own = {name: weights[name] for name in shapes}
    params = {"g": weights, "d": {"backbone": own, "readout": readout}}
    state = update.create(system, config, jax.tree.map(jnp.asarray, params))

    class Feed:
        take = staticmethod(lambda fed, key, step: {k: v for k, v in fed.items() if k != "row"})

    step = jax.jit(update.step_function(system, config, Feed, mesh))
    for _ in range(2):
        state, metrics = step(state, batch, np.float32(0))

    # By hand: all of the network's parameters, EDM's formulas, two calls of the same core.
    settings = alternation.Settings(sigma=0.1 * SIGMA_DATA)
    generate = lambda g, z, label: estimate(net, g, HIGH * z, jnp.full((1, 1, 1, 1), HIGH), label)
    discriminate = bases.discriminator(
        look,
        lambda p, seen: read.apply({"params": p}, seen),
        bases.feed_edm(SIGMA_DATA, LOW, HIGH),
    )
    run = jax.jit(alternation.alternation(generate, discriminate, settings))
    other = alternation.create(weights, {"backbone": weights, "readout": readout}, settings)
    x = batch["image"] / 127.5 - 1
    for i in range(2):
        key = jax.random.fold_in(jax.random.key(config.seed), i)
        how = key, batch["row"], x, batch["label"], settings
        other, wanted = run(other, alternation.draw_d(*how), alternation.draw_g(*how), 1e-3)
    # Of the second step: the first made whole steps of rounding where a gradient is nearly 0.
    for name in wanted:
        np.testing.assert_allclose(metrics[name], wanted[name], rtol=2e-3, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(metrics["loss"], metrics["loss_d"] + metrics["loss_g"], rtol=1e-6)
    kernel = lambda tree: np.asarray(tree["down_0"]["conv_in"]["kernel"])
    for ours, theirs in (
        (state.params["g"], other.params["g"]),
        (state.ema["ema"], other.ema),
        (state.params["d"]["backbone"], other.params["d"]["backbone"]),
    ):
        moved = kernel(theirs) - kernel(weights)
        # RMSProp makes whole steps of rounding where a gradient is nearly 0: nearly all agree.
        near = np.abs(kernel(ours) - kernel(weights) - moved) <= 0.02 * np.abs(moved).max()
        assert near.mean() > 0.99 and np.abs(moved).max() > 1e-6


@pytest.mark.parametrize("times", ["random", "zero"])
def test_what_the_config_says_reaches_the_alternation(trained, batch, monkeypatch, times):
    given = {"adversarial__family": "relativistic", "adversarial__r2": True, "accumulate": 2}
    given |= {"adversarial__r1_weight": 7.0, "adversarial__r1_mode": "fd", "optimizer__b2": 0.8}
    given |= {"adversarial__times": times, "adversarial__shift": 12.0}
    seen = []

    def moves(generate, discriminate, settings):
        def move(params, opt_state, for_d, for_g, rate):
            seen.append((settings, for_d, for_g, rate))
            zero = jnp.zeros(())
            return params, opt_state, {"loss_d": zero, "loss_g": zero}, (zero, zero)

        return move

    monkeypatch.setattr(alternation, "moves", moves)
    system = systems.make(apt_runs.of(trained, **given))
    system.training.step({}, {}, batch, jax.random.key(3), 0.5)
    ((settings, for_d, for_g, rate),) = seen
    assert settings == alternation.Settings(
        family="relativistic",
        weight=7.0,
        sigma=0.1 * SIGMA_DATA,
        mode="fd",
        r2=True,
        decay=0.8,
        eps=1e-8,
        parts=2,
    )
    assert rate == 0.5
    np.testing.assert_allclose(for_d.x, batch["image"] / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(for_d.cond, batch["label"])
    np.testing.assert_array_equal(for_g.x, for_d.x)  # pairs
    np.testing.assert_array_equal(for_d.t_real, for_d.t_fake)
    assert np.abs(for_g.z - for_d.z).max() > 0.5
    if times == "zero":
        assert not np.any(for_d.t_real) and not np.any(for_g.t)
    else:
        u = timesteps.shift(np.asarray(for_d.t_real, np.float64), 1 / 12)
        assert for_d.t_real.mean() > u.mean() and len(set(u.tolist())) == BATCH


def test_what_nothing_reads_is_no_part_of_d(trained, net, weights):
    inputs = jnp.ones((2, 8, 8, 3)), jnp.array([0.1, -0.3]), jnp.array([0, 2])
    structs = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), inputs)
    unit = nets.unit(cli.read_config(trained).network)
    assert tapping.blocks(net, unit, structs) == ("down_0", "middle", "up_0_0", "up_0_1")
    features, select = tapping.tapped(net, unit, (2, 3), structs)
    own = select(weights)
    assert set(weights) - set(own) == {"up_0_1", "norm_out", "conv_out"}
    wanted = discriminator.captured(net, ("middle", "up_0_0"))(weights, *inputs)
    for a, b in zip(features(own, *inputs), wanted, strict=True):
        np.testing.assert_array_equal(a, b)
    for taps in (), (0, 2), (3, 2), (5,):
        with pytest.raises(UserError, match="blocks are counted from 1 to 4"):
            tapping.tapped(net, unit, taps, structs)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dit", "ddpmpp"])
def test_networks_have_blocks(kind):
    # Of each kind: features of its own parameters are those of the whole network's.
    fields = {
        "dit": {"size": "S", "patch": 4, "time_scale": 1000.0, "scan": True, "remat": False},
    }
    unet = {"model_channels": 32, "channel_mult": (1,), "num_blocks": 1, "attn_resolutions": ()}
    unet |= {"dropout": 0.0, "augment_dim": 0}
    network = {"kind": kind, "dtype": "float32", **fields.get(kind, unet)}
    net = nets.make(network, channels=3, num_classes=3, shape=(8, 8, 3))
    if kind == "dit":
        net = net.clone(width=16, depth=3, heads=2)
    inputs = jnp.ones((2, 8, 8, 3)), jnp.array([0.1, -0.3]), jnp.array([0, 2])
    names = tapping.blocks(net, nets.unit(network), inputs)
    params = net.init(jax.random.key(0), *inputs)["params"]
    random = lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape)
    params = jax.tree.map(random, params)
    features, select = tapping.tapped(net, nets.unit(network), (2, len(names)), inputs)
    own = select(params)
    seen = features(own, *inputs)
    assert len(seen) == 2 and all(a.ndim == 3 and np.all(np.isfinite(a)) for a in seen)
    size = lambda tree: sum(a.size for a in jax.tree.leaves(tree))
    assert size(own) < size(params)
    # Every parameter that is kept has a gradient, and so no other could be left out.
    score = lambda p: sum(jnp.sum(jnp.sin(3 * a)) for a in features(p, *inputs))
    still = [k for k, g in flat(jax.grad(score)(own)).items() if not np.any(np.asarray(g))]
    assert not still


def flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {meshes.path_name(path): leaf for path, leaf in leaves}


def test_one_step_is_the_generator(trained, net, weights):
    system = systems.make(apt_runs.of(trained))
    keys = jax.vmap(jax.random.key)(jnp.arange(4))
    label = system.condition(system.request, np.arange(4))
    z = denoise_start(keys)
    x = estimate(net, weights, HIGH * z, jnp.full((1, 1, 1, 1), HIGH), label)
    pixels = system.pixels(weights, keys, label, system.request)
    np.testing.assert_allclose(pixels, x, atol=1e-4)
    image = system.sample(weights, keys, label, system.request)["image"]
    np.testing.assert_allclose(image, np.clip(127.5 * x + 127.5, 0, 255), atol=1)

    # Two steps of the ODE: Euler's, in EDM's terms, through the straight path's middle.
    ode = cli_request(system, steps=2, mode="ode", shift=3.0)
    t = HIGH / (1 + HIGH)
    middle = t * timesteps.shift(0.5, 3.0)
    sigma = middle / (1 - middle)
    half = x + sigma / HIGH * (HIGH * z - x)
    # The straight path's Euler is not EDM's: x_t = (1 - t)(x0 + sigma n), same x0 and n.
    wanted = estimate(net, weights, half, jnp.full((1, 1, 1, 1), sigma), label)
    np.testing.assert_allclose(system.pixels(weights, keys, label, ode), wanted, atol=1e-4)
    fresh = cli_request(system, steps=2)
    assert not np.allclose(system.pixels(weights, keys, label, fresh), wanted, atol=1e-2)


def denoise_start(keys):
    """The base's own start: draw 0 of each key."""
    first = lambda key: jax.random.split(jax.random.fold_in(key, 0))[0]
    return jax.vmap(lambda key: jax.random.normal(first(key), (8, 8, 3)))(keys)


def cli_request(system, **changes):
    request = dataclasses.replace(system.request, **changes)
    system.condition(request, np.arange(1))
    return request


@pytest.mark.slow
def test_where_g_and_d_begin(trained, tmp_path, mesh, same_weights):
    other = same_weights(trained, tmp_path / "distilled", 0.5)
    base = jax.device_get(sampling.load_params(systems.load(trained)[0], trained, mesh)[0])
    kernel = lambda tree: np.asarray(tree["conv_in"]["kernel"])
    half = 0.5 * kernel(base)
    for g_from, d_from in (
        ("distilled", "diffusion"),
        ("diffusion", "distilled"),
        ("distilled", "random"),
    ):
        config = apt_runs.of(
            trained, distilled=other, adversarial__g_from=g_from, adversarial__d_from=d_from
        )
        system = systems.make(config)
        made, told = system.begin(mesh)
        wanted = {"distilled": half, "diffusion": kernel(base)}
        np.testing.assert_array_equal(kernel(made["g"]), wanted[g_from])
        backbone = kernel(made["d"]["backbone"])
        if d_from == "random":
            assert all(np.abs(backbone - w).max() > 0.05 for w in wanted.values())
        else:
            np.testing.assert_array_equal(backbone, wanted[d_from])
        assert str(trained) in told and "distilled" in told
        # D says nothing at first: L_D = 2 ln 2, L_G = ln 2 whatever they are.
        assert not np.any(made["d"]["readout"]["out_proj"]["kernel"])


@pytest.fixture(scope="module")
def same_weights(mesh):
    """same_weights(run, workdir, scale): a run without checkpoints whose weights are scaled."""

    def make(run, workdir, scale):
        workdir.mkdir()
        (workdir / "config.json").write_text((run / "config.json").read_text())
        params = jax.device_get(sampling.load_params(systems.load(run)[0], run, mesh)[0])
        trees.save(jax.tree.map(lambda a: scale * a, params), workdir / sampling.WEIGHTS)
        return workdir

    return make


def test_heads_are_where_the_config_says():
    config = lambda **given: cli.ConfigDict(
        {"base": "b", "adversarial": {"taps": (), "depth": 1.0, **given}}
    )
    assert adversary.taps_of(config(), 36) == (16, 26, 36)
    assert adversary.taps_of(config(), 10) == (4, 7, 10)
    assert adversary.taps_of(config(depth=0.5), 36) == (8, 13, 18)
    assert adversary.taps_of(config(taps=(-1,)), 36) == (36,)
    assert adversary.taps_of(config(taps=(30, 2)), 36) == (2, 30)
    for taps in (37,), (-37,):
        with pytest.raises(UserError, match="b has 36 blocks"):
            adversary.taps_of(config(taps=taps), 36)


def record(step, loss, gap):
    return {"step": step, "d_adversarial": loss, "logit_real": gap / 2, "logit_fake": -gap / 2}


def test_the_alarm():
    won = [record(10 * i, 0.05, 3.0 + i) for i in range(1, 4)]
    healthy = [record(0, 1.3, 0.1)]
    since, line = adversary.collapsed([*healthy, *won], 0.1)
    assert since == 0 and "raise config.adversarial.r1_sigma" in line
    assert adversary.collapsed([record(5, 1.3, 0.1), *won], 0.1)[0] == 5
    assert adversary.collapsed(won[:2], 0.1) is None  # too few to tell
    assert adversary.collapsed([*won[:2], record(30, 0.2, 9.0)], 0.1) is None  # D errs again
    assert adversary.collapsed([*won[:2], record(30, 0.05, 4.9)], 0.1) is None  # logits meet
    assert adversary.collapsed(won, 0.0) is None


def test_guidance_of_a_base_without_a_null_label(trained):
    config = apt_runs.of(trained, "distil")
    system = systems.load(trained)[0]
    assert student.scale_of(config, system) == 2.0  # the base's own
    bound = dataclasses.replace(system, backbone=system.backbone._replace(unconditional=None))
    assert student.scale_of(config, bound) == 1.0
    with pytest.raises(UserError, match="trained without its condition"):
        student.scale_of(apt_runs.of(trained, "distil", distillation__guidance=3.0), bound)


def test_clean_pictures_are_fed_in_the_network_s_scale(trained):
    system = systems.load(trained)[0]
    x, t = jnp.ones((3, 8, 8, 3)), jnp.array([0.0, 0.4, 1.0])
    got = system.backbone.feed(x, t)
    for a, b in zip(got, bases.feed_edm(SIGMA_DATA, LOW, HIGH)(x, t), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert denoisers.edm_coefficients(SIGMA_DATA)(jnp.float32(0.0)).input == np.float32(1 / 0.7)
