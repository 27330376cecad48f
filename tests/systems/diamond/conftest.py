"""Two runs of DIAMOND that take seconds, which several files of tests look at."""

import diamond_runs
import pytest

import train


@pytest.fixture(scope="session")
def words(root):
    return lambda **more: diamond_runs.words(root, **more)


@pytest.fixture(scope="session")
def finished(words, tmp_path_factory):
    """A run of all three networks that was never interrupted."""
    workdir = tmp_path_factory.mktemp("diamond") / "run"
    assert train.main([*words(), "--workdir", str(workdir), "--debug"]) == 0
    return workdir


@pytest.fixture(scope="session")
def recorded(words, tmp_path_factory):
    """A denoiser alone, trained on recordings: (run directory, folder)."""
    place = tmp_path_factory.mktemp("diamond_recorded")
    folder = diamond_runs.recordings(place / "mine")
    flags = words(game="", data__path=folder, learn="denoiser", epochs=1)
    assert train.main([*flags, "--workdir", str(place / "run"), "--debug"]) == 0
    return place / "run", folder
