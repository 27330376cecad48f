"""The step against the same arithmetic by hand, in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffjax.errors import UserError
from diffjax.run import update

STEPS, BATCH = 7, 8


@pytest.fixture
def run(line, fed, mesh_of):
    """run(config, data [steps, B, 3]) -> the states and metrics after each step."""

    def go(config, data, mesh=None):
        mesh = mesh or mesh_of(data=1)
        _, shardings = update.state_shapes(line, config, mesh)
        state = update.init_state(line, config, shardings)
        step = jax.jit(update.step_function(line, config, fed, mesh))
        states, seen = [state], []
        for i, x in enumerate(data):
            state, metrics = step(state, {"x": x}, np.float32(i / len(data)))
            states.append(state)
            seen.append(metrics)
        return jax.device_get(states), jax.device_get(seen)

    return go


@pytest.fixture(scope="module")
def data():
    return np.random.default_rng(1).normal(size=(STEPS, BATCH, 3)).astype(np.float32)


def by_hand(line, config, params, data):
    """Adam as in Kingma & Ba's Algorithm 1, clipping by the global norm, EMA as a loop."""
    o, decay = config.optimizer, config.ema.ema.decay
    params = {k: np.float64(v) for k, v in params.items()}
    m = {k: np.zeros_like(v) for k, v in params.items()}
    v, ema, trace = {**m}, {**params}, []
    for t, x in enumerate(data):
        loss, g = line.gradient(params, x, config.seed, t)
        norm = np.sqrt(sum(np.sum(a**2) for a in g.values()))
        if o.clip and norm > o.clip:
            g = {k: a * o.clip / norm for k, a in g.items()}
        rate = o.learning_rate * min(1, (t + 1) / o.warmup_steps)
        if o.schedule == "cosine":
            half = 0.5 * (1 + np.cos(np.pi * t / len(data)))
            rate *= o.final + (1 - o.final) * half
        beta = min(decay, (1 + t) / (10 + t)) if config.ema.ema.kind == "warmup" else decay
        for k in params:
            m[k] = o.b1 * m[k] + (1 - o.b1) * g[k]
            v[k] = o.b2 * v[k] + (1 - o.b2) * g[k] ** 2
            hat_m, hat_v = m[k] / (1 - o.b1 ** (t + 1)), v[k] / (1 - o.b2 ** (t + 1))
            direction = hat_m / (np.sqrt(hat_v) + o.eps) + o.weight_decay * params[k]
            params[k] = params[k] - rate * direction
            ema[k] = beta * ema[k] + (1 - beta) * params[k]
        trace.append({"loss": loss, "grad_norm": norm, "learning_rate": rate})
    return params, ema, trace


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer.clip=0.5"],
        ["optimizer.clip=0.0", "ema.ema.kind=constant", "ema.ema.decay=0.7"],
        ["optimizer.schedule=constant", "optimizer.weight_decay=0.1", "accumulate=4"],
    ],
    ids=["clip, cosine, warm-up EMA", "no clip, constant EMA", "constant, decay, accumulate"],
)
def test_steps_equal_hand_arithmetic(line, run, data, make_config, overrides):
    config = make_config("optimizer.learning_rate=0.05", *overrides)
    states, seen = run(config, data)
    params, ema, trace = by_hand(line, config, states[0].params, data)
    for k in params:
        np.testing.assert_allclose(states[-1].params[k], params[k], rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(states[-1].ema["ema"][k], ema[k], rtol=2e-5, atol=2e-6)
    for metrics, wanted in zip(seen, trace, strict=True):
        for name, value in wanted.items():
            np.testing.assert_allclose(metrics[name], value, rtol=2e-5)
    assert states[-1].step == STEPS and states[-1].bad_step == -1


def test_the_clipped_runs_were_clipped(line, run, data, make_config):
    # Else the comparison above would hold without any clipping.
    _, seen = run(make_config("optimizer.clip=0.5"), data)
    assert min(m["grad_norm"] for m in seen) > 0.5


def test_clipping_is_a_projection(make_config):
    gradient = {"w": jnp.array([3.0, 0.0]), "b": jnp.array(4.0)}  # of norm 5
    for clip, scale in (1.0, 0.2), (10.0, 1.0):
        tx = update.make_optimizer(make_config(f"optimizer.clip={clip}").optimizer)
        alone = optax.scale_by_adam(b1=0.9, b2=0.99, eps=1e-8)
        got, _ = tx.update(gradient, tx.init(gradient), gradient)
        cut = jax.tree.map(lambda g, s=scale: g * s, gradient)
        wanted, _ = alone.update(cut, alone.init(gradient), gradient)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, wanted)


def test_learning_rate_at_its_corners(make_config):
    optimizer = make_config(
        "optimizer.learning_rate=0.4", "optimizer.warmup_steps=10", "optimizer.final=0.25"
    ).optimizer
    rate = lambda step, progress: float(update.learning_rate(optimizer, step, progress))
    assert rate(0, 0.0) == pytest.approx(0.04)  # the first step is no wasted one
    assert rate(4, 0.0) == pytest.approx(0.2)
    assert rate(9, 0.0) == rate(50, 0.0) == pytest.approx(0.4)
    assert rate(50, 0.5) == pytest.approx(0.4 * (0.25 + 0.75 / 2))
    assert rate(50, 1.0) == rate(50, 1.3) == pytest.approx(0.1)
    optimizer.warmup_from_zero = True
    assert rate(0, 0.0) == 0.0
    assert rate(4, 0.0) == pytest.approx(0.16)
    assert rate(10, 0.0) == pytest.approx(0.4)


def test_accumulation_changes_nothing(run, data, make_config):
    runs = [run(make_config(f"accumulate={a}"), data) for a in (1, 4)]
    (one, seen_one), (four, seen_four) = runs
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), one[-1], four[-1]
    )
    np.testing.assert_allclose(
        [m["loss"] for m in seen_one], [m["loss"] for m in seen_four], rtol=1e-6
    )


def test_two_averages_side_by_side(line, run, data, make_config):
    config = make_config().copy_and_resolve_references()
    config.unlock()
    config.ema = {"fast": {"kind": "constant", "decay": 0.5}, "slow": config.ema.ema}
    states, _ = run(config, data)
    alone, _ = run(make_config(), data)
    fast = alone[0].params["w"].astype(np.float64)
    for state in alone[1:]:
        fast += 0.5 * (state.params["w"] - fast)
    np.testing.assert_allclose(states[-1].ema["fast"]["w"], fast, rtol=1e-5)
    np.testing.assert_array_equal(states[-1].ema["slow"]["w"], alone[-1].ema["ema"]["w"])


def test_half_life_average(run, data, make_config):
    # EDM's: the weight of the past halves in `images` images, or in `ramp` of those seen so far.
    config = make_config().copy_and_resolve_references()
    config.unlock()
    config.ema = {"half": {"kind": "half_life", "images": 20.0, "ramp": 0.5}}
    states, _ = run(config, data)
    ema = states[0].params["w"].astype(np.float64)
    for seen, state in zip(range(0, STEPS * BATCH, BATCH), states[1:], strict=True):
        beta = 0.5 ** (BATCH / min(20.0, 0.5 * seen)) if seen else 0.0
        ema = beta * ema + (1 - beta) * state.params["w"]
    np.testing.assert_allclose(states[-1].ema["half"]["w"], ema, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_freezes_the_state(run, data, make_config, bad):
    data = data.copy()
    data[3, 5] = bad
    states, seen = run(make_config(), data)
    assert [int(s.bad_step) for s in states] == [-1, -1, -1, -1, 3, 3, 3, 3]
    frozen = states[3]._replace(bad_step=np.int32(3))
    for state in states[4:]:
        jax.tree.map(np.testing.assert_array_equal, state, frozen)
    assert not np.isfinite(seen[3]["loss"]) and np.isfinite(seen[4]["loss"])


def test_the_key_of_a_step_is_its_own(run, data, make_config):
    # The same batch and no movement: the losses differ by their noise alone, seed by seed.
    still = ["optimizer.learning_rate=1e-30", "optimizer.clip=0.0"]
    same = np.repeat(data[:1], 3, axis=0)
    _, first = run(make_config(*still), same)
    _, again = run(make_config(*still), same)
    _, other = run(make_config("seed=1", *still), same)
    losses = [[float(m["loss"]) for m in seen] for seen in (first, again, other)]
    assert losses[0] == losses[1]
    assert len({*losses[0], *losses[2]}) == 6


def test_batches_that_do_not_divide(make_config, mesh_of):
    mesh = mesh_of(data=2, fsdp=2, tensor=2)
    update.check_batch(make_config("batch_size=16", "accumulate=4"), mesh)
    with pytest.raises(UserError, match=r"batch_size 12 .* multiple of 8"):
        update.check_batch(make_config("batch_size=12", "accumulate=2"), mesh)
