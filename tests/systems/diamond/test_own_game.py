"""The game that the documentation tells how to write, from its page to an imagined one."""

import json
import re

import diamond_runs
import numpy as np
import pytest

import sample
import train
from diffjax.systems.diamond.replay import Replay


@pytest.mark.slow
def test_the_documented_game_is_learnt_and_imagined(root, tmp_path, monkeypatch):
    page = (root / "docs" / "my-own-game.md").read_text()
    block = re.search(r"^```python\n(.*?)^```$", page, re.S | re.M)[1]
    # Without the lines below it, which try the game out.
    (tmp_path / "climb.py").write_text(block[: block.index("\ngame = Checked(")])
    monkeypatch.syspath_prepend(tmp_path)
    workdir, out = tmp_path / "run", tmp_path / "out.npz"
    words = diamond_runs.words(root, game="climb:make", learn="world", epochs=1)
    assert train.main([*words, "--workdir", str(workdir), "--debug"]) == 0
    about = json.loads((workdir / "assets" / "data.json").read_text())
    assert (about["name"], about["actions"]) == ("climb:make", 3)
    assert about["keys"] == {"": 0, "ArrowUp": 1, "ArrowDown": 2}
    assert sample.main(["--workdir", str(workdir), "--horizon", "3", "--out", str(out)]) == 0
    with np.load(out) as arrays:
        assert arrays["imagined"].shape == (3, 7, 8, 8, 3)
        frames = arrays["real"].reshape(-1, 8, 8, 3)
    # A dot on grey: the left column has nothing, the middle has it.
    assert (frames[:, :, 0] == 30).all() and (frames[:, :, 3].max((1, 2)) > 40).all()


ENDLESS = """
import numpy as np

class Endless:
    num_actions = 2

    def reset(self, seed=None):
        self.steps = 0
        return np.zeros((8, 8, 3), np.uint8), {}

    def step(self, action):
        self.steps += 1
        return np.full((8, 8, 3), self.steps % 256, np.uint8), 1.0, False, False, {}
"""


@pytest.mark.slow
def test_a_game_that_never_ends_is_played_to_its_limit(root, tmp_path, monkeypatch):
    (tmp_path / "endless.py").write_text(ENDLESS)
    monkeypatch.syspath_prepend(tmp_path)
    workdir, limits = tmp_path / "run", {"collection__limit": 15, "evaluation__limit": 9}
    words = diamond_runs.words(root, game="endless:Endless", epochs=1, **limits)
    assert train.main([*words, "--workdir", str(workdir), "--debug"]) == 0
    (last,) = (record for record in diamond_runs.metrics(workdir) if "final" in record)
    assert (last["score_mean"], last["game_steps"], last["games_cut"]) == (9.0, 9.0, 2)
    lengths = Replay(workdir / "replay", 2, writable=False).lengths
    assert sorted(lengths) == [5, 5, 15, 15]  # 20 steps in each of two seats
