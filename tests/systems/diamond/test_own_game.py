"""The game that the documentation tells how to write, from its page to an imagined one."""

import json
import re

import diamond_runs
import numpy as np
import pytest

import sample
import train


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
