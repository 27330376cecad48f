"""Where studies write, and that they look there first."""

import sys

import diamond_runs
import pytest

from diffjax.errors import UserError
from diffjax.studies import drift, files, steps


def test_a_place_is_looked_at_and_left_alone(tmp_path):
    (tmp_path / "a.png").write_text("mine")
    out = files.place(str(tmp_path / "b"), [".json", ".png"])
    assert files.place(str(tmp_path / "b.json"), [".json", ".png"]) == out
    assert files.place(str(tmp_path / "b.5"), [".json", ".png"]) == tmp_path / "b.5"
    assert out == tmp_path / "b" and [p.name for p in tmp_path.iterdir()] == ["a.png"]
    for name, words in (
        (str(tmp_path / "a"), "a.png exists; give another name"),
        (str(tmp_path / "no" / "a"), "must be a name in a folder that is there"),
        ("", "must be a name in a folder that is there"),
        (str(tmp_path / ("x" * 250)), "cannot be written: File name too long"),
    ):
        with pytest.raises(UserError, match=words):
            files.place(name, [".json", ".png"])
    assert (tmp_path / "a.png").read_text() == "mine"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_folder_that_takes_no_files():
    with pytest.raises(UserError, match="--out /proc/a: /proc/a.json cannot be written"):
        files.place("/proc/a", [".json"])


def test_what_cannot_be_written_leaves_nothing_half(tmp_path):
    def fail(path):
        path.write_text("half")
        raise OSError

    with pytest.raises(OSError):
        files.write(tmp_path / "a", {".json": lambda p: files.write_json({"b": 1}, p), ".x": fail})
    assert (tmp_path / "a.json").read_text() == '{\n "b": 1\n}\n'
    assert not (tmp_path / "a.x").exists()


@pytest.mark.parametrize("ending", [".json", ".npz", ".gif"])
def test_drift_refuses_before_a_run_is_opened(ending, root, tmp_path, monkeypatch, capsys):
    run = diamond_runs.blank(diamond_runs.config_of(root, learn="denoiser"), tmp_path / "run")
    monkeypatch.setattr(drift, "open_run", None)  # it would be called
    (tmp_path / f"d{ending}").touch()
    words = ["--workdir", str(run), "--out", str(tmp_path / "d")]
    assert drift.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"d{ending} exists" in line


@pytest.mark.parametrize("ending", [".png", ".grid_3.json"])
def test_steps_refuses_before_a_run_is_opened(ending, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(steps, "_open", None)
    (tmp_path / f"s{ending}").touch()
    words = ["--workdir", str(trained), "--search", "3", "--out", str(tmp_path / "s")]
    assert steps.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"s{ending} exists" in line
