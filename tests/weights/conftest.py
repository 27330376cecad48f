import gzip
import json
import zlib
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def files() -> Path:
    """The golden files; see the README there."""
    return Path(__file__).parents[1] / "golden" / "weights"


@pytest.fixture(scope="session")
def rule():
    """rule(name, shape) -> the weights that the golden files' rule gives a name."""

    def weights(name: str, shape) -> np.ndarray:
        last = name.split(".")[-1]
        random = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)  # noqa: NPY002
        w = random.standard_normal(shape).astype(np.float32)
        if last == "resample_filter":
            taps = {2: [1, 1], 4: [1, 3, 3, 1]}[shape[-1]]
            return (np.outer(taps, taps) / np.sum(taps) ** 2).astype(np.float32)[None, None]
        if last == "num_batches_tracked":
            return np.int64(0)
        if last == "freqs":
            return 16 * w
        if len(shape) >= 2:
            return w * np.float32(1 / np.sqrt(np.prod(shape[1:])))
        if last in ("weight", "running_var"):
            return 1 + np.float32(0.1) * w
        return np.float32(0.1) * w

    return weights


@pytest.fixture(scope="session")
def snapshot(files, tmp_path_factory) -> Path:
    """The golden EDM snapshot, unpacked."""
    path = tmp_path_factory.mktemp("edm") / "network-snapshot-000001.pkl"
    path.write_bytes(gzip.decompress((files / "persistence_tiny.pkl.gz").read_bytes()))
    return path


@pytest.fixture(scope="session")
def published(files) -> dict:
    """{configuration: its manifest} of the published EDM networks."""
    return json.loads(gzip.decompress((files / "manifests_published.json.gz").read_bytes()))
