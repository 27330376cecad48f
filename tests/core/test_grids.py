import json

import numpy as np
import pytest

from diffjax.core import denoisers, ema, grids, processes, samplers
from diffjax.errors import UserError

from .conftest import GOLDEN


@pytest.mark.parametrize("n", [2, 5, 18, 40, 256])
def test_karras(n, golden, close):
    grid = grids.karras(n)
    assert grid.dtype == np.float64 and grid.shape == (n + 1,)
    assert np.all(np.diff(grid) < 0) and grid[-1] == 0
    close(grid, golden("sched_edm")[f"edm_sigmas_n{n}"], 1e-12)


def test_one_step_starts_at_the_top():
    np.testing.assert_allclose(grids.karras(1), [80.0, 0.0], rtol=1e-15)
    assert grids.vp(1)[0] == pytest.approx(152.16696973)
    assert grids.exponential(1, 0.02, 100).tolist() == [100.0, 0.0]


@pytest.mark.parametrize(
    "call",
    [
        lambda: grids.karras(0),
        lambda: grids.karras(2.5),
        lambda: grids.karras(5, 2.0, 2.0),
        lambda: grids.karras(5, 0.0, 80.0),
        lambda: grids.exponential(5, 3.0, 2.0),
        lambda: grids.linear(0),
        lambda: grids.vp(-1),
        lambda: grids.of_levels(5, [3.0, 2.0, 1.0, 0.0]),
        lambda: grids.respaced(1000, "ddim300"),
        lambda: grids.respaced(10, "11"),
        lambda: grids.respaced(10, "fast"),
    ],
)
def test_nonsense_is_refused(call):
    with pytest.raises(UserError):
        call()


def test_k_diffusion_grids(golden, close):
    arrays = golden("samplers_kdiff")
    close(grids.karras(10, 0.02, 20), arrays["sigmas/karras_n10"], 1e-12)
    close(grids.karras(12), arrays["sigmas/karras_n12_edm"], 1e-12)
    close(grids.exponential(10, 0.02, 20), arrays["sigmas/exponential_n10"], 1e-12)
    close(grids.vp(10), arrays["sigmas/vp_n10"], 1e-12)


def test_iddpm_levels(golden, close):
    u = denoisers.iddpm_levels()
    want = golden("precond")["iddpm_u"].astype(np.float64)
    assert u[-1] == 0 and np.all(np.diff(u) < 0)
    np.testing.assert_allclose(u[:-1], want[:-1], rtol=1e-3)  # theirs is float32 throughout


def test_nearest(golden):
    arrays = golden("precond")
    got = grids.nearest(arrays["round_sigma_in"].astype(np.float32), arrays["iddpm_u"])
    np.testing.assert_array_equal(got, arrays["iddpm_round_sigma"])


def test_respacing():
    for name, want in json.loads((GOLDEN / "respacing.json").read_text()).items():
        steps, spec = name.split("|")
        spec = json.loads(spec) if spec.startswith("[") else spec
        if isinstance(want, str):
            with pytest.raises(UserError):
                grids.spaced(int(steps), spec)
        else:
            assert grids.spaced(int(steps), spec) == want, name
    assert grids.spaced(6, "3") == [0, 2, 5]  # 2.5 rounds to even


def test_respaced_is_a_sub_grid(golden, close):
    """The betas that respacing would rebuild are those between the grid's own levels."""
    arrays = golden("ddpm_tables")
    for betas, spec, name in [
        (processes.linear_betas(1000), "ddim50", "linear1000_ddim50"),
        (processes.cosine_betas(1000), "10,15,20", "cosine1000_10,15,20"),
    ]:
        grid = grids.respaced(1000, spec)
        alpha = processes.discrete(betas).at(grid).alpha
        np.testing.assert_array_equal(grid[:-1][::-1] - 1, arrays[f"{name}/timestep_map"])
        close((1 - (alpha[:-1] / alpha[1:]) ** 2)[::-1], arrays[f"{name}/betas"], 1e-11)


def test_shifted_multiplies_the_ratio():
    grid = grids.linear(10)[1:-1]
    flow = processes.flow()
    ratio = lambda t: flow.sigma(t) / flow.alpha(t)
    np.testing.assert_allclose(ratio(grids.shifted(grid, 3.0)), 3 * ratio(grid))
    np.testing.assert_allclose(grids.shifted([0.5, 0.1, 0.9], 3), [0.75, 0.25, 0.964286], atol=1e-6)


@pytest.mark.parametrize(
    "call",
    [
        lambda: grids.shifted([1.0, 0.0], -1.0),
        lambda: grids.linear(4, 0.0, 1.0),
        lambda: grids.spaced(10, "-3"),
        lambda: grids.spaced(10, [0]),
        lambda: samplers.churn([2.0, 0.0], -3.0),
        lambda: processes.flow(float("nan")),
        lambda: ema.constant(1.5),
        lambda: ema.warmup(-0.1),
    ],
)
def test_more_nonsense_is_refused(call):
    with pytest.raises(UserError):
        call()
