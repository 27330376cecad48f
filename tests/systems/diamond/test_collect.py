"""Playing real games with a policy; the original's loop is in test_diamond_world.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.systems.diamond import collect, games, held_out
from diffjax.systems.diamond.games.ball import Discrete
from diffjax.systems.diamond.games.seats import Games, Step
from diffjax.systems.diamond.rollout import categorical

# ---- drawing actions -------------------------------------------------------------------------


def test_actions_follow_their_probabilities():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    uniform = (jnp.arange(1000) + 0.5) / 1000
    found = np.bincount(categorical(jnp.broadcast_to(logits, (1000, 3)), uniform))
    np.testing.assert_array_equal(found, [500, 300, 200])
    cold = collect._choose(jnp.broadcast_to(logits, (1000, 3)), uniform, 0.5)
    squares = np.array([0.25, 0.09, 0.04])
    np.testing.assert_allclose(np.bincount(cold) / 1000, squares / squares.sum(), atol=1e-3)


def test_edges_of_the_draw():
    logits = jnp.zeros((3, 7))
    found = categorical(logits, jnp.array([0.0, 0.5, 1 - 2**-24]))
    assert found.tolist() == [0, 3, 6] and found.dtype == jnp.int32
    # A forbidden action is never drawn, though its cumulated probability is 0.
    assert categorical(jnp.array([[-jnp.inf, 0.0]]), jnp.zeros(1)).tolist() == [1]


def test_memory_is_forgotten_by_row():
    memory = {"h": jnp.ones((3, 2)), "n": jnp.ones((3, 2, 2))}
    found = collect.forget(memory, jnp.array([True, False, True]))
    assert found["h"].sum(-1).tolist() == [0, 2, 0] and found["n"].sum((1, 2)).tolist() == [0, 4, 0]


def test_draws_depend_on_game_and_step_alone():
    game, played = np.array([4, 7]), np.array([10, 0])
    uniform, _, action = collect.draws(1, game, played, 3)
    alone, _, one = collect.draws(1, game[1:], played[1:], 3)
    assert uniform[1] == alone[0] and action[1] == one[0]
    table = np.array([collect.draws(1, np.array([0]), np.array([t]), 3)[2][0] for t in range(600)])
    assert np.bincount(table).min() > 150 and set(table) == {0, 1, 2}


# ---- collecting ------------------------------------------------------------------------------

BALL = functools.partial(games.make, "ball", 8)


@jax.jit
def counting(obs, memory):
    """A policy whose memory counts the frames since it was zero, and that goes left or right."""
    count = memory["count"] + 1
    logits = jnp.stack([jnp.zeros(len(obs)), jnp.sin(count / 5), jnp.cos(count / 5)], -1)
    return logits, count, {"count": count}


def zero(n):
    return {"count": jnp.zeros(n)}


def test_collection_is_what_the_games_did():
    with Games(BALL, 2, seed=3, life_ends=True) as seats:
        found, memory = collect.collect(seats, counting, zero(2), 120, seed=5)
    with Games(BALL, 2, seed=3, life_ends=True) as again:
        for t in range(120):
            np.testing.assert_array_equal(again.obs, found.obs[t])
            np.testing.assert_array_equal(again.game, found.game[t])
            out = again.step(found.act[t])
            np.testing.assert_array_equal(out.reward, found.rew[t])
            np.testing.assert_array_equal(out.end, found.end[t])
    assert found.end.sum() >= 4 and set(found.final) == {
        (t, n) for t, n in np.argwhere(found.end | found.trunc).tolist()
    }
    since = 119 - np.array([np.flatnonzero(found.end[:, n])[-1] for n in range(2)])
    np.testing.assert_array_equal(memory["count"], since)  # zero after an end, one more a step


class Cut:
    """Two seats whose games are merely cut: the first after its third step, and counted from 0."""

    obs, num_actions = np.zeros((2, 1, 1, 3), np.uint8), 3

    def __init__(self):
        self.game, self.played = np.arange(2), np.zeros(2, int)

    def step(self, action):
        trunc = np.array([self.played[0] == 2, False])
        self.game = np.where(trunc, self.game + 2, self.game)
        self.played = np.where(trunc, 0, self.played + 1)
        no = np.zeros(2, bool)
        return Step(self.obs, np.zeros(2, np.float32), no, trunc, trunc, self.obs)


def test_memory_is_forgotten_where_a_game_is_cut():
    found, memory = collect.collect(Cut(), counting, zero(2), 4)
    assert memory["count"].tolist() == [1, 4]
    assert set(found.final) == {(2, 0)} and not found.end.any()


def test_collection_in_parts_is_the_same():
    with Games(BALL, 2, seed=3) as seats:
        whole, _ = collect.collect(seats, counting, zero(2), 60, seed=5, epsilon=0.3)
    with Games(BALL, 2, seed=3) as seats:
        first, memory = collect.collect(seats, counting, zero(2), 25, seed=5, epsilon=0.3)
        second, _ = collect.collect(seats, counting, memory, 35, seed=5, epsilon=0.3)
    for a, b, c in zip(whole[:-1], first[:-1], second[:-1], strict=True):
        np.testing.assert_array_equal(a, np.concatenate([b, c]))


def test_epsilon_is_drawn_once_for_all_seats():
    def certain(obs, memory):
        return jnp.log(jnp.eye(3)[jnp.zeros(len(obs), int)]), jnp.zeros(len(obs)), memory

    with Games(BALL, 6, seed=0) as seats:
        found, _ = collect.collect(seats, certain, {}, 300, epsilon=0.3)
    explored = (found.act != 0).any(1)
    assert 0.2 < explored.mean() < 0.4  # five of six seats would hide it if each drew its own
    chosen = np.bincount(found.act[explored].ravel(), minlength=3) / found.act[explored].size
    assert np.abs(chosen - 1 / 3).max() < 0.08


def test_games_are_scored_whatever_is_played_beside_them():
    with Games(BALL, 1, seed=2) as seats:
        alone = collect.play_games(seats, counting, zero(1), 5, seed=1)
    with Games(BALL, 3, seed=2) as seats:
        together = collect.play_games(seats, counting, zero(3), 5, seed=1)
    assert alone == together and [p.game for p in alone] == [0, 1, 2, 3, 4]
    assert all(p.length > 10 and p.score <= 1000 for p in alone)


class Endless:
    """A game that pays a point a step for ever; its picture is how many steps were made."""

    action_space = Discrete(3)

    def reset(self, seed=None):
        self.steps = 0
        return self.picture(), {}

    def step(self, action):
        self.steps += 1
        return self.picture(), 1.0, False, False, {}

    def picture(self):
        return np.full((8, 8, 3), self.steps, np.uint8)

    def close(self):
        pass


@pytest.mark.parametrize("count, processes", [(1, 0), (2, 0), (2, 1)])
def test_a_game_that_never_ends_is_cut(count, processes):
    asked = iter([False] * 100)  # so that this ends, too
    with Games(Endless, count, limit=7, processes=processes) as seats:
        found, recorded = held_out.play(
            seats, counting, zero(count), 3, keep=20, stop=lambda: next(asked, True)
        )
    assert found == [collect.Played(game, 7.0, 7) for game in range(3)]
    for episode in recorded:
        assert episode.trunc.tolist() == [False] * 6 + [True] and not episode.end.any()
        assert (episode.obs[:, 0, 0, 0] == range(7)).all() and (episode.final == 7).all()


def test_a_game_is_cut_where_it_was_to_be_after_it_is_restored():
    with Games(Endless, 2, limit=7, life_ends=True) as seats:
        seats.restore([4, 1], [[0] * 5, [0]])
        cut = [seats.step([0, 0]).trunc.tolist() for _ in range(6)]
        assert cut == [[False, False], [True, False], *[[False, False]] * 3, [False, True]]
        assert seats.game.tolist() == [6, 3] and seats.played.tolist() == [4, 0]


def test_the_end_of_a_game_at_its_limit_is_its_end():
    """Not a cut: nothing is to be expected after it."""
    with Games(BALL, 1, seed=2) as seats:
        (want,) = collect.play_games(seats, counting, zero(1), 1, seed=1)
    with Games(BALL, 1, seed=2, limit=want.length) as seats:
        found, _ = collect.collect(seats, counting, zero(1), want.length, seed=1)
    assert found.end[-1, 0] and found.over[-1, 0] and not found.trunc.any()


def test_held_out_games_have_the_same_scores():
    with Games(BALL, 2, seed=2) as seats:
        want = collect.play_games(seats, counting, zero(2), 3, seed=1)
    with Games(BALL, 2, seed=2) as seats:
        found, recorded = held_out.play(seats, counting, zero(2), 3, seed=1, keep=15)
    assert found == want
    assert [len(e.act) for e in recorded] == [min(15, game.length) for game in want]
    for episode, game in zip(recorded, want, strict=True):
        assert episode.end[-1] == (game.length <= 15) == (episode.final is not None)


@pytest.mark.parametrize(
    "words", [{"epsilon": 1.5}, {"epsilon": float("nan")}, {"temperature": 0.0}, {"steps": 0}]
)
def test_bad_settings(words):
    words = {"steps": 3} | words
    with Games(BALL, 1) as seats, pytest.raises(UserError, match="collection: epsilon"):
        collect.collect(seats, counting, zero(1), **words)
