"""The search for a grid: against Gaussians whose best grid is known, and against all subsets."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core import grids, processes, samplers
from diffjax.errors import UserError
from diffjax.run.system import Problem
from diffjax.studies import grid_search

STD = 0.5
PROCESSES = {
    "edm": (processes.edm(), grids.karras(12, 0.02, 20.0)),
    "discrete": (processes.discrete(processes.cosine_betas(12)), np.arange(12, -1, -1.0)),
}


def gaussian(name: str, batch: int = 4, width: int = 3) -> Problem:
    """Data N(0, STD^2), whose denoiser is linear: E[x0 | x] = a s^2/(a^2 s^2 + sigma^2) x."""
    process, grid = PROCESSES[name]

    def denoise(x, t):
        level = process.at(t)
        return level.alpha * STD**2 / (level.alpha**2 * STD**2 + level.sigma**2) * x

    draw = lambda k: jax.random.normal(jax.random.fold_in(jax.random.key(0), k), (batch, width))
    x = draw(99) * process.at(grid[0]).sigma
    return Problem(denoise, process, grid, x.astype(jnp.float32), draw)


@pytest.mark.parametrize("eta", [0, 1])
@pytest.mark.parametrize("name", PROCESSES)
def test_all_steps_are_the_sampler_and_jumps_are_its_steps(name, eta):
    problem = gaussian(name)
    steps = grid_search.Steps(problem, eta)
    x = problem.x
    for k in range(12):
        row = jax.tree.map(lambda a: a[k], steps.rows)  # noqa: B023
        x = steps.move(x, steps.denoise(x, row), row)
    delta = samplers.posterior(float(eta))
    want = samplers.ddim(*problem.arguments, delta=delta)
    np.testing.assert_allclose(x, want, atol=1e-5)
    # A deterministic jump is one step of DDIM: leaving times out is a coarser grid.
    if not eta:
        path = np.array([0, 3, 4, 9, 12])
        coarse = samplers.ddim(
            problem.denoise, problem.process, problem.grid[path], problem.x, delta=delta
        )
        error = np.mean((coarse - want) ** 2, 1)
        kept = grid_search.mask(path, 12)[None]
        np.testing.assert_allclose(
            grid_search.errors(problem, 0, kept)[:, 0], error, rtol=1e-3, atol=1e-9
        )


def test_an_ancestral_jump_has_the_right_distribution():
    # Frozen at x0 for all steps, the state at each time is q(x_j | x0) again: mean and variance.
    process, grid = PROCESSES["discrete"]
    draw = lambda k: jax.random.normal(jax.random.fold_in(jax.random.key(3), k), (200_000,))
    x0 = jnp.full(200_000, 0.7)
    x = process.perturb(x0, draw(50), process.at(grid[0]))
    steps = grid_search.Steps(Problem(None, process, grid, x, draw), 1)
    for k in range(11):
        x = steps.move(x, x0, jax.tree.map(lambda a: a[k], steps.rows))  # noqa: B023
        level = process.at(grid[k + 1])
        assert abs(float(x.mean()) - 0.7 * level.alpha) < 5 * level.sigma / np.sqrt(200_000)
        assert float(x.std()) == pytest.approx(level.sigma, rel=0.01)


@pytest.mark.parametrize("name", PROCESSES)
def test_costs_are_the_closed_form(name):
    # All maps are multiplications: a jump's error times what the other steps multiply it by.
    problem = gaussian(name, batch=6)
    got = grid_search.jump_costs(problem, 0, jax.random.key(1), probes=400)
    process, grid = problem.process, problem.grid
    now = process.at(grid)
    shrink = now.alpha * STD**2 / (now.alpha**2 * STD**2 + now.sigma**2)
    factor = lambda i, j: (
        now.alpha[j] * shrink[i] + now.sigma[j] / now.sigma[i] * (1 - now.alpha[i] * shrink[i])
    )
    whole = lambda i, j: np.prod([factor(k, k + 1) for k in range(i, j)])
    scale = np.mean(np.float64(problem.x) ** 2, 1)
    for i, j in [(0, 1), (0, 5), (2, 7), (5, 12), (0, 12)]:
        want = scale * (whole(0, i) * (factor(i, j) - whole(i, j)) * whole(j, 12)) ** 2
        # 400 random signs: 7 % is one standard deviation.
        np.testing.assert_allclose(got[:, i, j], want, rtol=0.3, atol=1e-9)
        np.testing.assert_allclose(got[:, i, j].mean(), want.mean(), rtol=0.12, atol=1e-9)
    assert not np.tril(np.asarray(got).sum(0)[:, :-1]).any()


@pytest.mark.parametrize("eta", [0, 1])
@pytest.mark.parametrize("name", PROCESSES)
def test_the_found_grid_is_the_best_of_all(name, eta):
    # All subsets of the fine grid, each sampled: the search must find the one, or as good a one.
    problem, count = gaussian(name, batch=64), 4
    squares = grid_search.jump_costs(problem, eta, jax.random.key(1), probes=16)
    cost = np.sqrt(np.asarray(squares, np.float64).mean(0))
    found = grid_search.dynamic_programming(cost, count)
    paths = [np.array([0, *p, 12]) for p in itertools.combinations(range(1, 12), count - 1)]
    kept = np.stack([grid_search.mask(p, 12) for p in paths])
    error = np.sqrt(np.asarray(grid_search.errors(problem, eta, kept)).mean(0))
    of = lambda path: error[next(i for i, p in enumerate(paths) if np.array_equal(p, path))]
    assert of(found) <= (1.02 if not eta else 1.25) * error.min()
    assert of(found) < of(grid_search.even(12, count))


def test_padding_does_not_count():
    # Numbers that are no part of the sample, and of any size, change neither costs nor errors.
    problem, key = gaussian("edm", batch=3, width=2), jax.random.key(0)
    wild = 1e3 * jnp.ones((3, 2))
    padded = problem._replace(
        x=jnp.concatenate([problem.x, wild], 1),
        noise=lambda k: jnp.concatenate([problem.noise(k), wild], 1),
        mask=np.arange(4)[None] < 2,
    )
    kept = grid_search.mask(np.array([0, 4, 8, 12]), 12)[None]
    np.testing.assert_allclose(
        grid_search.errors(padded, 0, kept), grid_search.errors(problem, 0, kept), rtol=1e-5
    )
    # Probes differ in number, so costs agree as means over many.
    costs = [grid_search.jump_costs(p, 0, key, probes=500)[:, 2, 7] for p in (padded, problem)]
    np.testing.assert_allclose(*costs, rtol=0.2)


def test_dynamic_programming_is_the_best_sum():
    random = np.random.default_rng(0)
    for count in range(1, 9):
        cost = np.triu(random.uniform(size=(8, 9)), 1)
        cost[:, :] += np.where(np.arange(9) > np.arange(8)[:, None], 0, -100)  # not to be taken
        total = lambda path: sum(cost[i, j] for i, j in itertools.pairwise(path))  # noqa: B023
        paths = [(0, *p, 8) for p in itertools.combinations(range(1, 8), count - 1)]
        best = min(paths, key=total)
        assert grid_search.dynamic_programming(cost, count).tolist() == list(best)
        step = grid_search.greedy(cost, count)
        assert len(step) == count + 1 and total(step) >= total(best) - 1e-12
        assert (step[0], step[-1]) == (0, 8)
        if count <= 2:  # one time is the best one
            assert step.tolist() == list(best)
    assert set(grid_search.greedy(cost, 3)) <= set(grid_search.greedy(cost, 5))


def test_moves_lead_to_the_best_of_all():
    # A bowl over paths with its bottom at [0, 2, 9, 11, 16], one that no move of one can miss.
    bottom = np.array([0, 2, 9, 11, 16])
    seen = []

    def measure(paths):
        seen.extend(paths)
        return np.array([np.sum((p - bottom) ** 2) for p in paths], float)

    starts = [grid_search.even(16, 4), np.array([0, 1, 2, 3, 16])]
    path, error = grid_search.descend(measure, starts, 20)
    assert path.tolist() == bottom.tolist() and error == 0
    assert all(np.all(np.diff(p) > 0) and (p[0], p[-1]) == (0, 16) for p in seen)
    path, error = grid_search.descend(measure, starts, 0)
    assert path.tolist() == [0, 4, 8, 12, 16]
    one_step, _ = grid_search.descend(lambda p: np.ones(len(p)), [np.array([0, 16])], 5)
    assert one_step.tolist() == [0, 16]  # nothing can be moved


def test_even():
    assert grid_search.even(12, 4).tolist() == [0, 3, 6, 9, 12]
    assert grid_search.even(10, 3).tolist() == [0, 3, 7, 10]
    assert grid_search.mask(np.array([0, 2, 3]), 3).tolist() == [True, False, True]


def test_refusals():
    with pytest.raises(UserError, match="--search 9: must be from 1 to the 8"):
        grid_search.dynamic_programming(np.zeros((8, 9)), 9)
    with pytest.raises(UserError, match="--search_eta 2"):
        grid_search.Steps(gaussian("edm"), 2)
