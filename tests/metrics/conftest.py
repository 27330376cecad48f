from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def golden():
    """Arrays of public evaluators; see tests/golden/metrics/README.md."""
    path = Path(__file__).parents[1] / "golden" / "metrics" / "metrics.npz"
    with np.load(path) as arrays:
        return dict(arrays)
