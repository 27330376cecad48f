"""Training objectives: which times to train at, how much each counts, and the loss.

    w(t) |D(x_t, t) - x0|^2,    x_t = A(t) x0 + sigma(t) n,    t = time(standard draw)

Any target (eps, v, x0, velocity) is this loss with another weight, because each is linear in x0 at
fixed x_t: |eps error|^2 = snr |x0 error|^2 with snr = (alpha/sigma)^2.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from diffjax.core import processes
from diffjax.core.processes import Process
from diffjax.errors import UserError


@dataclass(frozen=True)
class Objective:
    """Which t to train at and how much it counts.

    time: a standard draw -> t, in the process' own time.
    weight: t -> w, on the squared error of x0.
    standard: which draw `time` takes: "normal" (mean 0, variance 1) or "uniform" ([0, 1)).
    process: the name of the process whose time that is; "" for any.
    """

    time: Callable[[jax.Array], jax.Array]
    weight: Callable[[jax.Array], jax.Array]
    standard: str = "normal"
    process: str = ""

    def sample(self, key: jax.Array, shape: tuple[int, ...], stratified: bool = False) -> jax.Array:
        """Times of `shape` float32, e.g. [B, 1, 1, 1] so that they broadcast against x.

        stratified: whether the rows share out the distribution (`strata`): each is still drawn from
        all of it, but together they cover it evenly, and the mean loss of a batch is less noisy.
        """
        if stratified:
            return self.quantile(strata(key, shape[0]).reshape(shape))
        return self.time(self.draw(key, shape))

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """What `time` takes, of `shape` float32."""
        return {"normal": jax.random.normal, "uniform": jax.random.uniform}[self.standard](
            key, shape
        )

    def quantile(self, u: jax.Array) -> jax.Array:
        """The time that `time` makes of the standard draw's quantile u in (0, 1); u's shape."""
        return self.time(jax.scipy.special.ndtri(u) if self.standard == "normal" else u)


def strata(key: jax.Array, rows: int) -> jax.Array:
    """[rows] float32 in (0, 1): one draw in each of as many equal parts, in random order.

    The order matters: without it row i would see only its own part of the noise levels, and with
    it the classes or sources that a loader puts there. Stratified sampling; Kingma et al. 2021
    ("Variational diffusion models") use a relative with one draw for all rows.
    """
    order, within = jax.random.split(key)
    part = jax.random.permutation(order, rows)
    u = (part + jax.random.uniform(within, (rows,))) / rows
    # The ends themselves are infinitely far out in a normal distribution.
    return jnp.clip(u, 2.0**-25, 1 - 2.0**-24)


def loss(objective: Objective, process: Process, denoiser: Callable, x0, t, n) -> jax.Array:
    """w(t) (D(x_t, t) - x0)^2, elementwise: x0's shape, unreduced.

    EDM eq. 2 and 8 (appendix B.6). EDM's training sums it over a picture and means over the batch.

    Args:
      objective: only its weight is used here.
      denoiser: denoise(x, t) -> x0, with conditioning bound.
      x0, n: clean data and noise of unit variance in the process' colour; the same shape.
      t: process time, a scalar or an array that broadcasts against x0: [B, 1, 1, 1] for one time a
        picture.

    Raises:
      UserError: t's shape does not broadcast against x0's, or the objective counts time on another
        process.
    """
    if objective.process and process.name and objective.process != process.name:
        raise UserError(
            f"loss: the objective's times and weights are for the process {objective.process}, "
            f"not for {process.name}"
        )
    try:
        fits = np.broadcast_shapes(jnp.shape(t), x0.shape) == x0.shape
    except ValueError:
        fits = False
    if not fits or n.shape != x0.shape:
        raise UserError(
            f"loss: t {jnp.shape(t)} and n {n.shape} do not fit x0 {x0.shape}: t must broadcast "
            "against x0 (one time a picture is [B, 1, 1, 1]) and n have its shape"
        )
    x_t = process.perturb(x0, n, process.at(t))
    return objective.weight(t) * (denoiser(x_t, t) - x0) ** 2


def edm(p_mean: float = -1.2, p_std: float = 1.2, sigma_data: float = 0.5) -> Objective:
    """EDM, for `processes.edm`: ln t ~ N(p_mean, p_std^2), w = (t^2 + sd^2)/(t sd)^2.

    The weight is 1/c_out^2: with EDM's preconditioning it is a unit weight on F. Karras et al.
    2022, Table 1 ("Ours"). EDM2 uses p_mean = -0.4, p_std = 1.
    """
    return Objective(
        time=lambda z: jnp.exp(p_mean + p_std * z),
        weight=lambda t: (t**2 + sigma_data**2) / (t * sigma_data) ** 2,
        process="edm",
    )


def relay(
    quantile: float = 0.93,
    p_mean: float = -1.2,
    p_std: float = 1.2,
    sigma_data: float = 0.5,
    lowest: float = 0.0075,
) -> Objective:
    """Relay diffusion, for `processes.blurred`: EDM's times below their `quantile`, EDM's weight.

    t = exp(p_mean + p_std Phi^-1(u quantile)), u uniform. Teng et al. 2023, released code: u is
    kept above Phi((ln lowest - p_mean)/p_std) * quantile. They meant t >= lowest, for which one
    divides by the quantile; the floor that comes out is a little lower (0.0071 for 0.0075).

    Args:
      quantile: L, the share of EDM's distribution that is trained; its end is the largest t, 1.77
        at 0.93.
      sigma_data: standard deviation of x0.
    """
    if not 0 < quantile <= 1 or not p_std > 0 or not sigma_data > 0 or not lowest > 0:
        raise UserError(
            f"objectives.relay: quantile {quantile} must be in (0, 1], p_std {p_std}, sigma_data "
            f"{sigma_data} and lowest {lowest} above 0"
        )
    low = float(scipy.special.ndtr((np.log(lowest) - p_mean) / p_std) * quantile)
    # The largest float32 below 1: at quantile 1 the last draw would be infinitely far out.
    high = 1 - 2.0**-24
    time = lambda u: jax.scipy.special.ndtri(jnp.minimum(jnp.maximum(u, low) * quantile, high))
    return Objective(
        time=lambda u: jnp.exp(p_mean + p_std * time(u)),
        weight=lambda t: jnp.minimum((t**2 + sigma_data**2) / (t * sigma_data) ** 2, 1e5),
        standard="uniform",
    )


def vp(beta_d: float = 19.9, beta_min: float = 0.1, eps_t: float = 1e-5) -> Objective:
    """VP, for `processes.vp`: t uniform in (eps_t, 1], w = 1/ratio^2, an unweighted eps loss.

    Song et al. 2021b; EDM Table 1, "VP".
    """
    return Objective(
        time=lambda u: 1 + u * (eps_t - 1),
        weight=lambda t: 1 / jnp.expm1(beta_d * t**2 / 2 + beta_min * t),
        standard="uniform",
        process=processes.vp(beta_d, beta_min).name,
    )


def ve(sigma_min: float = 0.02, sigma_max: float = 100.0) -> Objective:
    """VE, for `processes.ve`: ln sigma uniform in the range, t = sigma^2, w = 1/sigma^2.

    Song et al. 2021b; EDM Table 1, "VE".
    """
    return Objective(
        time=lambda u: (sigma_min * (sigma_max / sigma_min) ** u) ** 2,
        weight=lambda t: 1 / t,
        standard="uniform",
        process="ve",
    )


def flow(mean: float = 0.0, std: float = 1.0) -> Objective:
    """Flow, for `processes.flow()`: t = sigmoid(mean + std z), w = 1/t^2, a unit weight on n - x0.

    Logit-normal times: Esser et al. 2024, section 3.1.
    """
    return Objective(
        time=lambda z: jax.nn.sigmoid(mean + std * z),
        weight=lambda t: 1 / t**2,
        process="flow",
    )


def uniform_flow(eps_t: float = 0.0) -> Objective:
    """Flow, for `processes.flow()`: t uniform in (0, 1], w = 1/t^2, a unit weight on n - x0.

    Rectified flow: Liu et al. 2023, eq. 1. With eps_t, t is in (eps_t, 1 - eps_t]: a denoiser that
    is told sigma/alpha needs t < 1.
    """
    return Objective(
        time=lambda u: (1 - eps_t) - u * (1 - 2 * eps_t),
        weight=lambda t: 1 / t**2,
        standard="uniform",
        process="flow",
    )


def discrete(steps: int, weight: Callable = jnp.ones_like) -> Objective:
    """DDPM, for `processes.discrete`: t uniform among 1..steps.

    Args:
      steps: T.
      weight: t -> w on x0's squared error. The default is an x0 loss; `snr(process)` an eps loss
        (Ho et al. 2020, eq. 14); `min_snr(process)` the clipped one.
    """
    return Objective(
        time=lambda u: jnp.minimum(jnp.floor(u * steps), steps - 1) + 1,
        weight=weight,
        standard="uniform",
        process=f"discrete({steps} steps)",
    )


def snr(process: Process) -> Callable:
    """t -> (alpha/sigma)^2: as a weight it turns the x0 loss into the eps loss."""

    def weight(t):
        level = process.at(t)
        return (level.alpha / level.sigma) ** 2

    return weight


def min_snr(process: Process, gamma: float = 5.0) -> Callable:
    """t -> min(snr, gamma): Hang et al. 2023, the weight for x0.

    On other targets the same loss has the weight min(snr, gamma)/snr (eps) or /(snr + 1) (v).
    """
    of = snr(process)
    return lambda t: jnp.minimum(of(t), gamma)


def p2(process: Process, gamma: float = 1.0, k: float = 1.0) -> Callable:
    """t -> snr/(k + snr)^gamma: Choi et al. 2022 (P2), their 1/(k + snr)^gamma on the eps loss.

    Takes weight from the last, imperceptible noise; gamma = 0 is the eps loss.
    """
    of = snr(process)
    return lambda t: of(t) / (k + of(t)) ** gamma
