"""MDM's samplers, losses and training steps against the released code's arrays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mdm_original import TINY, load, manifest, ours, params_of, theirs
from ml_collections import ConfigDict

from diffjax.core import denoisers, grids, guidance, processes
from diffjax.nets.motion_transformer import MotionTransformer
from diffjax.run import mesh as meshes
from diffjax.run import update
from diffjax.run.system import System
from diffjax.systems.mdm import losses
from diffjax.systems.mdm import request as requests
from diffjax.systems.mdm.request import Request
from diffjax.weights import trees

PROCESS = processes.discrete(processes.cosine_betas(50))
GRID = grids.respaced(50, "50")


@pytest.fixture(scope="module")
def g():
    return load("samplers")


def estimator(net, params):
    """(x, t, given) -> x0, as the room makes it of a network; given has told, mask and drop."""

    def estimate(x, t, given, process=PROCESS):
        def network(x, told):
            index = jnp.broadcast_to(jnp.reshape(told, -1), x.shape[:1])
            more = {name: given.get(name) for name in ("mask", "drop", "prefix")}
            return net.apply({"params": params}, x, index, given["told"], **more)

        return denoisers.from_x0(process, network, told=lambda t: t - 1)(x, t)

    return estimate


@functools.cache
def encoder(cond="text"):
    """The tiny encoder with its golden weights."""
    if cond == "action":
        net = MotionTransformer(150, condition="action", num_actions=5, mask_frames=False, **TINY)
        return net, params_of(manifest("tiny")["enc_action"])
    return MotionTransformer(13, **TINY), params_of(manifest("tiny")["enc_text"])


def text_of(embed):
    tokens = jnp.asarray(embed.swapaxes(0, 1))
    return tokens, jnp.ones(tokens.shape[:2], bool)


def loop(g, request, *, change=lambda d: d, noise=None, trace=True):
    """Runs a sampler on the golden net: (final, trace)."""
    given = {
        "told": text_of(g["text_embed"]),
        "mask": jnp.asarray(g["mask"][:, 0, 0]),
        "drop": jnp.zeros(2, bool),
    }
    scale = jnp.asarray(g["scale"])[:, None, None]
    draws = jnp.stack([ours(n) for n in g["noise"]])
    noise = noise or (lambda k: draws[k])
    grid = requests.grid_of(request, 50)

    @jax.jit
    def run():
        denoise = change(requests.guided(estimator(*encoder()), given, scale))
        problem = requests.problem_of(denoise, PROCESS, grid, noise)
        return requests.solve(request, problem, trace=trace)

    return run()


def followed(g, name, found, tolerance=1e-3):
    """Compares a trajectory; returns nothing."""
    _, seen = found
    keep = g["keep"] if len(g[f"{name}_sample"]) == 5 else np.arange(len(seen.x))
    like = g[f"{name}_sample"][0]
    for i, step in enumerate(keep):
        for what, got in (("sample", seen.x), ("xstart", seen.x0)):
            if f"{name}_{what}" in g:
                want = g[f"{name}_{what}"][i]
                np.testing.assert_allclose(theirs(got[step], like), want, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "request_"),
    [
        ("ancestral", Request()),
        pytest.param("ancestral_large", Request(sampler="ancestral_large"), marks=pytest.mark.slow),
        pytest.param("ddim_eta0", Request(sampler="ddim"), marks=pytest.mark.slow),
        ("ddim_eta0.5", Request(sampler="ddim", eta=0.5)),
        pytest.param("ddim_eta1", Request(sampler="ddim", eta=1.0), marks=pytest.mark.slow),
        pytest.param("ddim_respace10", Request(sampler="ddim", steps=10), marks=pytest.mark.slow),
        ("ancestral_respace10", Request(steps=10)),
    ],
)
def test_samplers(g, name, request_):
    followed(g, name, loop(g, request_))


@pytest.mark.slow
def test_clipped(g):
    followed(g, "ancestral_clip", loop(g, Request(), change=guidance.clip))


@pytest.mark.slow
def test_constant_noise(g):
    draws = jnp.stack([ours(n) for n in g["noise"]])
    noise = lambda k: jnp.where(k == 0, draws[k], draws[k][:1])
    found = loop(g, Request(), noise=noise, trace=False)
    want = g["ancestral_constnoise_final"]
    np.testing.assert_allclose(theirs(found, want), want, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["inpaint_between", "inpaint_channels"])
def test_editing(g, name):
    known, mask = ours(g["inpaint_motion"]), ours(g[f"{name}_mask"])
    found = loop(g, Request(), change=lambda d: guidance.inpaint(d, known, mask))
    followed(g, name, found)
    np.testing.assert_array_equal(np.asarray(found[0])[mask], np.asarray(known)[mask])


def test_one_motion_after_the_other(g):
    process = processes.discrete(processes.cosine_betas(10))
    net = MotionTransformer(13, decoder=True, **TINY)
    params = params_of(manifest("tiny")["dip"])
    embed = jnp.asarray(g["ar_bert_embed"].swapaxes(0, 1))
    told = embed, jnp.asarray(~g["ar_bert_padding_mask"])
    draws = jnp.stack([ours(n) for n in g["ar_noise"]])
    estimate = functools.partial(estimator(net, params), process=process)
    grid = requests.grid_of(Request(), 10)

    def predict(i, prefix):
        given = {"told": told, "prefix": prefix, "drop": jnp.zeros(2, bool)}
        given["mask"] = jnp.ones((2, 8), bool)
        denoise = requests.guided(estimate, given, jnp.asarray(SCALE_AR)[:, None, None])
        noise = lambda k: draws[k]
        return requests.solve(Request(), requests.problem_of(denoise, process, grid, noise, i * 11))

    found = jax.jit(lambda p: requests.autoregressive(predict, p, 3))(ours(g["ar_prefix"]))
    want = g["ar_include0"]
    np.testing.assert_allclose(theirs(found[:, :20], want), want, rtol=0, atol=1e-3)


SCALE_AR = [2.5, 7.5]


def test_respacing():
    tables = load("tables")
    steps = {"1000_to_50": (50, "even"), "1000_ddim50": (50, "ddim"), "50_to_10": (10, "even")}
    steps |= {"50_ddim10": (10, "ddim"), "50_to_5": (5, "even")}
    for tag, (count, spacing) in steps.items():
        total = int(tag.split("_")[0])
        grid = requests.grid_of(Request(steps=count, grid=spacing), total)
        np.testing.assert_array_equal(grid[-2::-1] - 1, tables[f"respace_{tag}_map"])
        level = processes.discrete(processes.cosine_betas(total)).at(grid[::-1])
        betas = 1 - (level.alpha[1:] / level.alpha[:-1]) ** 2
        np.testing.assert_allclose(betas, tables[f"respace_{tag}_betas"], rtol=1e-9)
    abar = processes.discrete(processes.cosine_betas(10)).at(np.arange(1, 11)).alpha ** 2
    np.testing.assert_allclose(abar, tables["cosine10_alphas_cumprod"], rtol=1e-12)
    np.testing.assert_allclose(processes.linear_betas(50), tables["linear50_betas"], rtol=1e-12)


# ---- losses --------------------------------------------------------------------------------------


def estimated(kind, x, noise, t, told, mask):
    net, params = encoder(kind)
    params = jax.tree.map(jnp.asarray, params)
    given = {"told": told, "mask": mask}
    t = jnp.asarray(t, jnp.float32)[:, None, None] + 1  # theirs count from 0
    x0 = ours(x)
    x_t = PROCESS.perturb(x0, ours(noise), PROCESS.at(t))
    return jax.jit(estimator(net, params))(x_t, t, given), x0


def close(got, want):
    np.testing.assert_allclose(np.asarray(got), want, rtol=0, atol=1e-5)


def test_the_loss_of_texts():
    g = load("losses")
    mask = jnp.asarray(g["mask"][:, 0, 0])
    x, x0 = estimated("text", g["x"], g["noise"], g["t"], text_of(g["text_embed"]), mask)
    found = losses.terms(x, x0, mask)
    close(found["x0"], g["hml_rot_mse"])
    close(found["loss"], g["hml_loss"])
    close(losses.masked(x, x0, mask & False), g["masked_l2_empty"])


ONE_BY_ONE = [pytest.param(name, marks=pytest.mark.slow) for name in ("100", "010", "001")]


@pytest.mark.parametrize("weights", ["111", *ONE_BY_ONE])
def test_geometric_losses(weights):
    g = load("losses")
    mask = jnp.asarray(g["mask"][:, 0, 0])
    label = jnp.asarray(g["action"][:, 0])
    x, x0 = estimated("action", g["x6"], g["noise6"], g["t"], label, mask)
    velocity, positions, contact = map(float, weights)
    # The stand-in for SMPL: a joint is at the first three numbers of its row.
    body = lambda x: x.reshape(*x.shape[:2], 25, 6)[:, :, :24, :3]
    found = losses.terms(
        *(x, x0, mask, losses.Weights(positions, contact, velocity)),
        joints_of=body,
        feet=(7, 10, 8, 11),
        rows=6,
    )
    names = {"x0": "rot_mse", "positions": "rcxyz_mse", "contact": "fc", "velocity": "vel_mse"}
    for name, value in found.items():
        close(value, g[f"geo{weights}_{names.get(name, name)}"])


# ---- training ------------------------------------------------------------------------------------


class Passed:
    """A feed whose batch is what it is fed."""

    @staticmethod
    def take(fed, key, step):
        return fed


@pytest.mark.slow
def test_four_steps_of_training():
    g = load("train_steps")
    net, params = encoder()

    def loss(params, batch, key):
        given = {"told": (batch["text"], jnp.ones((3, 1), bool))}
        given |= {"mask": batch["mask"], "drop": batch["drop"]}
        t = batch["t"][:, None, None]
        x_t = PROCESS.perturb(batch["x"], batch["noise"], PROCESS.at(t))
        x = estimator(net, params)(x_t, t, given)
        each = losses.terms(x, batch["x"], batch["mask"])["loss"]
        return each.mean(), {f"loss{i}": each[i] for i in range(3)}

    nothing = dict.fromkeys(
        ("condition", "condition_like", "sample", "data", "show", "write", "evaluate")
    )
    system = System(init=lambda key: params, loss=loss, request=None, **nothing)
    optimizer = {"learning_rate": 1e-4, "schedule": "constant", "warmup_steps": 0.0, "final": 1.0}
    optimizer |= {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "clip": 0.0}
    config = ConfigDict(
        {"seed": 0, "batch_size": 3, "accumulate": 1, "optimizer": optimizer}
        | {"ema": {"ema": {"kind": "constant", "decay": 0.5}}}
    )
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1, 1), meshes.AXES)
    _, shardings = update.state_shapes(system, config, mesh)
    state = update.init_state(system, config, shardings)
    start = jax.tree.map(np.asarray, state.params)
    step = jax.jit(update.step_function(system, config, Passed, mesh))
    average = start
    for i in range(4):
        batch = {
            "x": ours(g["x"][i]),
            "noise": ours(g["noise"][i]),
            "t": jnp.asarray(g["t"][i] + 1, jnp.float32),
            "text": jnp.asarray(g["text_embed"][i].swapaxes(0, 1)),
            "drop": jnp.asarray(g["drop"][i] > 0),
            "mask": jnp.asarray(g["mask"][:, 0, 0]),
        }
        state, metrics = step(state, batch, np.float32(0))
        got = [metrics[f"loss{j}"] for j in range(3)]
        np.testing.assert_allclose(got, g["losses"][i], rtol=0, atol=2e-5)
        np.testing.assert_allclose(metrics["grad_norm"], g["grad_norms"][i], rtol=0, atol=2e-5)
        average = jax.tree.map(lambda e, p: e + 0.5 * (p - e), average, state.params)
    want = trees.flatten(params_of_named(g, "param4|"))
    found = trees.flatten(jax.tree.map(np.asarray, state.params))
    for path, value in want.items():
        np.testing.assert_allclose(found[path], value, rtol=0, atol=1e-6, err_msg=path)
    for got, wanted in zip(*map(jax.tree.leaves, (state.ema["ema"], average)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-7)
    moved = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (start, state.params)))]
    assert max(moved) > 3e-4


def params_of_named(g, prefix):
    from diffjax.systems.mdm import published

    state = {k.removeprefix(prefix): v for k, v in g.items() if k.startswith(prefix)}
    return trees.unflatten(published.to_params(state, "golden"))
