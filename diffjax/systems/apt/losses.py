"""Adversarial losses and gradient penalties; every one is minimised.

    non-saturating  L_D = E softplus(-r) + E softplus(f),  L_G = E softplus(-f)
    relativistic    L_D = E softplus(f - r),               L_G = E softplus(r - f),  pairs by index
    approximate R1  L_D += lambda E (D(x + sigma eps) - D(x))^2, with t and condition of x's logit

r and f are logits of real and made samples. Lin et al. 2025a, print the first with
signs that disagree; this is the reading under which everything is minimised. The second is Lin et
al. 2025b's, after Huang et al. 2024.

For small sigma the penalty is sigma^2 |grad D|^2 in expectation, and exactly

    E (D(x + sigma eps) - D(x))^2 = sigma^2 |g|^2 + sigma^4/4 (2 |H|_F^2 + (tr H)^2)

for a quadratic D with gradient g and Hessian H: R1 (Mescheder et al. 2018) with gamma = 2 lambda
sigma^2 and some smoothing. sigma is a standard deviation, for data of unit variance.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffjax.errors import choose


class Family(NamedTuple):
    """Losses of logits [B] (or [B, frames]), float32, unreduced.

    Attributes:
      d: (real, fake) -> the discriminator's.
      g: (real, fake) -> the generator's; real is a constant, and None where `paired` is False.
      paired: whether the generator's loss looks at real samples, with the condition and the time
        of the made ones.
    """

    d: Callable
    g: Callable
    paired: bool


# softplus, never log(sigmoid(x) + small): that caps the gradient where it matters most.
def _softplus(x) -> jax.Array:
    return jax.nn.softplus(jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32)))


def _relativistic_g(real, fake) -> jax.Array:
    return _softplus(jax.lax.stop_gradient(real) - fake)


FAMILIES = {
    "non_saturating": Family(
        d=lambda real, fake: _softplus(-real) + _softplus(fake),
        g=lambda real, fake: _softplus(-fake),
        paired=False,
    ),
    "relativistic": Family(
        d=lambda real, fake: _softplus(fake - real), g=_relativistic_g, paired=True
    ),
}


def family(name: str) -> Family:
    """The losses of that name. Raises `UserError` where there are none."""
    return choose(name, FAMILIES, "adversarial loss:")


def gamma(weight: float, sigma: float) -> float:
    """2 lambda sigma^2: the gamma of (gamma/2) E |grad D|^2 that a penalty stands for."""
    return 2 * weight * sigma**2


# ---- gradient penalties: (critic, x, eps, sigma) -> (logits, penalty) ----------------------------


def finite_difference(critic: Callable, x, eps, sigma: float):
    """(D(x + sigma eps) - D(x))^2: the paper's.

    Wants a critic that computes in float32: in bfloat16 the difference at sigma = 0.01 is mostly
    rounding. x and the sum are made float32 here.
    """
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    x, eps = x.astype(dtype), eps.astype(dtype)
    logits = critic(x)
    return logits, jnp.square(critic(x + sigma * eps) - logits)


def directional(critic: Callable, x, eps, sigma: float):
    """(sigma eps . grad D(x))^2, by forward mode, which gives D(x) too: accurate in bfloat16.

    Its mean over eps is sigma^2 |grad D|^2 at any sigma: no curvature, no cancellation. The loss
    differentiates it again, which fused attention usually cannot: give D's network "einsum".
    """
    logits, slope = jax.jvp(critic, (x,), (eps.astype(x.dtype),))
    return logits, jnp.square(sigma * slope)


def exact(critic: Callable, x, eps, sigma: float):
    """sigma^2 |grad D(x)|^2, of each sample [B]; eps is not looked at. Reverse over reverse."""
    logits, pull = jax.vjp(critic, x)
    (gradient,) = pull(jnp.ones_like(logits))
    return logits, sigma**2 * jnp.sum(jnp.square(gradient), tuple(range(1, x.ndim)))


MODES = {"jvp": directional, "fd": finite_difference, "exact": exact}


def penalised(critic: Callable, x, eps, sigma: float, mode: str = "jvp"):
    """(D(x), penalty of each sample): approximate R1 on real x, R2 on made x.

    Args:
      critic: x -> logits [B] (or [B, frames]) float32, with parameters, time and condition bound:
        both sides of a difference have the same, or it would measure how D depends on t.
      x: [B, ...], clean.
      eps: standard normal, of x's shape.
      sigma: the perturbation's standard deviation: 0.01 for images, 0.1 for video.
      mode: "jvp", "fd" or "exact".

    Returns:
      logits, and what lambda multiplies after a mean: of logits' shape, or [B] for "exact".

    Raises:
      UserError: another mode.
    """
    return choose(mode, MODES, "mode of the gradient penalty:")(critic, x, eps, sigma)
