"""A base whose samples start from pictures (`System.start`), taught along its own path.

Relay diffusion's second stage (Teng et al. 2023) is one: its process blurs while it adds noise,

    x_t = A(t) x0 + sigma(t) n,    A a blur of each patch, n of the process' colour

and its noisiest state, at `Backbone.start`, still holds the small picture. The straight path of
`consistency` is not there: to scale x_t to x0 + r n takes one ratio r = sigma/A for all of x, and
here each frequency has its own. So nothing is converted. One step of distillation is

    x = A x0 + sigma n                                 at t_n
    x' = A' D_teacher(x, t_n) + sigma' n^              n^ = (x - A D_teacher)/sigma, at t_{n-1}
    target = stop_gradient D_student(x', t_{n-1})      x' itself where t_{n-1} = 0
    loss = E |D_student(x, t_n) - target|^2/u_n^2      u = t/(1 + t)

x' is relay diffusion's own step without new noise (eta = 0), `samplers.ddim` with delta = 0.

**Why the target is right.** With D = E[x0 | x_t] it is a step along

    dx/dt = dA/dt D + dsigma/dt n^

the mean of the paths' velocities that meet in x. Whatever A and the colour of n, this field carries
the distribution of x_t from t to t' (it is flow matching's argument, Lipman et al. 2023, theorem 1,
and uses no score). Then x0 = f(x, t), its end at t = 0, is constant along it, f(x, 0) = x since
A(0) = 1, and E |..|^2 is least where the student is f. The step holds D and n^ still, so that it
errs by O(h^2); with the solver `heun` the means of both ends' D are held, relay's second-order
corrector.

Where A = 1, all of this is `consistency` on the same times (a test holds it), the loss's weight
included: u is the straight path's time.

In training the start is A(T) x0 + sigma(T) n, of which the small picture is all but the last of
the blur; sampling starts where the base does, from a picture enlarged (`System.problem`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.core import samplers
from diffjax.core.processes import Process
from diffjax.errors import choose
from diffjax.systems.apt import alternation, consistency, timesteps

OTHER = 2**32 - 1  # a stream above every row, of a colour's second draws


def coloured(process: Process, white, key: jax.Array, rows: jax.Array) -> jax.Array:
    """White noise [B, ...] in the process' colour; its second draws are made of `key`, too."""
    other = alternation.normal(jax.random.fold_in(key, OTHER), rows, white.shape[1:])
    return process.colour(white, other)


def mean(process: Process, t: float, x0) -> jax.Array:
    """A(t) x0: what the noise of a state is added to."""
    return process.apply(process.at(t).cast(x0.dtype).alpha, x0)


def times(shares):
    """t of the straight path's times u, shares of noise: u/(1 - u), noise levels as t is here."""
    return shares / (1 - shares)


def grid(steps: int, shift: float, end: float) -> np.ndarray:
    """[steps + 1] float64, decreasing to 0: t of a sampler's few steps from the share `end`."""
    return times(end * timesteps.trailing(steps, shift))


def step(process: Process, denoise: Callable, x, t, t_next, solver: str = "euler") -> jax.Array:
    """x at t_next: relay diffusion's step without new noise.

    Args:
      denoise: (x, t) -> x0, of the teacher, with guidance in it.
      x: [B, ...]; t, t_next: [B, 1, ...], t > 0.
      solver: "euler", or "heun": the step again with the mean of both ends' x0, but to t = 0.

    Raises:
      UserError: another solver.
    """
    choose(solver, consistency.SOLVERS, "solver of the distillation:")
    now, end = process.at(t), process.at(t_next)
    move = lambda x0: process.perturb(x0, process.noise(x, x0, now), end)
    x0 = denoise(x, t)
    first = move(x0)
    if solver == "euler":
        return first
    again = samplers.mean_estimate(x, x0, first, denoise(first, t_next), now, end)
    return jnp.where(t_next > 0, move(again), first)


def loss(
    student: Callable,
    teacher: Callable,
    process: Process,
    x0,
    n,
    index,
    grid,
    *,
    solver: str = "euler",
    space: str = "v",
    huber: bool = False,
    average: Callable | None = None,
) -> jax.Array:
    """[B] float32: the distillation's loss of each sample; the module says which.

    Args:
      student, teacher: (x, t) -> x0 on `process`, condition bound.
      n: in the process' colour, [B, ...].
      index: int [B], in 1..N: of the time.
      grid: [N + 1] of the straight path's times, increasing from 0: `timesteps.consistency`.
      solver, space, huber: as `consistency`; space "x" leaves the loss's weight away.
      average: whose x0 is the target; None: the student's own, without a gradient.
    """
    shares = jnp.asarray(grid, x0.dtype)
    wide = lambda a: a.reshape(-1, *[1] * (x0.ndim - 1))
    u, before = wide(shares[index]), wide(shares[index - 1])
    t, t_next = times(u), times(before)
    x = process.perturb(x0, n, process.at(t))
    x_next = step(process, teacher, x, t, t_next, solver)
    wanted = jnp.where(t_next > 0, (average or student)(x_next, t_next), x_next)
    # Both as velocities of the straight path at the same share of noise: the same weights.
    slope = lambda x0: (x - x0) / u
    target = consistency.Target(x_next, wanted, slope(wanted))
    target = jax.tree.map(jax.lax.stop_gradient, target)
    return consistency.error(slope(student(x, t)), target, u, space, huber)


FRESH = {"consistency": 1.0, "ode": 0.0}  # of `multistep`'s modes: the share of new noise


def sample(denoise: Callable, process: Process, grid, x, noise, mode: str = "consistency"):
    """x0 in len(grid) - 1 calls of the network: `multistep.sample` on the process itself.

    Args:
      denoise: (x, t) -> x0, condition bound.
      grid: `grid`'s.
      x: the state at grid[0]; noise: k -> the k-th draw after it, in the process' colour.
      mode: "consistency", all of the noise new; or "ode", relay diffusion's step with none of it.

    Raises:
      UserError: another mode.
    """
    delta = samplers.fresh(choose(mode, FRESH, "sampling in a few steps:"))
    return samplers.ddim(denoise, process, grid, x, noise, delta=delta)
