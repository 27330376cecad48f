import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy

from diffjax.core import denoisers, objectives, processes
from diffjax.errors import UserError

from .test_denoisers import coefficients, toy

OBJECTIVES = {
    "vp": (objectives.vp(), processes.vp()),
    "ve": (objectives.ve(), processes.ve()),
    "edm": (objectives.edm(), processes.edm()),
}


@pytest.mark.parametrize(
    ("objective", "net"),
    [("vp", "vp"), ("ve", "ve"), ("edm", "edm"), ("edm", "vp"), ("edm", "ve"), ("edm", "iddpm")],
)
def test_losses(objective, net, golden, close):
    arrays = golden("losses")
    o, process = OBJECTIVES[objective]
    d = denoisers.preconditioned(toy, coefficients(net, golden))
    level = jax.jit(lambda draw: process.at(o.time(draw)))(arrays[f"rnd_{o.standard}"])
    ratio = np.ravel(level.sigma) / np.ravel(level.alpha)
    close(ratio, arrays[f"{objective}_train_sigma"], 1e-5)
    for key, images, cond in [
        (f"{objective}loss_{net}net", arrays["images"], (arrays["labels"], None)),
        (
            f"{objective}loss_{net}net_augpipe",
            arrays["images"][..., ::-1],
            (arrays["labels"], arrays["augment_labels_for_pipe"]),
        ),
    ]:
        if key in arrays:
            denoise = denoisers.on(process, functools.partial(d, cond=cond))
            loss = jax.jit(functools.partial(objectives.loss, o, process, denoise))
            got = loss(images, level.t, arrays["eps"])
            close(got, arrays[key], 1e-5)


def quantiles(name):
    """u -> the time below which a share u of the draws lies, in closed form."""
    normal = scipy.stats.norm.ppf
    return {
        "log-normal": lambda u: np.exp(-0.4 + normal(u)),
        "logit-normal": lambda u: scipy.special.expit(0.3 + 0.8 * normal(u)),
        "uniform": lambda u: u,
        "uniform in [1e-5, 1]": lambda u: 1e-5 + u * (1 - 1e-5),
        "log-uniform": lambda u: (0.02 * 5000**u) ** 2,
        "discrete": lambda u: np.ceil(10 * u),
    }[name]


TIMES = {
    "log-normal": objectives.edm(-0.4, 1.0),
    "logit-normal": objectives.flow(0.3, 0.8),
    "uniform": objectives.uniform_flow(),
    "uniform in [1e-5, 1]": objectives.vp(),
    "log-uniform": objectives.ve(),
    "discrete": objectives.discrete(10),
}


@pytest.fixture(scope="module")
def drawn():
    """{stratified: {name: times [4096, 1, 1]}}."""
    draw = lambda key, stratified: {
        name: o.sample(jax.random.fold_in(key, i), (4096, 1, 1), stratified)
        for i, (name, o) in enumerate(TIMES.items())
    }
    draw = jax.jit(draw, static_argnums=1)
    return {s: jax.tree.map(np.asarray, draw(jax.random.key(0), s)) for s in (False, True)}


@pytest.mark.parametrize("name", TIMES)
def test_times(name, drawn):
    """Drawn times have the quantiles of the distribution; stratified, every one of them."""
    u = np.array([0.0505, 0.25, 0.501, 0.75, 0.9495])
    want = quantiles(name)
    for stratified, off in [(False, 4 * np.sqrt(u * (1 - u) / 4096)), (True, 1 / 4096)]:
        t = drawn[stratified][name]
        assert t.shape == (4096, 1, 1) and np.all(np.isfinite(t)) and np.all(t > 0)
        t = np.sort(t.ravel())
        at = t[(u * 4096).astype(int)] if name != "discrete" else np.quantile(t, u)
        assert np.all(at >= want(u - off) * (1 - 1e-5)) and np.all(at <= want(u + off) * (1 + 1e-5))
    # one draw a row from its own quantile: the k-th smallest of 4096 lies in the k-th of 4096 parts
    if name != "discrete":
        k = np.arange(1, 4095)
        assert np.all(t[k] >= want(k / 4096) * (1 - 1e-4))
        assert np.all(t[k] <= want((k + 1) / 4096) * (1 + 1e-4))
    if name == "discrete":
        assert sorted(set(t.tolist())) == list(range(1, 11))


def test_a_row_sees_every_quantile():
    """Which part a row draws from changes with the key, so that no row is always noisy."""
    draw = jax.jit(jax.vmap(lambda key: objectives.strata(key, 8)))
    u = np.asarray(draw(jax.random.split(jax.random.key(0), 1000)))
    np.testing.assert_array_equal(
        np.sort(np.floor(8 * u), axis=1), np.tile(np.arange(8.0), (1000, 1))
    )
    counts = np.stack([np.bincount(np.floor(8 * row).astype(int), minlength=8) for row in u.T])
    assert np.all(np.abs(counts - 125) < 5 * np.sqrt(125))
    assert np.abs(np.corrcoef(u.T)[~np.eye(8, dtype=bool)] + 1 / 7).max() < 0.15
    within = np.sort((8 * u) % 1, axis=None)
    assert np.abs(within - np.linspace(0, 1, 8000)).max() < 0.025


def test_weights_turn_the_x0_loss_into_the_loss_of_the_target():
    """With snr it is the eps loss, with 1/t^2 the velocity loss, with EDM's a unit loss on F."""
    loss = jax.jit(objectives.loss, static_argnums=(0, 1, 2))
    x0, n, wrong = np.random.default_rng(0).standard_normal((3, 2, 5)).astype(np.float32)
    t = jnp.array([[7.0], [40.0]])
    process = processes.discrete(processes.cosine_betas(50))
    eps = objectives.discrete(50, objectives.snr(process))
    denoise = denoisers.from_eps(process, lambda x, t: wrong)
    got = loss(eps, process, denoise, x0, t, n)
    np.testing.assert_allclose(got, (wrong - n) ** 2, rtol=1e-3, atol=1e-5)

    t = jnp.array([[0.2], [0.9]])
    denoise = denoisers.from_flow(processes.flow(), lambda x, t: wrong)
    assert objectives.uniform_flow().weight(0.2) == objectives.flow().weight(0.2)
    got = loss(objectives.flow(), processes.flow(), denoise, x0, t, n)
    np.testing.assert_allclose(got, (wrong - (n - x0)) ** 2, rtol=1e-3, atol=1e-5)

    c = jax.jit(denoisers.edm_coefficients())(t)
    target = (x0 - c.skip * (x0 + t * n)) / c.out
    denoise = denoisers.preconditioned(lambda x, c, cond: wrong, denoisers.edm_coefficients())
    got = loss(objectives.edm(), processes.edm(), denoise, x0, t, n)
    np.testing.assert_allclose(got, (wrong - target) ** 2, rtol=1e-3, atol=1e-5)


def test_min_snr():
    process = processes.discrete(processes.cosine_betas(50))
    t = jnp.arange(1.0, 51)
    snr = jax.jit(objectives.snr(process))(t)
    assert snr.max() > 5 > snr.min()
    np.testing.assert_allclose(jax.jit(objectives.min_snr(process))(t), np.minimum(snr, 5))


def test_p2():
    process = processes.vp()
    t = jnp.float32([0.01, 0.3, 0.9])
    snr = jax.jit(objectives.snr(process))(t)
    got = jax.jit(objectives.p2(process, gamma=0.5, k=2.0))(t)
    np.testing.assert_allclose(got, snr / np.sqrt(2 + snr), rtol=1e-6)


def test_times_that_do_not_fit_are_refused():
    x0 = jnp.zeros((4, 8, 8, 3))
    for t in (jnp.ones(4), jnp.ones((4, 1, 1, 1, 1))):
        with pytest.raises(UserError, match="B, 1, 1, 1"):
            objectives.loss(objectives.edm(), processes.edm(), lambda x, t: x, x0, t, x0)


def test_objectives_are_for_their_processes():
    """A loss on another process would be a number, and wrong."""
    x0, t = jnp.zeros((2, 3)), jnp.full((2, 1), 0.5)
    made = {
        "edm": (objectives.edm(), processes.edm()),
        "ve": (objectives.ve(), processes.ve()),
        "vp": (objectives.vp(), processes.vp()),
        "other vp": (objectives.vp(17.5, 0.2), processes.vp(17.5, 0.2)),
        "flow": (objectives.flow(), processes.flow()),
        "shifted": (None, processes.flow(3.0)),
        "discrete": (objectives.discrete(50), processes.discrete(processes.linear_betas(50))),
        "longer": (objectives.discrete(99), processes.discrete(processes.linear_betas(99))),
    }
    for name, (objective, _) in made.items():
        for other, (_, process) in made.items():
            if objective is None:
                continue
            go = lambda o=objective, p=process: objectives.loss(o, p, lambda x, t: x, x0, t, x0)
            if name == other:
                go()
            else:
                with pytest.raises(UserError, match="the objective's times and weights are for"):
                    go()
    # The same time on a scaled picture, an unnamed process, an objective for any: all go.
    scaled = processes.scaled(processes.edm(), lambda t: 1 / (1 + t))
    objectives.loss(objectives.edm(), scaled, lambda x, t: x, x0, t, x0)
    plain = processes.Process(alpha=jnp.ones_like, sigma=lambda t: t)
    objectives.loss(objectives.ve(), plain, lambda x, t: x, x0, t, x0)
    own = objectives.Objective(time=lambda z: z, weight=lambda t: t)
    objectives.loss(own, processes.vp(), lambda x, t: x, x0, t, x0)
