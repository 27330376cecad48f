import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core import ema


def track(rule, thetas, start, offset=0):
    """The average after every step, by one scan."""

    def step(e, row):
        n, theta = row
        e = ema.update(e, theta, rule(n))
        return e, e

    return jax.lax.scan(step, jnp.asarray(start), (jnp.arange(len(thetas)) + offset, thetas))[1]


def test_half_life(golden, close, x64):
    arrays = golden("ema")
    rule = ema.half_life(500e3, 512)
    close(1 - jax.jit(rule)(np.arange(400)), arrays["edm_beta"], 1e-10)
    got = track(rule, arrays["edm_theta"], arrays["edm_ema_init"])
    close(got, arrays["edm_ema"], 1e-10)
    for batch, images, table in [(512, 500e3, ""), (4096, 50e6, "_imagenet")]:
        n = arrays["edm_beta_table_nimg"] / batch
        close(1 - jax.jit(ema.half_life(images, batch))(n), arrays[f"edm_beta_table{table}"], 1e-10)


def test_half_life_of_edm2(golden, close, x64):
    """The same rule, with images counted after the step."""
    arrays = golden("ema")
    rule = ema.half_life(500e3, 2048, ramp=0.09)
    theta = arrays["pf_theta"]
    close(track(rule, theta, np.zeros(3), offset=1), arrays["trad_ema"], 1e-10)


def test_power_function(golden, close, x64):
    arrays = golden("ema")
    close(ema.std_to_exponent(arrays["std"]), arrays["std_to_exp"], 1e-10)
    close(ema.exponent_to_std(arrays["exp"]), arrays["exp_to_std"], 1e-10)
    for i, std in enumerate([0.05, 0.10]):
        rule = ema.power(float(ema.std_to_exponent(std)))
        n = arrays["pf_beta_nimg"] / 2048 - 1
        close(1 - jax.jit(rule)(n), arrays[f"pf_beta_{round(1000 * std):03d}"], 1e-10)
        got = track(rule, arrays["pf_theta"], np.zeros(3))
        close(got, arrays["pf_ema"][:, i], 1e-10)


def test_posthoc(golden, close):
    arrays = golden("ema")
    got = ema.posthoc(
        arrays["ph_in_nimg"], arrays["ph_in_std"], arrays["ph_out_nimg"], arrays["ph_out_std"]
    )
    close(got, arrays["ph_coefs"], 1e-8)
    np.testing.assert_allclose(got.sum(0), 1)

    # on the averages of a random walk, stored every 20 steps and both widths
    steps = arrays["ph_in_nimg"][::2] // 2048 - 1
    stored = arrays["pf_ema"][steps].reshape(-1, 3)
    close(got.T @ stored, arrays["ph_result"], 1e-8)
    # of a width that was stored it is that one
    last = dict(zip(arrays["ph_out_std"].tolist(), got.T @ stored, strict=True))[0.05]
    np.testing.assert_allclose(last, stored[-2], rtol=1e-6)


def test_warm_ups(golden, close, x64):
    arrays = golden("ema")
    steps = arrays["kd_warmup_steps"]
    for name, power in [("p23", 2 / 3), ("p34", 3 / 4)]:
        rule = jax.jit(ema.inverse_power(0.9999, power=power))
        close(1 - rule(steps), arrays[f"kd_warmup_{name}"], 1e-10)
    n = np.array([0, 1, 80, 10**6])
    want = np.minimum(0.999, (1 + n) / (10 + n))
    close(1 - jax.jit(ema.warmup(0.999))(n), want, 1e-12)


def test_float32_rules_keep_their_digits():
    """1 - beta is right to float32, which 1 - float32(beta) is not."""
    n = jnp.int32(2_000_000)
    for rule, want in [
        (ema.constant(0.99993), 1 - 0.99993),
        (ema.half_life(500e6, 8), -np.expm1(-np.log(2) * 8 / (0.05 * 1.6e7))),
        (ema.power(6.94), -np.expm1(7.94 * np.log1p(-1 / 2_000_001))),
        (ema.warmup(1.0), 9 / 2_000_010),
    ]:
        got = jax.jit(rule)(n)
        assert got.dtype == jnp.float32
        assert float(got) == pytest.approx(want, rel=2e-6)


def test_update_keeps_structure_and_dtype():
    params = {"a": jnp.ones(3, jnp.bfloat16), "b": (jnp.zeros(2),)}
    average = {"a": jnp.zeros(3, jnp.float32), "b": (jnp.ones(2),)}
    got = ema.update(average, params, 0.25)
    assert got["a"].dtype == jnp.float32
    np.testing.assert_allclose(got["a"], 0.25)
    np.testing.assert_allclose(got["b"][0], 0.75)
