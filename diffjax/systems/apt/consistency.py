"""Discrete-time consistency distillation: a generator's start, before it meets a discriminator.

On increasing times t_0 = 0 .. t_N (`timesteps.consistency`), with velocities v of the straight path
and f(x, t) = x - t v_student(x, t), which is the identity at t = 0 by construction:

    x = (1 - t_n) x0 + t_n eps,   n uniform in 1..N
    x' = x + (t_{n-1} - t_n) v_teacher(x, t_n)            a step of the (guided) teacher
    target = stop_gradient f(x', t_{n-1})
    loss = E |v_student(x, t_n) - (x - target)/t_n|^2

Song et al. 2023; Lin et al. 2025a, with mean squared error and guidance 7.5; 32 times
and the student itself as its target are Lin et al. 2025b's. Any base takes part through
`bases.velocity`; a guided teacher is `core.guidance.cfg` of two velocities.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.errors import choose


class Target(NamedTuple):
    """What the student should say, without a gradient.

    Attributes:
      x: [B, ...], where the teacher's step has led.
      x0: f there: the x0 to estimate.
      v: (x_t - x0)/t_n, the velocity to answer.
    """

    x: jax.Array
    x0: jax.Array
    v: jax.Array


def euler(velocity: Callable, x, t, t_next):
    """x + h v: one evaluation. On the straight path it is DDIM's step."""
    return x + (t_next - t) * velocity(x, t)


def heun(velocity: Callable, x, t, t_next):
    """x + h (v + v')/2: two evaluations, v' at Euler's end, which may be t = 0."""
    v = velocity(x, t)
    h = t_next - t
    return x + h * (v + velocity(x + h * v, t_next)) / 2


SOLVERS = {"euler": euler, "heun": heun}


def boundary(velocity: Callable, x, t):
    """f(x, t) = x - t v(x, t), and x itself, to the bit, where t = 0."""
    return jnp.where(t > 0, x - t * velocity(x, t), x)


def noised(x0, eps, grid, n):
    """(x_t, t_n, t_{n-1}): times of x0's dtype, [B, 1, ...].

    Args:
      x0, eps: [B, ...].
      grid: [N + 1], increasing from 0.
      n: int [B], in 1..N.
    """
    grid = jnp.asarray(grid, jnp.result_type(x0))
    wide = lambda t: t.reshape(-1, *[1] * (x0.ndim - 1))
    t, t_next = wide(grid[n]), wide(grid[n - 1])
    return (1 - t) * x0 + t * eps, t, t_next


def target(student: Callable, teacher: Callable, x, t, t_next, solver: str = "euler") -> Target:
    """The target for x at t.

    Args:
      student: whose f is the target: the student itself, or its average.
      teacher: with guidance in it.
      student, teacher: (x, t) -> the velocity n - x0, condition bound.
      x: [B, ...]; t, t_next: [B, 1, ...], t > 0.
      solver: "euler" or "heun".

    Raises:
      UserError: another solver.
    """
    x_next = choose(solver, SOLVERS, "solver of the distillation:")(teacher, x, t, t_next)
    x0 = boundary(student, x_next, t_next)
    made = Target(x_next, x0, (x - x0) / t)
    return jax.tree.map(jax.lax.stop_gradient, made)


def error(v, wanted: Target, t, space: str = "v", huber: bool = False) -> jax.Array:
    """The loss of each sample, [B]: a mean over what is not the batch.

    Args:
      v: the student's velocity.
      space: "v", or "x": the error of x0, which is weighted by t^2 in comparison. Small times are
        then starved, and larger ones inherit their errors.
      huber: sqrt(|e|^2 + c^2) - c of the whole sample, with c = 0.00054 sqrt(dimensions), in place
        of the mean of squares (Song & Dhariwal 2024).

    Raises:
      UserError: another space.
    """
    scale = choose(space, {"v": jnp.ones_like(t), "x": t}, "space of the distillation's loss:")
    e = scale * (v - wanted.v)
    axes = tuple(range(1, e.ndim))
    if not huber:
        return jnp.mean(jnp.square(e), axes)
    c = 0.00054 * np.sqrt(np.prod(e.shape[1:]))
    return jnp.sqrt(jnp.sum(jnp.square(e), axes) + c**2) - c


def loss(
    student: Callable,
    teacher: Callable,
    x0,
    eps,
    n,
    grid,
    *,
    solver: str = "euler",
    space: str = "v",
    huber: bool = False,
    average: Callable | None = None,
) -> jax.Array:
    """[B] float32: the distillation's loss of each sample; `noised`, `target`, `error` in a row.

    Args:
      average: the velocity whose f is the target; None: the student's own, without a gradient.
    """
    x, t, t_next = noised(x0, eps, grid, n)
    wanted = target(average or student, teacher, x, t, t_next, solver)
    return error(student(x, t), wanted, t, space, huber)


def indices(key: jax.Array, rows: jax.Array, steps: int) -> jax.Array:
    """int32 [B]: n uniform in 1..N; row r draws from fold_in(key, r)."""
    draw = lambda row: jax.random.randint(jax.random.fold_in(key, row), (), 1, steps + 1)
    return jax.vmap(draw)(rows)
