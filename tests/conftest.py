"""What all tests share: eight devices made of one CPU, a tiny data set, a tiny trained run."""

import os
import sys
import tempfile
from pathlib import Path

# Before JAX is imported: these decide what it finds. Subprocesses inherit them.
# Compiling is what most tests wait for, and unoptimised programs compile in a third of the time.
FLAGS = (
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
)
given = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join([given, *(f for f in FLAGS if f.split("=")[0] not in given)])
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_cache = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Many tests compile the same few programs; none should depend on an earlier run's.
    _cache = tempfile.TemporaryDirectory(prefix="diffjax_test_xla_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# What evaluate keeps of reference sets must not come from an earlier run's code. Matplotlib's
# list of fonts, which takes seconds to make, may.
_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
os.environ.setdefault("MPLCONFIGDIR", str(_home / "matplotlib"))
_kept = tempfile.TemporaryDirectory(prefix="diffjax_test_cache_")
os.environ["XDG_CACHE_HOME"] = _kept.name

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # train.py and sample.py are scripts, not part of the package
sys.path.insert(0, str(ROOT / "tests" / "helpers"))  # what several folders of tests import

import numpy as np  # noqa: E402
import pytest  # noqa: E402

STEPS = 6


def pytest_unconfigure():
    if _cache is not None:
        _cache.cleanup()
    _kept.cleanup()


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def tiny_arrays() -> dict[str, np.ndarray]:
    """40 pictures uint8 [8, 8, 3] of three classes; a class is a colour under noise."""
    random = np.random.default_rng(0)
    labels = (np.arange(40) % 3).astype(np.int32)
    images = random.integers(0, 120, (40, 8, 8, 3))
    images[np.arange(40), :, :, labels] += 120
    return {
        "images": images.astype(np.uint8),
        "labels": labels,
        "class_names": np.array(["red", "green", "blue"]),
    }


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory, tiny_arrays) -> Path:
    """The same as an .npz."""
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(path, **tiny_arrays)
    return path


@pytest.fixture(scope="session")
def tiny_config(root, tiny_data) -> list[str]:
    """train.py's flags for a run of seconds, all but --workdir."""
    overrides = {
        "steps": STEPS,
        "batch_size": 8,
        "checkpoint_every": 3,
        "keep": 2,
        "log_every": 1,
        "sample_every": 100,
        "num_samples": 6,
        "data.path": tiny_data,
        "network.widths": "(8,)",
        "network.embedding": 16,
        "optimizer.warmup_steps": 2,
        "sampling.steps": 4,
        # Six steps teach little: from less noise the samples are not all clipped to 0 and 255.
        "sampling.sigma_max": 2.0,
    }
    flags = [f"--config.{field}={value}" for field, value in overrides.items()]
    return ["--config", str(root / "configs" / "edm_tiny.py"), *flags]


@pytest.fixture(scope="session")
def make_config(tiny_config):
    """make_config("field=value", ...) -> the tiny config with more overrides."""
    from diffjax.run import cli

    def make(*overrides: str):
        _, words = cli.split_overrides(tiny_config[2:])
        return cli.apply_overrides(cli.load_config(tiny_config[1]), [*words, *overrides])

    return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tiny_config) -> Path:
    """A finished run of the tiny config, never interrupted. Copy it before changing it."""
    import train

    workdir = tmp_path_factory.mktemp("runs") / "trained"
    assert train.main([*tiny_config, "--workdir", str(workdir)]) == 0
    return workdir
