from pathlib import Path

import jax
import numpy as np
import pytest

GOLDEN = Path(__file__).parents[1] / "golden" / "core"


@pytest.fixture
def x64():
    """float64 for the length of one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def golden():
    """golden(name) -> the arrays of tests/golden/core/name.npz; see the README there."""
    opened = {}

    def load(name):
        if name not in opened:
            with np.load(GOLDEN / f"{name}.npz") as arrays:
                opened[name] = dict(arrays)
        return opened[name]

    return load


@pytest.fixture(scope="session")
def close():
    """close(got, want, tol): max abs difference <= tol * max abs value."""

    def check(got, want, tol):
        got, want = np.asarray(got), np.asarray(want)
        assert got.shape == want.shape
        assert np.all(np.isfinite(got) == np.isfinite(want))
        finite = np.isfinite(want)
        error = np.abs(got[finite] - want[finite]).max() / np.abs(want[finite]).max()
        print(f"relative error {error:.1e}, allowed {tol:.0e}")
        assert error <= tol, f"relative error {error:.2e} > {tol:.0e}"

    return check


@pytest.fixture(scope="session")
def relay_golden():
    """relay_golden(name) -> the arrays of tests/golden/relay/name.npz; see the README there."""
    opened = {}

    def load(name):
        if name not in opened:
            with np.load(GOLDEN.parent / "relay" / f"{name}.npz") as arrays:
                opened[name] = dict(arrays)
        return opened[name]

    return load


@pytest.fixture(scope="session")
def within():
    """within(got, want, tol): max abs difference <= tol."""

    def check(got, want, tol):
        got, want = np.float64(got), np.float64(want)
        assert got.shape == want.shape
        error = np.abs(got - want).max()
        print(f"error {error:.1e}, allowed {tol:.0e}")
        assert error <= tol, f"error {error:.2e} > {tol:.0e}"

    return check
