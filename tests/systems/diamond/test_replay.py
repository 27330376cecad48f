"""What was played, on disk: killed at every write, it is as if it had not been."""

import functools
import json
import os
import random
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.systems.diamond import batches, collect, episodes, games, replay, segments
from diffjax.systems.diamond.games.seats import Games

BALL = functools.partial(games.make, "ball", 8)


@jax.jit
def policy(obs, memory):
    """Its memory is not a function of the last frame, and its actions depend on the memory."""
    memory = {"sum": 0.9 * memory["sum"] + obs.mean((1, 2, 3)), "count": memory["count"] + 1}
    logits = jnp.stack([jnp.zeros(len(obs)), jnp.sin(memory["sum"]), jnp.cos(memory["count"])], -1)
    return logits, memory["sum"], memory


def zero(seats):
    return {"sum": jnp.zeros(seats), "count": jnp.zeros(seats)}


def play(path, target, *, seats=2, piece=20):
    """What a training run does: opens its replay, goes back to where it was, plays on."""
    kept = replay.Replay(path, seats)
    there = kept.resume(zero(seats))
    with Games(BALL, seats, seed=3, life_ends=True) as table:
        table.restore(there.game, there.actions)
        collector = lambda steps, memory: collect.collect(
            table, policy, memory, steps, seed=1, epsilon=0.1
        )
        replay.fill(kept, collector, there.memory, target, piece=piece)
    return kept


def assert_equal(a, b):
    """Same episodes, same place to go on from."""
    assert a.steps == b.steps and a.entries == b.entries
    for x, y in zip(a, b, strict=True):
        for name, p, q in zip(x._fields, x, y, strict=True):
            np.testing.assert_array_equal(p, q, err_msg=name)
    for x, y in zip(
        jax.tree.leaves(a.resume(zero(a.seats))), jax.tree.leaves(b.resume(zero(b.seats)))
    ):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """120 steps in two seats, never interrupted; do not write to it."""
    return play(tmp_path_factory.mktemp("replay") / "whole", 120)


# ---- what is stored --------------------------------------------------------------------------


def test_episodes_are_what_was_played(whole, tmp_path):
    with Games(BALL, 2, seed=3, life_ends=True) as table:
        found, _ = collect.collect(table, policy, zero(2), 120, seed=1, epsilon=0.1)
    seen = np.zeros((120, 2), int)
    for number, episode in enumerate(whole):
        where = whole.entries[number].where
        rows = (slice(where.first, where.first + len(episode.act)), where.seat)
        seen[rows] += 1
        for name in ("obs", "act", "rew", "end", "trunc"):
            np.testing.assert_array_equal(getattr(episode, name), getattr(found, name)[rows])
        last = (where.first + len(episode.act) - 1, where.seat)
        assert (episode.final is None) == (last not in found.final)
        if episode.final is not None:
            np.testing.assert_array_equal(episode.final, found.final[last])
    mapped = replay.Replay(whole.path, 2, writable=False, memory=0)
    assert isinstance(mapped[0].obs, np.memmap)
    np.testing.assert_array_equal(mapped[0].obs, whole[0].obs)
    assert (seen == 1).all()  # every step, once
    np.testing.assert_array_equal(whole[-1].act, whole[len(whole) - 1].act)
    with pytest.raises(IndexError):
        whole[len(whole)]
    assert whole.lengths.sum() == 240 and whole.signs.sum() == 240
    np.testing.assert_array_equal(
        whole.signs,
        [(found.rew == 0).sum() if s == 0 else (np.sign(found.rew) == s).sum() for s in (-1, 0, 1)],
    )
    assert whole.ends == found.end.sum() and len(whole) > 4
    firsts = [(e.where.first, e.where.seat) for e in whole.entries]
    assert firsts == sorted(firsts)


def test_how_much_is_added_at_once_changes_nothing(whole, tmp_path):
    assert_equal(play(tmp_path / "a", 120, piece=1000), whole)
    assert_equal(play(tmp_path / "b", 120, piece=7), whole)


@pytest.mark.parametrize("steps", [1, 37, 120, "an episode's first"])
def test_a_replay_before_it_went_on(whole, tmp_path, steps):
    """What a run that goes on from an older checkpoint learns from."""
    steps = whole.entries[3].where.first if isinstance(steps, str) else steps
    then, now = play(tmp_path / "then", steps), batches.Before(whole, steps)
    np.testing.assert_array_equal(now.lengths, then.lengths)
    for number, episode in enumerate(then):
        jax.tree.map(np.testing.assert_array_equal, now[number], episode)


def test_an_opened_replay_is_the_same(whole):
    again = replay.Replay(whole.path, 2, writable=False)
    assert_equal(again, whole)
    with pytest.raises(UserError, match="read only"):
        again.clear()


def test_it_resumes_anywhere(whole, tmp_path):
    for stop in (1, 33, 77):
        play(tmp_path / str(stop), stop)
        assert_equal(play(tmp_path / str(stop), 120), whole)


def test_a_reader_sees_what_is_confirmed(tmp_path):
    play(tmp_path, 40)
    reader = replay.Replay(tmp_path, 2, writable=False)
    before = [np.array(e.obs) for e in reader]
    play(tmp_path, 80)
    for old, episode in zip(before, reader, strict=True):  # its files were replaced, not changed
        np.testing.assert_array_equal(old, episode.obs)
    reader.refresh()
    assert reader.steps == 80 and reader.lengths.sum() == 160


def test_paths_equal_the_original_s(root):
    golden = json.loads((root / "tests" / "golden" / "diamond_games" / "data.json").read_text())
    for number, path in golden["episode_paths"].items():
        assert episodes.episode_path(int(number)).as_posix() == path.replace(".pt", ".npz")


def test_clearing(tmp_path):
    kept = play(tmp_path, 40)
    kept.clear()
    assert len(kept) == 0 and kept.steps == 0 and len(replay.Replay(tmp_path, 2)) == 0
    assert len(list(tmp_path.rglob("*.npz"))) == 1
    assert play(tmp_path, 40).steps == 40


def test_batches_come_from_it(whole):
    chances = segments.probabilities(whole.lengths)
    drawn = segments.draw(whole.lengths, chances, 16, 6, seed=(0,), step=0)
    batch = segments.batch_of(whole, *drawn, 6)
    assert batch["obs"].shape == (16, 6, 8, 8, 3) and batch["mask"].any()


def test_the_first_collection_s_rule(whole, tmp_path):
    signs = np.zeros((120, 2))
    for episode, entry in zip(whole, whole.entries, strict=True):
        first = entry.where.first
        signs[first : first + entry.length, entry.where.seat] = np.sign(episode.rew)
    rewarded = np.cumsum((signs != 0).sum(1))  # most are zero
    for enough in (1, 5, int(rewarded[-1])):
        want = next(n for n in range(30, 121, 10) if rewarded[n - 1] >= enough)
        assert replay.first_target(whole, 30, 200, enough=enough, piece=10) == want
        kept = replay.Replay(tmp_path / str(enough), 2)
        assert replay.first_target(kept, 30, 200, enough=enough, piece=10) == 30
        while kept.steps < (target := replay.first_target(kept, 30, 200, enough=enough, piece=10)):
            kept = play(tmp_path / str(enough), target)
        assert kept.steps == want
    # It goes on while there is too little, and not for ever.
    assert replay.first_target(whole, 30, 200, enough=1000, piece=10) == 130
    assert replay.first_target(whole, 30, 90, enough=1000, piece=10) == 90


# ---- kills -----------------------------------------------------------------------------------


class Killed(BaseException):
    """What no code catches, as nothing catches a kill."""


@pytest.mark.parametrize("half", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_kill_at_any_write_loses_and_repeats_nothing(whole, tmp_path, monkeypatch, half):
    """Stops at the k-th rename of a piece, for every k: with the temporary file whole, or half."""
    true_replace, stopped = os.replace, 0
    for k in range(1, 40):
        path, calls = tmp_path / str(k), []
        play(path, 60)

        def killed(source, target, calls=calls, k=k):
            calls.append(target)
            if len(calls) == k:
                if half:
                    os.truncate(source, os.path.getsize(source) // 2)
                raise Killed
            true_replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed)
            try:
                play(path, 120)
            except Killed:
                stopped += 1
            else:
                break
        assert list(path.rglob("*.tmp"))
        assert replay.Replay(path, 2).steps in (60, 80, 100)
        assert not list(path.rglob("*.tmp"))
        assert_equal(play(path, 120), whole)
    assert stopped >= 10  # and then one run came to its end


WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
from test_replay import play
from diffjax.systems.diamond import replay
true = replay.Replay.add
def add(self, *words):
    if not add.said:
        print("collecting", flush=True)
    add.said = True
    return true(self, *words)
add.said = False
replay.Replay.add = add
play(sys.argv[2], int(sys.argv[3]), piece=10)
"""


@pytest.mark.slow
def test_ten_kills_lose_and_repeat_nothing(root, tmp_path):
    """SIGKILL to a process that writes, at random moments, until it was killed ten times."""
    target, chance = 2500, random.Random(0)
    words = [sys.executable, "-c", WRITER, os.path.dirname(__file__), str(tmp_path / "killed")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")])}
    kills, left_over, steps = 0, 0, 0
    while kills < 10:
        with subprocess.Popen(
            [*words, str(target)], env=environment, stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout.readline() == "collecting\n"
            time.sleep(chance.uniform(0.0, 0.4))
            assert writer.poll() is None, "it finished before ten kills: raise target"
            writer.send_signal(signal.SIGKILL)
        kills += 1
        left_over += any((tmp_path / "killed").rglob("*.tmp"))
        reader = replay.Replay(tmp_path / "killed", 2, writable=False)
        assert reader.steps >= steps and reader.lengths.sum() == 2 * reader.steps
        files = list((tmp_path / "killed").glob("*/*/*/*.npz"))
        left_over += len(files) > len(reader)
        steps = reader.steps
    print(f"{kills} kills, {left_over} left something behind, {steps} of {target} steps done")
    killed = play(tmp_path / "killed", target)
    assert_equal(killed, play(tmp_path / "whole", target))


# ---- bad files -------------------------------------------------------------------------------


def good(length=5):
    return {
        "obs": np.zeros((length, 4, 4, 3), np.uint8),
        "act": np.zeros(length, np.int64),
        "rew": np.zeros(length, np.float32),
    }


@pytest.mark.parametrize(
    "change, words",
    [
        ({"obs": None}, "has no array 'obs'"),
        ({"rew": None}, "has no array 'rew'"),
        ({"obs": np.zeros((5, 4, 4, 3), np.float32)}, "obs .*float32"),
        ({"obs": np.zeros((5, 4, 4), np.uint8)}, r"obs is uint8 \[5, 4, 4\]"),
        ({"obs": np.zeros((0, 4, 4, 3), np.uint8)}, "obs is uint8"),
        ({"obs": np.zeros((5, 4, 4, 1), np.uint8)}, "obs is uint8"),
        ({"act": np.zeros(4, int)}, r"act has shape \[4\], obs has 5 frames"),
        ({"act": np.zeros(5)}, "act has dtype float64"),
        ({"act": np.full(5, -1)}, "actions are numbered from 0"),
        ({"rew": np.full(5, np.nan)}, "rew has numbers that are not finite"),
        ({"rew": np.array(["a"] * 5)}, "rew has dtype"),
        ({"end": np.array([0, 1, 0, 0, 0], bool)}, "write a file an episode"),
        ({"final": np.zeros((4, 5, 3), np.uint8)}, "final is uint8"),
        ({"where": np.array([1, 2])}, "where is"),
        ({"act": np.array([None] * 5)}, "act"),
    ],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_bad_episodes_are_one_line(tmp_path, change, words, save):
    path = tmp_path / "mine.npz"
    save(path, **{k: v for k, v in (good() | change).items() if v is not None})
    with pytest.raises(UserError, match=words) as found:
        episodes.read_episode(path)
    assert "mine.npz" in str(found.value) and "\n" not in str(found.value)


def test_damaged_files_are_one_line(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, **good(50))
    data = path.read_bytes()
    for cut in (0, 10, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(UserError, match="mine.npz"):
            episodes.read_episode(path)
    random_bytes = np.random.default_rng(0)
    for _ in range(300):  # no other error, and nothing larger than the file
        damaged = bytearray(data)
        for at in random_bytes.integers(0, len(data), 3):
            damaged[at] = random_bytes.integers(256)
        path.write_bytes(damaged)
        try:
            episode, _ = episodes.read_episode(path)
        except UserError:
            continue
        assert episode.obs.nbytes <= len(data) and int(episode.obs.max()) >= 0


def test_a_shape_beyond_the_file_is_refused(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, **good())
    data = path.read_bytes()
    shape, other = b"(5, 4, 4, 3)", b"(5, 4, 9, 9)"
    assert data.count(shape) == 1
    path.write_bytes(data.replace(shape, other))
    with pytest.raises(UserError, match="does not hold as much|cannot be read"):
        episodes.read_episode(path)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files are listed on Linux")
def test_few_files_are_open_at_once(tmp_path, monkeypatch):
    """A mapping holds its file open, and a process may have a thousand or so."""
    monkeypatch.setattr(episodes, "MAPPED", 3)
    for i in range(8):
        arrays = good(4)
        np.savez(tmp_path / f"{i}.npz", **{**arrays, "act": np.full(4, i)})
    size = good(4)["obs"].nbytes
    opened = lambda: len(os.listdir("/proc/self/fd"))
    found, before = replay.Folder(tmp_path, memory=2 * size), opened()
    assert found.actions == 8
    for i in [*range(8), *range(8)]:
        assert found[i].act.tolist() == [i] * 4
    assert opened() - before <= 3
    kinds = [isinstance(found[i].obs, np.memmap) for i in range(8)]
    assert kinds == [False] * 2 + [True] * 6  # the first two are in memory
    assert found[3] is found[3]


def test_a_folder_of_one_s_own(tmp_path):
    np.savez(tmp_path / "b.npz", **good(7))
    np.savez_compressed(tmp_path / "a.npz", **good(3))
    found = replay.Folder(tmp_path, memory=0)
    assert found.lengths.tolist() == [3, 7] and len(found) == 2
    assert isinstance(found[1].obs, np.memmap) and found[0].act.dtype == np.int32
    assert segments.probabilities(found.lengths, None).tolist() == [0.3, 0.7]
    with pytest.raises(UserError, match="no such folder"):
        replay.Folder(tmp_path / "c")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no episodes"):
        replay.Folder(tmp_path / "empty")
    np.savez(tmp_path / "c.npz", **good() | {"obs": np.zeros((5, 8, 4, 3), np.uint8)})
    with pytest.raises(UserError, match=r"frames of \[8, 4, 3\], the others are \[4, 4, 3\]"):
        replay.Folder(tmp_path)


def test_a_replay_that_is_not_whole_is_one_line(tmp_path):
    kept = play(tmp_path / "r", 40)
    with pytest.raises(UserError, match="of 2 seats, not 3"):
        replay.Replay(tmp_path / "r", 3)
    with pytest.raises(UserError, match="memory in it is of another policy"):
        kept.resume({"sum": np.zeros(3), "count": np.zeros(3)})
    with Games(BALL, 2, seed=3) as table:
        other, _ = collect.collect(table, policy, zero(2), 5)
    with pytest.raises(UserError, match="come next"):
        kept.add(other)
    file = tmp_path / "r" / episodes.episode_path(1)
    data = file.read_bytes()
    file.write_bytes((tmp_path / "r" / episodes.episode_path(0)).read_bytes())
    with pytest.raises(UserError, match="is it a copy"):
        replay.Replay(tmp_path / "r", 2)
    file.unlink()
    with pytest.raises(UserError, match="cannot do without"):
        replay.Replay(tmp_path / "r", 2)
    file.write_bytes(data)
    (tmp_path / "r" / "seats.npz").unlink()
    with pytest.raises(UserError, match="has no seats.npz"):  # and nothing is removed
        replay.Replay(tmp_path / "r", 2)
    assert file.is_file()
    with pytest.raises(UserError, match="seats, at least 1"):
        replay.Replay(tmp_path / "s", 0)
