"""What metrics need of a set of pictures, gathered in one pass; of a reference set, kept on disk.

The moments of 50,000 features of 2048 numbers take 34 MB, the features 410 MB: these are kept only
where a metric compares all of them.
"""

import contextlib
import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from diffjax.metrics.features import FeatureNet, batches
from diffjax.metrics.frechet import Accumulator, Moments

MAX_JSON = 1 << 20


@dataclass
class Statistics:
    """Of one set of pictures.

    Attributes:
      moments: {output of the feature net: its moments}.
      features: {output: float32 [n, d]}, where all are needed.
    """

    moments: dict[str, Moments] = field(default_factory=dict)
    features: dict[str, np.ndarray] = field(default_factory=dict)


def gather(
    net: FeatureNet,
    images: np.ndarray,
    moments: Sequence[str] = (),
    features: Sequence[str] = (),
    *,
    parts: Sequence[np.ndarray] = (),
    batch_size: int = 128,
    sharding=None,
) -> list[Statistics]:
    """Returns the statistics of a set of pictures and of parts of it, running the net over it once.

    Args:
      net: the feature net.
      images: uint8 [n, H, W, C].
      moments: outputs whose moments are wanted.
      features: outputs that are wanted whole.
      parts: index arrays into the images.
      batch_size, sharding: as in `features.batches`.

    Returns:
      [of all, of parts[0], ...].

    Raises:
      UserError: what `features.batches` and `Accumulator.moments` do.
    """
    chosen = [np.zeros(len(images), bool) for _ in parts]
    for inside, part in zip(chosen, parts):
        inside[part] = True
    sums = [{name: Accumulator() for name in moments} for _ in range(1 + len(parts))]
    kept: dict[str, list[np.ndarray]] = {name: [] for name in features}
    start, wanted = 0, tuple(sorted({*moments, *features}))
    for found in batches(net, images, wanted, batch_size, sharding) if wanted else ():
        rows = slice(start, start + len(next(iter(found.values()))))
        for name in features:
            kept[name].append(found[name])
        for name in moments:
            sums[0][name].add(found[name])
            for accumulators, inside in zip(sums[1:], chosen):
                accumulators[name].add(found[name][inside[rows]])
        start = rows.stop
    whole = {name: np.concatenate(rows) for name, rows in kept.items()}
    sets = [Statistics({n: a.moments() for n, a in group.items()}) for group in sums]
    sets[0].features = whole
    for statistics, part in zip(sets[1:], parts):
        statistics.features = {name: array[part] for name, array in whole.items()}
    return sets


class Cache:
    """A folder of statistics and floors of reference sets, each under a key that names its maker.

    A file that is absent, cut short or otherwise not what it should be counts as not there: it is
    made again. Files are written under a temporary name and renamed. Several processes of one job
    must not use one, since some might find what others do not.
    """

    def __init__(self, folder: Path, *key: object):
        """key: everything that the statistics depend on: data, feature net, weights, count."""
        self._at = folder / hashlib.sha256(repr(key).encode()).hexdigest()[:32]

    def load(self, moments: Sequence[str], features: Sequence[str]) -> Statistics | None:
        """Returns the statistics, or None unless all of them are there."""
        found = Statistics()
        for name in {*moments, *features}:
            try:
                # An array in an npz is read when it is asked for: here only those that are wanted.
                with np.load(self._path(f"{name}.npz"), allow_pickle=False) as arrays:
                    if name in moments:
                        n, mean, cov = int(arrays["n"]), arrays["mean"], arrays["cov"]
                        if mean.ndim != 1 or cov.shape != mean.shape * 2 or cov.dtype != np.float64:
                            return None
                        found.moments[name] = Moments(n, mean, cov)
                    if name in features:
                        rows = arrays["features"]
                        if rows.ndim != 2 or rows.dtype != np.float32:
                            return None
                        found.features[name] = rows
            except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
                return None
        return found

    def save(self, statistics: Statistics) -> None:
        """Writes statistics, one file an output."""
        for name in {*statistics.moments, *statistics.features}:
            arrays = {}
            if name in statistics.moments:
                arrays = statistics.moments[name]._asdict()
            if name in statistics.features:
                arrays["features"] = statistics.features[name]
            self._write(f"{name}.npz", lambda file, arrays=arrays: np.savez(file, **arrays))

    def floors(self) -> dict[str, float]:
        """Returns {a name that the caller gave: value}."""
        path = self._path("floors.json")
        try:
            if path.stat().st_size > MAX_JSON:
                return {}
            floors = json.loads(path.read_text())
            return {str(k): float(v) for k, v in floors.items()}
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            return {}

    def save_floors(self, floors: dict[str, float]) -> None:
        """Adds to the floors that are there."""
        text = json.dumps({**self.floors(), **floors}, indent=1, sort_keys=True)
        self._write("floors.json", lambda file: file.write(text.encode()))

    def _path(self, ending: str) -> Path:
        return self._at.with_name(f"{self._at.name}-{ending}")

    def _write(self, ending: str, write) -> None:
        path = self._path(ending)
        temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                write(file)
            os.replace(temporary, path)
        except OSError:  # a full or read-only disk: the scores do not depend on the cache
            with contextlib.suppress(OSError):
                temporary.unlink()
