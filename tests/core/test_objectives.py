import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def test_times():
    """Drawn times have the moments and the range that the objective names."""
    shapes = [
        objectives.edm(-0.4, 1.0),
        objectives.discrete(10),
        objectives.vp(),
        objectives.flow(),
    ]
    draw = jax.jit(lambda key: [o.sample(key, (20000, 1)) for o in shapes])
    edm, discrete, vp, flow = (np.asarray(t) for t in draw(jax.random.key(0)))
    log_t = np.log(edm)
    assert log_t.shape == (20000, 1)
    assert abs(log_t.mean() + 0.4) < 0.02 and abs(log_t.std() - 1.0) < 0.02
    assert sorted(set(discrete.ravel().tolist())) == list(range(1, 11))
    assert vp.min() >= 1e-5 and vp.max() <= 1 and abs(vp.mean() - 0.5) < 0.01
    assert 0 < flow.min() < 0.05 and 0.95 < flow.max() < 1 and abs(np.median(flow) - 0.5) < 0.01


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


def test_times_that_do_not_fit_are_refused():
    x0 = jnp.zeros((4, 8, 8, 3))
    for t in (jnp.ones(4), jnp.ones((4, 1, 1, 1, 1))):
        with pytest.raises(UserError, match="B, 1, 1, 1"):
            objectives.loss(objectives.edm(), processes.edm(), lambda x, t: x, x0, t, x0)
