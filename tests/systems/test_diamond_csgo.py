"""DIAMOND's CSGO model against the released code's arrays: noised past frames, upsampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diamond_original import load, near, network, ours, stacked, theirs

from diffjax.systems.diamond import csgo, losses, sampling
from diffjax.systems.diamond.denoiser import Denoiser, Levels
from diffjax.systems.diamond.sampling import next_frame

LEVELS = Levels(mean=-1.2)


def draws(g, prefix):
    offset = lambda i, z: ours(g[f"{prefix}/s{i}/{z}_offset"])
    one = lambda i, z: losses.Draws(
        g[f"{prefix}/s{i}/{z}_sigma"], offset(i, z), ours(g[f"{prefix}/s{i}/{z}_noise"])
    )
    noised = f"{prefix}/s0/zc_sigma" in g
    return lambda i: one(i, "z")._replace(past=one(i, "zc") if noised else None)


def denoiser(name, quantiser="floor"):
    net, params = network(name)
    return Denoiser(net, sigma_offset=0.1, quantiser=quantiser), params


def test_what_the_network_is_told():
    g = load("csgo")
    told = []

    class Net:
        def apply(self, params, x, past, c_noise, act, c_noise_past):
            told.append((c_noise, c_noise_past))

    made, x = Denoiser(Net(), sigma_offset=0.1), jnp.zeros((3, 1, 1, 1))
    made.output({}, x, jnp.asarray(g["cond/sigma"]), x, None, jnp.asarray(g["cond/sigma_cond"]))
    made.output({}, x, jnp.asarray(g["cond/sigma"]), x)
    near(told[0][0], g["cond/c_noise"], 1e-6)
    near(told[0][1], g["cond/c_noise_cond"], 1e-6)
    assert told[1][1] is None and not g["cond/c_noise_cond_none"].any()


def test_bicubic():
    g = load("csgo")
    near(theirs(csgo.blow_up(ours(g["bicubic/in"]))), g["bicubic/out_x5"], 1e-5)
    near(theirs(csgo.blow_up(ours(g["sample/up_low"]), 2)), g["sample/up_low_bicubic"], 1e-5)
    np.testing.assert_allclose(csgo.weights(7, 5).sum(1), 1, atol=1e-6)


@pytest.mark.slow
def test_loss_of_the_denoiser():
    g = {k: v for k, v in load("csgo").items() if k.startswith("loss_lowres/")}
    made, params = denoiser("csgo")
    act = jnp.asarray(g["loss_lowres/act"], jnp.float32)
    batch = {"obs": ours(g["loss_lowres/obs"]), "act": act, "mask": g["loss_lowres/mask"]}
    port = draws(g, "loss_lowres")
    run = jax.jit(lambda p: losses.denoiser_loss(made, p, batch, port, LEVELS, trace=True))
    check_steps(g, "loss_lowres", *run(params))


@pytest.mark.slow
def test_loss_of_the_upsampler():
    g = {k: v for k, v in load("csgo").items() if k.startswith("loss_up/")}
    made, params = denoiser("upsampler")
    obs = ours(g["loss_up/obs_full"])
    batch = {"obs": obs, "low": csgo.blow_up(ours(g["loss_up/obs_low"]), 2)}
    batch["mask"] = jnp.ones(obs.shape[:2], bool)
    port = draws(g, "loss_up")
    run = jax.jit(lambda p: losses.denoiser_loss(made, p, batch, port, LEVELS, 1, trace=True))
    check_steps(g, "loss_up", *run(params))


def check_steps(g, prefix, loss, steps):
    near(loss, g[f"{prefix}/loss"], 1e-4)
    for i, step in enumerate(steps):
        near(theirs(step.past), g[f"{prefix}/s{i}/prev_obs_in"], 1e-4)
        near(theirs(step.noisy), g[f"{prefix}/s{i}/noisy"], 1e-4)
        near(theirs(step.output), g[f"{prefix}/s{i}/model_output"], 1e-4)
        off = np.abs(theirs(step.denoised) - g[f"{prefix}/s{i}/denoised"])
        assert np.mean(off > 1e-6) <= 0.005 and off.max() < 0.00785


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fast_next", "hq_next"])
def test_the_next_frame(name):
    """Before each step the past frames get more noise, which stays on them."""
    g = load("csgo")
    sampler = sampling.CSGO_NEXT[name == "hq_next"]
    made, params = denoiser("csgo", "none")
    act = jnp.asarray(g["sample/act"], jnp.float32)
    draw = lambda k: ours(g[f"sample/{name}/draw{2 * k + 2}"])
    seen = []

    def denoise(x, sigma, past, sigma_past):
        jax.debug.callback(lambda past: seen.append(theirs(past)), past, ordered=True)
        return made(params, x, sigma, past, act, sigma_past)

    z, past = ours(g[f"sample/{name}/draw0"]), stacked(g["sample/obs"])
    run = jax.jit(lambda z: next_frame(sampler, denoise, z, past, past_noise=draw, trace=True))
    x, trace = run(z)
    jax.effects_barrier()
    near(np.stack(seen), g[f"sample/{name}/cond_in"], 1e-4)
    near(theirs(trace.x), g[f"sample/{name}/traj"][1:], 1e-4)
    near(theirs(x), g[f"sample/{name}/traj"][-1], 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fast_up", "hq_up"])
def test_the_upsampling(name):
    """Churned at every step, the one at s_tmin too."""
    g = load("csgo")
    sampler = sampling.CSGO_UPSAMPLING[name == "hq_up"]
    near(sampler.grid(), g[f"sample/{name}/sigmas"], 1e-6)
    made, params = denoiser("upsampler", "none")
    past = jnp.concatenate(
        [ours(g["sample/up_prev_full"][:, 0]), csgo.blow_up(ours(g["sample/up_low"]), 2)], -1
    )
    drawn = ours(g[f"sample/{name}/noise"])
    denoise = sampling.bound(made, params)
    run = jax.jit(
        lambda z: next_frame(sampler, denoise, z, past, lambda k: drawn[k + 1], trace=True)
    )
    x, trace = run(drawn[0])
    near(theirs(trace.x), g[f"sample/{name}/traj"][1:], 1e-4)
    near(theirs(x), g[f"sample/{name}/traj"][-1], 1e-4)
