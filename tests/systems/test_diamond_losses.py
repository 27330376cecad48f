"""DIAMOND's losses, returns and optimiser against the released code's arrays."""

import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from diamond_original import GOLDEN, load, manifest, near, network, ours, theirs

from diffjax.errors import UserError
from diffjax.systems.diamond import losses, optimizers, published, sampling
from diffjax.systems.diamond.denoiser import Denoiser
from diffjax.weights import trees


def batch_of(g):
    return {"obs": ours(g["obs"]), "act": g["act"], "mask": g["mask"]}


def draws(g):
    """The golden draws as the port that the loss asks."""
    offset = lambda i, z: ours(g[f"s{i}/{z}_offset"])
    one = lambda i, z: losses.Draws(g[f"s{i}/{z}_sigma"], offset(i, z), ours(g[f"s{i}/{z}_noise"]))
    return lambda i: one(i, "z")._replace(past=one(i, "zc") if f"s{i}/zc_sigma" in g else None)


def norms(gradient, kind):
    """{the original's name: norm of the gradient}."""
    named = published.from_params(trees.flatten(gradient), kind)
    return {name: np.linalg.norm(np.asarray(a, np.float64)) for name, a in named.items()}


def check_norms(gradient, kind, names, want, tol):
    found = norms(gradient, kind)
    near([found[name] for name in names], want, tol)
    rest = set(found) - {*names}
    assert all(name.endswith("noise_emb.weight") and not found[name] for name in rest), rest


@pytest.fixture(scope="module")
def denoising():
    """(params, value and gradient of the loss of params) on the golden batch."""
    g = load("denoiser_loss")
    net, params = network("denoiser")
    loss = lambda p: losses.denoiser_loss(Denoiser(net), p, batch_of(g), draws(g), trace=True)
    return params, jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.slow
def test_gradient_of_the_denoiser(denoising):
    g, (params, run) = load("denoiser_loss"), denoising
    (loss, _), gradient = run(params)
    near(loss, g["loss"], 1e-5)
    check_norms(gradient, "denoiser", g["grad_names"], g["grad_norm_by_name"], 1e-4)
    near(optax.global_norm(gradient), g["grad_norm_total"], 1e-4)


def test_denoiser():
    g = load("denoiser_loss")
    net, params = network("denoiser")
    run = jax.jit(
        lambda p: losses.denoiser_loss(Denoiser(net), p, batch_of(g), draws(g), trace=True)
    )
    loss, steps = run(params)
    near(loss, g["loss"], 1e-5)
    for i, step in enumerate(steps):
        near(theirs(step.noisy), g[f"s{i}/noisy"], 5e-5)
        near(theirs(step.output), g[f"s{i}/model_output"], 5e-5)
        near(theirs(step.target), g[f"s{i}/target"], 5e-5)
        near(Denoiser(None).coefficients(step.sigma).noise, g[f"s{i}/c_noise"], 5e-5)
        near(step.loss, g[f"s{i}/loss"], 1e-5)
        off = np.abs(theirs(step.denoised) - g[f"s{i}/denoised"])
        assert np.mean(off > 1e-6) <= 0.005 and off.max() < 0.00785


@pytest.mark.slow
def test_optimiser(denoising):
    g, (params, run) = load("optim_steps"), denoising
    s = optimizers.Settings(learning_rate=1e-3, warmup_steps=3)
    tx, rate = optimizers.make(s), optimizers.schedule(s)
    step = jax.jit(lambda gradient, state, params: tx.update(gradient, state, params))
    state = tx.init(params)
    for k in range(5):
        (loss, _), gradient = run(params)
        near(loss, g["loss"][k], 1e-3)
        near(optax.global_norm(gradient), g["grad_norm_before_clip"][k], 1e-3)
        assert float(rate(k)) == pytest.approx(g["lr_used"][k], rel=1e-6)
        direction, state = step(gradient, state, params)
        params = optax.apply_updates(params, direction)
        named = published.from_params(trees.flatten(params), "denoiser")
        for name, want in zip(g["watch"], g["values"][k]):
            near(named[name].ravel()[:8], want, 1e-4)


def test_no_sample_counts():
    g = load("denoiser_loss")
    mask = jnp.zeros(4, bool)
    assert losses.masked_mean(jnp.ones(4), mask) == 0
    batch = {k: v[:, :4] for k, v in batch_of(g).items()}
    with pytest.raises(UserError, match="segments of 4 frames, of which 4 are past"):
        losses.denoiser_loss(Denoiser(None), {}, batch, draws(g))


def test_bridge():
    """Euler's method from the noised previous frame passes through what the bridge trains on."""
    y, p, z = jax.random.normal(jax.random.key(0), (3, 1, 2, 2, 3))
    sampler = sampling.Sampler(steps=5, start="prev_plus_sigma_max")
    x, seen = sampling.next_frame(sampler, lambda *_: y, z, p, trace=True)
    for sigma, passed in zip(sampler.grid()[1:], seen.x):
        want = losses.OBJECTIVES["bridge"](y, p, sigma / sampler.sigma_max) + sigma * z
        np.testing.assert_allclose(passed, want, atol=2e-6)
    assert (losses.OBJECTIVES["bridge"](y, p, 1.5) == y + (p - y)).all()


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["noised_prev", "bridge"])
def test_objectives(objective):
    """What is noised, with a network that answers 0: the frames are not needed for that."""
    g = load("denoiser_loss")
    zero = lambda params, x, *_: jnp.zeros_like(x)
    denoiser = Denoiser(type("Net", (), {"apply": staticmethod(zero)}), sigma_offset=0.3)
    batch, port = batch_of(g), draws(g)
    run = lambda name: losses.denoiser_loss(
        denoiser, {}, batch, port, objective=name, sigma_max=2.0, trace=True
    )[1][0]
    step, plain = run(objective), run("next")
    y, p = batch["obs"][:, 4], batch["obs"][:, 3]
    share = np.minimum(np.asarray(step.sigma) / 2, 1) if objective == "bridge" else np.ones(4)
    moved = share[:, None, None, None] * np.asarray(p - y)
    np.testing.assert_allclose(step.noisy - plain.noisy, moved, atol=1e-5)
    c = denoiser.coefficients(step.sigma[:, None, None, None])
    np.testing.assert_allclose(c.skip * step.noisy + c.out * step.target, y, atol=1e-5)


def test_unknown_objective():
    with pytest.raises(UserError, match="objective of DIAMOND's denoiser: 'prev'"):
        losses.denoiser_loss(Denoiser(None), {}, {}, None, objective="prev")


@pytest.mark.slow
def test_draws_are_of_a_sample():
    keys = jax.random.split(jax.random.key(0), 3)
    draw = jax.jit(lambda keys: losses.draw(keys, (2, 5, 3), past_channels=12))
    drawn = draw(keys)
    shapes = [(3,), (3, 1, 1, 3), (3, 2, 5, 3), (3,), (3, 1, 1, 12), (3, 2, 5, 12)]
    assert [a.shape for a in jax.tree.leaves(drawn)] == shapes
    alone = draw(keys[1:2])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1:2], b), drawn, alone)
    assert drawn.level[0] != drawn.past.level[0]


def test_warm_up():
    g = json.loads((GOLDEN / "lr_schedule.json").read_text())
    s = optimizers.ATARI["denoiser"]
    assert (s.learning_rate, s.warmup_steps) == (g["base_lr"], g["num_warmup_steps"])
    for step, want in g["step_lr"].items():
        assert float(optimizers.schedule(s)(int(step))) == pytest.approx(want, rel=1e-6, abs=0)


@pytest.mark.parametrize("name", optimizers.ATARI)
def test_what_decays(name):
    g = json.loads(gzip.decompress((GOLDEN / "optimizer_groups.json.gz").read_bytes()))[name]
    shapes = {
        n: np.broadcast_to(np.float32(0), shape)
        for n, (shape, _) in manifest(f"{name}_atari_breakout").items()
    }
    params = trees.unflatten(published.to_params(shapes, name))
    decays = trees.flatten(optimizers.decayed(params))
    back = {}
    for path, array in trees.flatten(params).items():
        (original,) = published.from_params({path: array}, name)
        back[original] = decays[path]
    found = {n for n, decay in back.items() if decay}
    assert found == set(g["decay"])
    assert {n for n in back if not n.endswith("noise_emb.weight")} - found == set(g["no_decay"])
    s = optimizers.ATARI[name]
    assert [s.weight_decay, 0.0] == g["weight_decay"]
    assert [s.b1, s.b2] == g["betas"] and s.eps == g["eps"]


@pytest.mark.slow
def test_reward_and_end():
    g = {k.removeprefix("loss/"): v for k, v in load("rew_end_tiny").items() if "loss/" in k}
    net, params = network("rew_end_model")
    final = np.zeros((3, 3, 16, 16), np.float32)
    final[1] = g["final_observation_row1"]
    batch = batch_of(g) | {"rew": g["rew"], "end": g["end"], "final_observation": ours(final)}
    loss = lambda p: losses.reward_end_loss(net, p, batch)
    (total, metrics), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    near(total, g["total"], 1e-5)
    near(metrics["loss_rew"], g["loss_rew"], 1e-5)
    near(metrics["loss_end"], g["loss_end"], 1e-5)
    for name in ("confusion_rew", "confusion_end"):
        np.testing.assert_array_equal(metrics[name], g[name])
    check_norms(gradient, "rew_end_model", g["grad_names"], g["grad_norm_by_name"], 5e-5)


class Told:
    """A network of rewards and ends whose answers are given; it keeps what it was shown."""

    def __init__(self, of_rew, of_end):
        self.answers = of_rew, of_end

    def apply(self, variables, obs, act, following):
        self.shown = obs, act, following
        return *self.answers, None


def test_reward_and_end_by_hand():
    """One segment of three transitions: a reward of -4, a death, and one that is padding."""
    of_rew, of_end = (
        jnp.log(jnp.array([[[8, 1, 1], [5, 4, 1], [1, 1, 8]]]) / 10),
        jnp.zeros((1, 3, 2)),
    )
    net = Told(of_rew, of_end.at[0, 1].set(jnp.log(jnp.array([0.75, 0.25]))))
    obs = jnp.arange(4.0).reshape(1, 4, 1, 1, 1) * jnp.ones((1, 4, 1, 1, 3))
    batch = {
        "obs": obs,
        "act": jnp.array([[3, 4, 5, 6]]),
        "rew": jnp.array([[-4.0, 0.0, 7.0, 7.0]]),
        "end": jnp.array([[0, 1, 0, 0]]),
        "mask": jnp.array([[True, True, False, True]]),
        "final_observation": jnp.full((1, 1, 1, 3), 9.0),
    }
    run = jax.jit(lambda batch: (losses.reward_end_loss(net, {}, batch), net.shown))
    (total, metrics), shown = run(batch)
    near(metrics["loss_rew"], -(np.log(0.8) + np.log(0.4)) / 2, 1e-6)
    near(metrics["loss_end"], -(np.log(0.5) + np.log(0.25)) / 2, 1e-6)
    near(total, metrics["loss_rew"] + metrics["loss_end"], 1e-6)
    # Truths: -1 seen as -1, 0 seen as -1; alive seen as alive, dead seen as alive.
    assert metrics["confusion_rew"].tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert metrics["confusion_end"].tolist() == [[1, 0], [1, 0]]
    before, act, following = (np.asarray(a) for a in shown)
    assert before[0, :, 0, 0, 0].tolist() == [0, 1, 2] and act.tolist() == [[3, 4, 5]]
    assert following[0, :, 0, 0, 0].tolist() == [1, 9, 3]  # after the death its last frame


def test_the_second_step_goes_on_from_the_first_one_s_frame():
    """Also where what is noised is made of the frame before: that is the network's own then."""
    zero = lambda variables, x, *_: jnp.zeros_like(x)
    denoiser = Denoiser(type("Net", (), {"apply": staticmethod(zero)}), sigma_offset=0.0)
    batch = {
        "obs": jax.random.uniform(jax.random.key(0), (2, 6, 1, 1, 3)),
        "mask": jnp.ones((2, 6)),
    }
    none = losses.Draws(jnp.full(2, -9.0), jnp.zeros((2, 1, 1, 3)), jnp.zeros((2, 1, 1, 3)))
    for objective in ("next", "noised_prev"):
        run = jax.jit(
            lambda batch, none, objective=objective: losses.denoiser_loss(
                denoiser, {}, batch, lambda _: none, objective=objective, trace=True
            )
        )
        total, (first, second) = run(batch, none)
        near(total, (first.loss + second.loss) / 2, 1e-6)
        np.testing.assert_array_equal(second.past[..., -3:], first.denoised)
        want = batch["obs"][:, 5] if objective == "next" else first.denoised
        np.testing.assert_allclose(second.noisy, want, atol=1e-6)


def test_returns():
    g = load("rl_losses")
    for name, gamma, lam in (
        ("g985_l95", 0.985, 0.95),
        ("g985_l0", 0.985, 0),
        ("g985_l1", 0.985, 1),
    ):
        inputs = (g[k] for k in ("rew", "end", "trunc", "val_bootstrap"))
        near(losses.lambda_returns(*inputs, gamma, lam), g[f"returns/{name}"], 1e-5)


def test_returns_by_hand():
    """A step that was cut is worth its value, one that died nothing, whatever came later."""
    one = lambda *a: jnp.asarray([a], jnp.float32)
    end, trunc, bootstrap = one(0, 1, 0), one(1, 0, 0), one(8, 9, 4)
    got = losses.lambda_returns(one(5, -3, 0), end, trunc, bootstrap, 0.5, 0.25)
    np.testing.assert_allclose(got, [[1 + 0.5 * 8, -1, 0.5 * 0.75 * 4 + 0.5 * 0.25 * 4]])


def test_actor_critic():
    g = load("rl_losses")
    returns = g["returns/g985_l95"]
    loss = lambda logits, val: losses.actor_critic_loss(logits, val, g["act"], returns)
    run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (total, metrics), (of_logits, of_val) = run(g["logits"], g["val"])
    near(total, g["loss/loss_total"], 1e-5)
    for name in ("policy_entropy", "loss_actions", "loss_entropy", "loss_values"):
        near(metrics[name], g[f"loss/{name}"], 1e-5)
    near(of_val, g["grad/val"], 1e-5)
    near(of_logits, g["grad/logits"], 1e-5)
