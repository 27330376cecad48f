"""What DIAMOND's three networks are trained on. Alonso et al. 2024, released code.

The denoiser on its own outputs, a frame at a time; the reward and end model by cross-entropy; the
policy by REINFORCE with lambda-returns, a baseline and an entropy bonus.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffjax.errors import UserError, choose
from diffjax.systems.diamond.denoiser import Denoiser, Levels, pixelwise, stack

# ---- the denoiser --------------------------------------------------------------------------------


class Draws(NamedTuple):
    """Standard normal draws of one autoregressive step.

    Attributes:
      level: [B], of sigma.
      offset: [B, 1, 1, C], a number a channel.
      noise: [B, H, W, C].
      past: the same three for the past frames, with n C channels, or None: they stay clean.
    """

    level: jax.Array
    offset: jax.Array
    noise: jax.Array
    past: "Draws | None" = None


def draw(keys: jax.Array, shape: tuple[int, int, int], past_channels: int = 0) -> Draws:
    """`Draws` with a key a sample, so that a sample's noise does not depend on its batch.

    Args:
      keys: [B] typed keys.
      shape: of a frame, (H, W, C).
      past_channels: n C where the past frames get noise, else 0.
    """

    def one(key):
        level, offset, noise = jax.random.split(key, 3)
        return (
            jax.random.normal(level),
            jax.random.normal(offset, (1, 1, shape[-1])),
            jax.random.normal(noise, shape),
        )

    drawn = Draws(*jax.vmap(one)(keys))
    if not past_channels:
        return drawn
    others = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
    return drawn._replace(past=draw(others, (*shape[:2], past_channels)))


def add_noise(draws: Draws, frames, levels: Levels, sigma_offset: float):
    """(frames + sigma_offset o + sigma n, sigma [B]) for frames [B, H, W, C]."""
    sigma = levels(draws.level)
    noisy = frames + sigma_offset * draws.offset + pixelwise(sigma) * draws.noise
    return noisy, sigma


# name -> (next frame y, frame before it p, sigma/sigma_max) -> what is noised, to find y in it.
# "next" is as published. The others make a start from the noised previous frame one that training
# knows (`sampling.STARTS`): "noised_prev" is the authors' proposal, literally, and "bridge" what
# Euler's method passes through on its way from p + sigma_max z to y.
OBJECTIVES = {
    "next": lambda y, p, ratio: y,
    "noised_prev": lambda y, p, ratio: p,
    "bridge": lambda y, p, ratio: y + jnp.minimum(ratio, 1) * (p - y),
}


class Step(NamedTuple):
    """What one autoregressive step of `denoiser_loss` saw, [B, H, W, ...] but the last two.

    Attributes:
      noisy, output, target: the noisy frame, F, and what F should have been.
      denoised: D, which takes the place of the frame in the steps after it.
      past: what it was conditioned on, before the division by sigma_data.
      sigma: [B].
      loss: the mean over the samples that count.
    """

    noisy: jax.Array
    output: jax.Array
    target: jax.Array
    denoised: jax.Array
    past: jax.Array
    sigma: jax.Array
    loss: jax.Array


def denoiser_loss(
    denoiser: Denoiser,
    params,
    batch: dict,
    draws: Callable[[int], Draws],
    levels: Levels = Levels(),
    past_frames: int = 4,
    objective: str = "next",
    sigma_max: float = 5.0,
    trace: bool = False,
):
    """The mean of |F - (y - c_skip x)/c_out|^2 over autoregressive steps, as (loss, [Step]).

    A batch has past_frames + steps frames. Step i estimates frame past_frames + i from the ones
    before it, which from the second step on are the network's own estimates: each frame is replaced
    by one evaluation of D at the noise level of its step, without a gradient. So the network learns
    to go on from what it made.

    Args:
      batch: "obs" [B, T, H, W, C] in [-1, 1]; "act" int [B, T], or float [B, T, actions], where the
        network takes them; "mask" bool [B, T], False: the frame is padding and does not count.
        "low" [B, T, H, W, C], for an upsampler: every frame as it was blown up, beside which the
        network sees the frames before it.
      draws: i -> the `Draws` of step i. Where they have `past`, the past frames get noise too.
      objective: one of `OBJECTIVES`: what is noised. Without offset noise the target of
        "noised_prev" grows without bound towards small noise.
      sigma_max: where the sampler starts; only "bridge" looks at it.
      trace: whether the list has the steps, else it is empty.

    Returns:
      (scalar, list). A step whose samples are all padding counts as 0; in the original it is NaN.

    Raises:
      UserError: no frame after the past ones, or another objective.
    """
    clean = choose(objective, OBJECTIVES, "objective of DIAMOND's denoiser:")
    frames, steps = batch["obs"], batch["obs"].shape[1] - past_frames
    if steps < 1:
        raise UserError(
            f"denoiser loss: segments of {frames.shape[1]} frames, of which {past_frames} are past"
        )
    seen, total = [], jnp.zeros(())
    for i in range(steps):
        drawn, at = draws(i), past_frames + i
        target_frame, count = batch["obs"][:, at], batch["mask"][:, at]
        past, sigma_past = stack(frames[:, i:at]), None
        if drawn.past is not None:
            past, sigma_past = add_noise(drawn.past, past, levels, denoiser.sigma_offset)
        if "low" in batch:
            past = jnp.concatenate([past, batch["low"][:, at]], -1)
        act = batch["act"][:, i:at] if "act" in batch else None
        ratio = pixelwise(levels(drawn.level)) / sigma_max
        noised = clean(target_frame, frames[:, at - 1], ratio)
        noisy, sigma = add_noise(drawn, noised, levels, denoiser.sigma_offset)
        output = denoiser.output(params, noisy, sigma, past, act, sigma_past)
        c = denoiser.coefficients(sigma)
        target = (target_frame - pixelwise(c.skip) * noisy) / pixelwise(c.out)
        loss = masked_mean(jnp.mean(jnp.square(output - target), (1, 2, 3)), count)
        made = jax.lax.stop_gradient(denoiser.quantise(denoiser.estimate(noisy, sigma, output)))
        frames = frames.at[:, at].set(made)
        total = total + loss / steps
        if trace:
            seen.append(Step(noisy, output, target, made, past, sigma, loss))
    return total, seen


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean of values where mask, of the same shape; 0 where it is False everywhere."""
    mask = mask.astype(values.dtype)
    return jnp.sum(values * mask) / jnp.maximum(jnp.sum(mask), 1)


# ---- reward and end ------------------------------------------------------------------------------


def reward_end_loss(net, params, batch: dict):
    """Cross-entropy of the reward's sign plus that of the end, as (loss, metrics).

    Every transition of a segment counts the same, from the first, which starts from no state.

    Args:
      net: as `nets.reward_end.RewardEnd`.
      batch: "obs" [B, T, H, W, C] in [-1, 1]; "act" int [B, T]; "rew" float [B, T]; "end" [B, T],
        nonzero at deaths; "mask" bool [B, T], False: padding; "final_observation" [B, H, W, C], the
        frame after a sample's death, anything where it has none (at most one a segment).

    Returns:
      (scalar, {"loss_rew", "loss_end", "confusion_rew" [3, 3], "confusion_end" [2, 2]}): counts,
      with a row for each truth and a column for each prediction.
    """
    end = batch["end"][:, :-1] > 0
    final = batch["final_observation"][:, None]
    following = jnp.where(end[..., None, None, None], final, batch["obs"][:, 1:])
    act, mask = batch["act"][:, :-1], batch["mask"][:, :-1]
    args = (batch["obs"][:, :-1], act, following)
    of_rew, of_end, _ = net.apply({"params": params}, *args)
    rew = jnp.sign(batch["rew"][:, :-1]).astype(jnp.int32) + 1
    metrics = {}
    for name, logits, label in (("rew", of_rew, rew), ("end", of_end, end.astype(jnp.int32))):
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        metrics[f"loss_{name}"] = masked_mean(loss, mask)
        metrics[f"confusion_{name}"] = confusion(label, logits, mask)
    return metrics["loss_rew"] + metrics["loss_end"], metrics


def confusion(label: jax.Array, logits: jax.Array, mask: jax.Array) -> jax.Array:
    """[K, K] int32: how often truth i (row) was predicted as j (column), where mask."""
    k = logits.shape[-1]
    pairs = jnp.where(mask, label * k + jnp.argmax(logits, -1), k * k)
    return jnp.bincount(pairs.reshape(-1), length=k * k).reshape(k, k).astype(jnp.int32)


# ---- actor and critic ----------------------------------------------------------------------------


def lambda_returns(rew, end, trunc, bootstrap, gamma: float = 0.985, lam: float = 0.95):
    """R_t = sign(r_t) + gamma (1 - e_t) [(1 - u_t)(1 - lambda) + u_t] V'_t + ... R_{t+1}.

    The rest is (1 - max(e_t, u_t)) gamma lambda R_{t+1}, with R_T = V'_{T-1}: a step that was
    merely cut short, u_t = 1, is worth all of V'_t, the value of the state after it.

    Args:
      rew, end, trunc: [B, T] rewards, of which only the sign counts; deaths and cuts as 0 or 1.
      bootstrap: V' [B, T].

    Returns:
      [B, T] float32, without a gradient.
    """
    rew, end, trunc, bootstrap = (
        jnp.swapaxes(jax.lax.stop_gradient(a).astype(jnp.float32), 0, 1)
        for a in (rew, end, trunc, bootstrap)
    )
    now = jnp.sign(rew) + gamma * (1 - end) * ((1 - trunc) * (1 - lam) + trunc) * bootstrap
    later = (1 - jnp.maximum(end, trunc)) * gamma * lam

    def step(following, at):
        now, later = at
        total = now + later * following
        return total, total

    return jnp.swapaxes(jax.lax.scan(step, bootstrap[-1], (now, later), reverse=True)[1], 0, 1)


def actor_critic_loss(
    logits, values, act, returns, value_weight: float = 1.0, entropy_weight: float = 0.001
):
    """-log pi(a) (R - V) - entropy + (V - R)^2, means over [B, T], as (loss, metrics).

    Args:
      logits: float [B, T, A].
      values, returns: float [B, T].
      act: int [B, T].

    Returns:
      (scalar, {"loss_actions", "loss_entropy", "loss_values", "policy_entropy"}): the parts as they
      are added; the last in bits, whereas the loss has it in nats.
    """
    log_p = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(log_p, act[..., None], -1)[..., 0]
    entropy = jnp.mean(-jnp.sum(jnp.exp(log_p) * log_p, -1))
    advantage = jax.lax.stop_gradient(returns - values)
    metrics = {
        "loss_actions": -jnp.mean(chosen * advantage),
        "loss_entropy": -entropy_weight * entropy,
        "loss_values": value_weight * jnp.mean(jnp.square(values - returns)),
    }
    total = sum(metrics.values())
    return total, {**metrics, "policy_entropy": entropy / np.log(2)}
