"""Which few times of a fine grid to step on: found from one run of all its steps.

The teacher takes all N steps of the fine grid; a student leaves most of them out. Between two times
that it keeps, t_i and t_j, it holds on to its estimate of x0 from t_i. Both take the same noises:

    x_{k+1} = S_k(x_k, D(x_k, t_k), z_k)              teacher, k = 0 .. N - 1
    y_{k+1} = S_k(y_k, D(x_i, t_i), z_k), y_i = x_i   a jump from i to j, k = i .. j - 1

S_k is the step of `samplers.ddim`. With eta 0 the jump is exactly DDIM's one step from t_i to t_j,
with eta 1 exactly the ancestral one, because q(x' | x, x0) composes. So the cost of all jumps costs
no evaluation of the network beyond the teacher's N.

An error e = y_j - x_j counts by what it does to the teacher's result: J_j e, the derivative of the
teacher's remaining steps, whose square is the mean of (u_j . e)^2 over u_j = J_j^T v with random
signs v: one run of the teacher backwards a probe. The cost of a grid is the sum of its jumps' root
mean squares, which by the triangle inequality bounds the error of the result to first order.
Dynamic programming finds the grid of K steps at which this sum is smallest.

First order is not enough where jumps are long and the network bends: so the grid that was found,
or the even one if it is better, is then improved by moving one time after another, with the error
measured and not estimated.
"""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from diffjax.core import samplers
from diffjax.errors import UserError, choose
from diffjax.run import mesh as meshes
from diffjax.run import sampling
from diffjax.run.system import Problem, System

PROBES = 4
AT_ONCE = 8  # grids that one call measures


class Steps:
    """The steps S_k of `samplers.ddim` on a problem's grid, one by one.

    Attributes:
      rows: what step k needs, a tree of arrays [N, ...].
      move: (x, x0, row) -> the next x.

    Args:
      problem: its grid is the fine one.
      eta: 0 (DDIM) or 1 (ancestral): between them a jump is not a sum of steps.

    Raises:
      UserError: another eta, or 1 on a process whose A is not a number.
    """

    def __init__(self, problem: Problem, eta: int):
        if eta not in (0, 1):
            raise UserError(f"--search_eta {eta}: 0 (deterministic) or 1 (ancestral)")
        process, grid = problem.process, np.asarray(problem.grid, np.float64)
        now, end = process.at(grid[:-1]), process.at(grid[1:])
        added = np.zeros(len(grid) - 1)
        if eta:
            added = np.where(end.sigma > 0, samplers.posterior(1.0)(now, end), 0.0)
        kept = end._replace(sigma=np.sqrt(np.maximum(end.sigma**2 - added**2, 0.0)))
        rows = {"k": np.arange(len(added)), "now": now, "kept": kept, "std": added}
        dtype = jnp.result_type(problem.x)
        cast = lambda a: jnp.asarray(a, dtype if np.issubdtype(a.dtype, np.floating) else None)
        self.rows = jax.tree.map(cast, rows)
        self.denoise = lambda x, row: problem.denoise(x, row["now"].t).astype(dtype)
        self._process, self._noise, self._stochastic = process, problem.noise, bool(added.any())

    def move(self, x, x0, row):
        n = self._process.noise(x, x0, row["now"])
        x = self._process.perturb(x0, n, row["kept"])
        if self._stochastic:
            x = x + row["std"] * self._noise(row["k"]).astype(x.dtype)
        return x


def jump_costs(problem: Problem, eta: int, key, probes: int = PROBES) -> jax.Array:
    """Squared effect on the result of every jump, float32 [B, N, N + 1]: mean of a number's square.

    Entry [b, i, j] is of the jump from time i to time j, of sample b; 0 for j <= i.

    Args:
      problem: N steps; its x is [B, ...].
      eta: as in `Steps`.
      key: of the probes.
      probes: how many random v: more are less noisy, and the mean over B helps as much.
    """
    steps, x = Steps(problem, eta), jnp.asarray(problem.x)
    count = len(problem.grid) - 1
    whole = lambda x, row: steps.move(x, steps.denoise(x, row), row)

    def forward(x, row):
        x0 = steps.denoise(x, row)
        return steps.move(x, x0, row), (x, x0)

    result, (xs, x0s) = jax.lax.scan(forward, x, steps.rows)
    after = jnp.concatenate([xs[1:], result[None]])  # what step k arrives at

    def backward(u, given):
        x, row = given
        _, pull = jax.vjp(lambda x: whole(x, row), x)
        return jax.vmap(lambda u: pull(u)[0])(u), u

    counted, size = _counted(problem)
    v = jax.random.rademacher(key, (probes, *x.shape), x.dtype) * counted
    _, us = jax.lax.scan(backward, v, (xs, steps.rows), reverse=True)  # [N, probes, B, ...]
    axes = tuple(range(2, x.ndim + 1))

    def jumps_from(i):
        def go(y, given):
            row, x_after, u = given
            started = row["k"] >= i
            y = jnp.where(started, steps.move(y, x0s[i], row), y)
            effect = jnp.sum(u * (y - x_after), axes)  # [probes, B]
            return y, jnp.where(started, jnp.mean(effect**2, 0) / size, 0.0)

        return jax.lax.scan(go, xs[i], (steps.rows, after, us))[1]

    costs = jax.lax.map(jumps_from, jnp.arange(count))  # [i, k, B]
    costs = jnp.moveaxis(costs, -1, 0)
    return jnp.pad(costs, ((0, 0), (0, 0), (1, 0))).astype(jnp.float32)


def results(problem: Problem, eta: int, kept) -> jax.Array:
    """What each of several grids ends with, from the same start and noises: [M, B, ...].

    Args:
      problem, eta: as in `jump_costs`.
      kept: bool [M, N], the fine steps at which each grid evaluates the network; the first always.
    """
    steps, x = Steps(problem, eta), jnp.asarray(problem.x)

    def sample(keep):
        def step(carry, given):
            x, x0 = carry
            row, keep = given
            x0 = jax.lax.cond(keep, lambda: steps.denoise(x, row), lambda: x0)
            return (steps.move(x, x0, row), x0), None

        return jax.lax.scan(step, (x, jnp.zeros_like(x)), (steps.rows, keep))[0][0]

    return jax.lax.map(sample, jnp.asarray(kept))


def errors(problem: Problem, eta: int, kept, exact=None) -> jax.Array:
    """Mean squared difference from the teacher's result, for several grids: float32 [B, M].

    What `jump_costs` estimates, measured.

    Args:
      problem, eta, kept: as in `results`.
      exact: the teacher's result [B, ...], where it is known.
    """
    if exact is None:
        exact = results(problem, eta, np.ones((1, len(problem.grid) - 1), bool))[0]
    counted, size = _counted(problem)
    error = counted * (results(problem, eta, kept) - exact) ** 2
    return (jnp.sum(error, tuple(range(2, error.ndim))) / size).T.astype(jnp.float32)


def _counted(problem: Problem) -> tuple[jax.Array, jax.Array]:
    """(1 where x counts and 0 in padding, of x's shape; how many numbers of each sample count)."""
    x = jnp.asarray(problem.x)
    mask = jnp.ones_like(x) if problem.mask is None else jnp.broadcast_to(problem.mask, x.shape)
    mask = mask.astype(x.dtype)
    return mask, jnp.maximum(jnp.sum(mask, tuple(range(1, x.ndim))), 1)


def dynamic_programming(cost: np.ndarray, count: int) -> np.ndarray:
    """Returns the cheapest way from 0 to N in `count` jumps, int [count + 1], first 0 and last N.

    Args:
      cost: [N, N + 1], of the jump from i to j > i; the sum over jumps is made smallest.

    Raises:
      UserError: count not from 1 to N.
    """
    total = _checked(cost, count)
    above = np.full_like(total, np.inf)
    above[np.triu_indices(len(cost), 1, len(cost) + 1)] = total[
        np.triu_indices(len(cost), 1, len(cost) + 1)
    ]
    best, came = above[0], []
    for _ in range(count - 1):
        ways = best[:-1, None] + above
        came.append(np.argmin(ways, 0))
        best = np.min(ways, 0)
    path = [len(cost)]
    for before in reversed(came):
        path.append(int(before[path[-1]]))
    return np.array([0, *path[::-1]])


def greedy(cost: np.ndarray, count: int) -> np.ndarray:
    """Like `dynamic_programming`, one time after another: always the one that lowers the sum most.

    Never better than it; the grid of K + 1 steps contains that of K.
    """
    total, path = _checked(cost, count), [0, len(cost)]
    while len(path) <= count:
        gains = []
        for at in range(1, len(cost)):
            if at in path:
                continue
            after = next(i for i, p in enumerate(path) if p > at)
            low, high = path[after - 1], path[after]
            gains.append((total[low, at] + total[at, high] - total[low, high], at))
        path = sorted([*path, min(gains)[1]])
    return np.array(path)


def even(fine: int, count: int) -> np.ndarray:
    """The `count` jumps through 0 .. fine that are as nearly equal as whole numbers allow."""
    return np.round(np.arange(count + 1) * fine / count).astype(int)


METHODS: dict[str, Callable] = {"dp": dynamic_programming, "greedy": greedy}


def moves(path: np.ndarray, at: int) -> list[np.ndarray]:
    """The paths in which the time number `at` is moved by 1, 2, 4, ... either way, as far as the
    times beside it."""
    found = []
    for sign in (-1, 1):
        by = 1
        while path[at - 1] < path[at] + sign * by < path[at + 1]:
            moved = path.copy()
            moved[at] += sign * by
            found.append(moved)
            by *= 2
    return found


def descend(measure: Callable, starts: Sequence[np.ndarray], rounds: int):
    """Returns (path, its error): from the best start, one time after another to its best place.

    Args:
      measure: paths -> their errors [len(paths)].
      rounds: over all times, at most; it ends with one in which nothing became better.
    """
    found = measure(starts)
    path, error = starts[int(np.argmin(found))], float(np.min(found))
    for _ in range(rounds):
        before = error
        for at in range(1, len(path) - 1):
            around = moves(path, at)
            found = measure(around) if around else np.array([np.inf])
            if found.min() < error:
                path, error = around[int(np.argmin(found))], float(found.min())
        if error == before:
            break
    return path, error


def mask(path: np.ndarray, fine: int) -> np.ndarray:
    """bool [fine]: the steps of the fine grid at which a path evaluates the network."""
    kept = np.zeros(fine, bool)
    kept[path[:-1]] = True
    return kept


def _checked(cost: np.ndarray, count: int) -> np.ndarray:
    if not 1 <= count <= len(cost):
        raise UserError(f"--search {count}: must be from 1 to the {len(cost)} steps of --fine")
    return np.asarray(cost, np.float64)


def search(
    system: System,
    params,
    request,
    counts: Sequence[int],
    *,
    condition: Callable,
    num: int,
    seed: int,
    batch: int,
    mesh: Mesh,
    method: str = "dp",
    eta: int = 0,
    rounds: int = 3,
    progress: bool = False,
) -> list[dict]:
    """Finds a grid of each count of steps for a system's request, ready for JSON.

    Args:
      system: one that has a `problem`.
      params: what its `sample` takes.
      request: its grid is the fine one.
      counts: how many steps the grids shall have.
      condition: index int [B] -> what sample number `index` is conditioned on.
      num, seed: the samples that the search looks at; take a seed that nothing is judged with.
      batch: how many at a time where the costs are estimated; errors are measured on all at once.
      mesh: as in `sampling.collect`. progress: whether to show a bar.
      method: of `METHODS`.
      eta: as in `Steps`.
      rounds: of `descend`; 0: the better of what the method finds and of the even grid.

    Returns:
      One a count: {"steps", "grid": its times, "cost": its sum, "error": root mean square
      difference from the result of all fine steps, measured; "first", "even": the same three of
      what the method found before it was improved, and of the evenly spaced part of the fine grid}.

    Raises:
      UserError: a system without a `problem`, more steps than the fine grid has.
    """
    if system.problem is None:
        raise UserError("--search: this system gives no problem to search a grid for")
    find, told = choose(method, METHODS, "--search_by"), {}

    def squares(params, keys, condition, request):
        problem = system.problem(params, keys, condition, request)
        told["grid"] = np.asarray(problem.grid, np.float64)  # known where this is traced
        return jump_costs(problem, eta, jax.random.key(seed))

    def teacher(params, keys, condition, request):
        problem = system.problem(params, keys, condition, request)
        return results(problem, eta, np.ones((1, len(problem.grid) - 1), bool))[0]

    def measured(given, keys, condition, request):
        params, kept, exact = given
        return errors(system.problem(params, keys, condition, request), eta, kept, exact)

    def made(draw, batch=num):
        run = sampling.sampler(system, request, mesh, draw)
        return lambda params: np.asarray(
            sampling.collect(
                system, params, request, num=num, seed=seed, batch=batch, mesh=mesh,
                condition=condition, run=run,
            ),
            np.float64,
        )  # fmt: skip

    cost = np.sqrt(made(squares, batch)(params).mean(0))
    fine, size, squared = told["grid"], len(cost), made(measured)
    exact = made(teacher)(params)
    whole = num + -num % meshes.batch_shards(mesh)  # a batch is filled up with samples to drop
    exact = jnp.asarray(np.resize(exact, (whole, *exact.shape[1:])), jnp.float32)

    def measure(paths):
        kept = np.stack([mask(path, size) for path in paths])
        kept = np.pad(kept, ((0, -len(kept) % AT_ONCE), (0, 0)), mode="edge")
        groups = kept.reshape(-1, AT_ONCE, size)
        parts = [squared((params, jnp.asarray(k), exact)).mean(0) for k in groups]
        return np.sqrt(np.concatenate(parts))[: len(paths)]

    def told_of(path, error):
        total = float(sum(cost[i, j] for i, j in itertools.pairwise(path)))
        return {"grid": fine[path].tolist(), "cost": total, "error": float(error)}

    found = []
    for count in tqdm(counts, desc="grids", disable=None if progress else True):
        starts = [find(cost, count), even(size, count)]
        first, spread = (told_of(p, e) for p, e in zip(starts, measure(starts)))
        best = told_of(*descend(measure, starts, rounds))
        found.append({"steps": int(count), **best, "first": first, "even": spread})
    return found
