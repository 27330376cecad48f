import pytest

from diffjax.data.motion import rigs, walker


@pytest.fixture(scope="session")
def people():
    """(clips, skeleton, rig) of some of the walker's motions at 20 frames a second."""
    clips = [walker.clip(a, s, 1) for a in walker.ACTIONS for s in ("normal", "lively")]
    return clips, *rigs.derive(clips, fps=20)
