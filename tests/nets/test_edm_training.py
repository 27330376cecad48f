"""Four optimiser steps and the samplers on the tiny networks, against the released code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffjax.core import denoisers, ema, grids, objectives, processes, samplers
from diffjax.data import augment
from diffjax.run import update
from diffjax.systems.images import to_float
from diffjax.weights import trees

PIPE = augment.Pipe(0.12)


def nhwc(a):
    return jnp.asarray(a.transpose(0, 2, 3, 1))


def as_original(path):
    return path.replace("/", ".").replace("kernel", "weight").replace("scale", "weight")


@pytest.fixture(scope="module")
def steps(tiny, golden):
    """Four steps: (what each measured, the parameters after them, their EMA)."""
    case, g = tiny("ddpmpp"), golden("train_steps")
    batch, scaling = int(g["batch"]), float(g["loss_scaling"])
    pixels = 3 * 16 * 16
    optimizer = ConfigDict(
        {
            "learning_rate": float(g["lr"]),
            "schedule": "constant",
            "warmup_steps": float(g["lr_rampup_nimg"]) / batch,
            "warmup_from_zero": True,
            "final": 1.0,
            "b1": 0.9,
            "b2": 0.999,
            # Our loss is a mean over pixels and has no scaling: Adam sees that in eps alone.
            "eps": 1e-8 / (pixels * scaling),
            "weight_decay": 0.0,
            "clip": 0.0,
        }
    )
    tx = update.make_optimizer(optimizer)
    rule = ema.half_life(float(g["ema_halflife_nimg"]), batch, float(g["ema_rampup_ratio"]))
    objective, process = objectives.edm(), processes.edm()

    def loss(params, images, label, level, draws, n):
        x0, moved = augment.transform(to_float(images), draws, PIPE)

        def network(x, c_noise, label):
            c_noise = c_noise.reshape(-1)
            return net.apply(
                {"params": params}, x, c_noise, label, moved, True, rngs={"dropout": key}
            )

        d = denoisers.preconditioned(network, denoisers.edm_coefficients())
        denoise = denoisers.on(process, lambda x, ratio: d(x, ratio, label))
        return jnp.mean(objectives.loss(objective, process, denoise, x0, objective.time(level), n))

    net, key = case.net.clone(dropout=0.0), jax.random.key(0)

    @jax.jit
    def step(params, average, state, i, *batch):
        value, gradient = jax.value_and_grad(loss)(params, *batch)
        direction, state = tx.update(gradient, state, params)
        rate = update.learning_rate(optimizer, i, 0.0)
        params = jax.tree.map(lambda p, d: p - rate * d, params, direction)
        weight = rule(i)
        average = ema.update(average, params, weight)
        return params, average, state, (value, gradient, rate, weight)

    params = average = first = case.params
    state, seen = tx.init(params), []
    for k in range(4):
        get = lambda name, k=k: g[f"step{k}/{name}"]
        rows = (row for j in range(1, 15) for row in get(f"draw{j:02}").reshape(-1, batch))
        draws = {name: tuple(next(rows) for _ in augment.DRAWS[name]) for name in PIPE.operations}
        label = get("labels").argmax(1).astype(np.int32)
        level = get("draw00").reshape(batch, 1, 1, 1)
        inputs = nhwc(get("images")), label, level, draws, nhwc(get("draw15"))
        i = int(g["start_nimg"]) // batch + k
        params, average, state, measured = step(params, average, state, i, *inputs)
        seen.append((*measured, away(params, first), away(average, first)))
    return jax.device_get(seen), params, average


def away(tree, first):
    return jax.tree.map(lambda a, b: jnp.linalg.norm(a - b), tree, first)


def by_name(tree):
    """Leaves in the order of the original's sorted names, and the names."""
    flat = {as_original(path): leaf for path, leaf in trees.flatten(tree).items()}
    return np.array([np.linalg.norm(flat[name]) for name in sorted(flat)]), sorted(flat)


@pytest.mark.slow
def test_steps(steps, golden):
    seen, _, _ = steps
    g = golden("train_steps")
    factor = 3 * 16 * 16 * float(g["loss_scaling"])
    worst = dict.fromkeys(("loss", "gradient", "parameters", "ema"), 0.0)
    for k, (loss, gradient, rate, weight, moved, moved_ema) in enumerate(seen):
        np.testing.assert_allclose(rate, g["lrs"][k], rtol=1e-6)
        np.testing.assert_allclose(weight, 1 - g["ema_betas"][k], rtol=1e-5)
        error = lambda a, b: np.max(np.abs(a / b - 1))
        worst["loss"] = max(worst["loss"], error(loss, g["loss_sum_mean"][k, 1]))
        norms, names = by_name(gradient)
        worst["gradient"] = max(worst["gradient"], error(factor * norms, g["grad_norm"][k]))
        # The gradient of a third of qkv's biases is zero; Adam makes steps of its rounding.
        keep = np.array([not name.endswith("qkv.bias") for name in names])
        for key, tree, want in (
            ("parameters", moved, g["param_delta_norm"][k]),
            ("ema", moved_ema, g["ema_delta_norm"][k]),
        ):
            worst[key] = max(worst[key], error(by_name(tree)[0][keep], want[keep]))
    print(worst)
    assert worst["loss"] < 1e-5 and worst["gradient"] < 1e-4
    assert worst["parameters"] < 1e-3 and worst["ema"] < 1e-3


@pytest.mark.slow
def test_what_the_steps_learnt(steps, tiny, golden, near):
    _, params, average = steps
    case, g = tiny("ddpmpp"), golden("train_steps")
    x, sigma, label = nhwc(g["probe_x"]), np.array([0.7], np.float32), np.array([2], np.int32)
    for tree, key in ((params, "net"), (average, "ema")):
        d = case.denoise(x, sigma, label, np.zeros((1, 9), np.float32), params=tree)
        near(nchw(d), g[f"probe_D_{key}"], 1e-4)


def nchw(a):
    return np.asarray(a).transpose(0, 3, 1, 2)


RANGE = (0.010485992787, 152.16696973)  # of vp's steps, as in tests/core/test_samplers_golden.py
SAMPLERS = {
    "ddpmpp_edm_n6_det": ("ddpmpp", "edm", 0.0),
    "ddpmpp_edm_n6_churn": ("ddpmpp", "edm", 4.0),
    "ddpmpp_abl_vpvpvp_heun_n6": ("ddpmpp", "vp", 0.0),
    "adm_edm_n6_det": ("adm", "edm", 0.0),
}


@pytest.mark.parametrize(
    "key",
    [pytest.param(k, marks=pytest.mark.slow) if "vp" in k or "adm" in k else k for k in SAMPLERS],
)
def test_samplers(key, tiny, golden, near):
    name, steps, churned = SAMPLERS[key]
    case, g = tiny(name), golden("samplers_net")
    start = np.random.RandomState(43).standard_normal((2, 3, 16, 16))  # noqa: NPY002
    noise = np.random.RandomState(44).standard_normal((6, 2, 3, 16, 16))  # noqa: NPY002
    noise = jnp.asarray(noise.transpose(0, 1, 3, 4, 2), jnp.float32)
    label, augment_label = g["labels"].argmax(1).astype(np.int32), np.zeros((2, 9), np.float32)
    if steps == "edm":
        process, grid = processes.edm(), grids.karras(6, 0.002, 80.0)
        hat = samplers.churn(grid, churned, 0.05, 50) if churned else None
    else:
        betas = processes.vp_betas(*RANGE)
        process, grid, hat = processes.vp(*betas), grids.vp(6, *betas), None
    t = process.t_of(grid[:-1]) if steps == "vp" else grid[:-1]
    level = process.at(t[0])
    denoise = denoisers.on(process, lambda x, ratio: case.denoise(x, ratio, label, augment_label))
    x = nhwc(start.astype(np.float32)) * level.sigma
    x = samplers.ode(
        denoise, process, np.append(t, 0.0), x, lambda k: noise[k], hat=hat, s_noise=1.003
    )
    near(nchw(x), g[key], 2e-4)
