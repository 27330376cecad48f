"""The games: Atari against the original's frames and streams, our own by what a player can do."""

import functools
import hashlib
import json

import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.systems.diamond import games
from diffjax.systems.diamond.games import atari, ball, scores
from diffjax.systems.diamond.games.checked import Checked
from diffjax.systems.diamond.games.resize import area_weights, resize_area
from diffjax.systems.diamond.games.seats import Games


@pytest.fixture(scope="module")
def golden(root):
    return root / "tests" / "golden" / "diamond_games"


# ---- resizing --------------------------------------------------------------------------------


def test_resizing_equals_opencv(golden):
    stored = np.load(golden / "atari_frames.npz")
    frames = {k: stored[k] for k in stored.files if k.endswith("pooled_210x160")}
    assert len(frames) == 6
    for key, frame in frames.items():
        want = stored[key.replace("pooled_210x160", "resized_64")]
        np.testing.assert_array_equal(resize_area(frame, 64, 64), want)
    y, x, c = np.meshgrid(*map(np.arange, (210, 160, 3)), indexing="ij")
    synthetic = ((7 * x + 13 * y + 29 * c + (x * y) // 17) % 256).astype(np.uint8)
    np.testing.assert_array_equal(resize_area(synthetic, 64, 64), stored["synthetic/resized_64"])


@pytest.mark.parametrize("source, target", [(160, 64), (210, 64), (64, 64), (7, 3), (5, 8), (9, 1)])
def test_areas_add_up(source, target):
    weights = area_weights(source, target)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(weights.sum(0), target / source, rtol=1e-2)
    grey = np.full((source, source, 3), 77, np.uint8)
    assert (resize_area(grey, target, target) == 77).all()


# ---- Atari -----------------------------------------------------------------------------------


def test_the_26_games_are_the_benchmark_s():
    assert atari.ACTIONS.keys() == scores.REFERENCES.keys() and len(atari.ACTIONS) == 26


@pytest.mark.parametrize("name", ["Breakout", "Pong", "Seaquest"])
def test_streams_equal_the_original_s(golden, name):
    pytest.importorskip("ale_py")
    want = json.loads((golden / "atari_streams.json").read_text())[name]
    game = games.make(name)
    assert game.action_space.n == want["n_actions"] == atari.ACTIONS[name]
    obs, info = game.reset(seed=123)
    assert hashlib.sha1(obs.tobytes()).hexdigest() == want["reset_sha1"]
    assert info["lives"] == want["lives_after_reset"]
    assert game._ale.getFrameNumber() == want["frame_number_after_reset"]
    actions, digest = np.random.RandomState(0), hashlib.sha1()
    rewards, life_losses, done = [], [], []
    for t in range(300):
        obs, reward, terminated, truncated, info = game.step(actions.randint(want["n_actions"]))
        assert obs.dtype == np.uint8 and obs.shape == (64, 64, 3)
        digest.update(obs.tobytes())
        if reward:
            rewards.append([t, reward])
        if info["life_loss"]:
            life_losses.append(t)
        if terminated or truncated:
            done.append(t)
            game.reset()
    game.close()
    assert (rewards, life_losses) == (want["rewards"], want["life_loss_steps"])
    assert done == want["done_steps"]
    assert digest.hexdigest() == want["sha1_of_300_obs"]


def test_frames_are_pooled(golden):
    pytest.importorskip("ale_py")
    stored = np.load(golden / "atari_frames.npz")
    game = games.make("Breakout")
    game.reset(seed=123)
    actions = np.random.RandomState(0)
    for _ in range(61):  # steps are counted from 0
        obs, *_ = game.step(actions.randint(4))
    np.testing.assert_array_equal(game.pooled(), stored["Breakout/step60/pooled_210x160"])
    np.testing.assert_array_equal(obs, stored["Breakout/step60/resized_64"])


@pytest.mark.slow
@pytest.mark.parametrize("name", atari.ACTIONS)
def test_every_game_starts(name):
    pytest.importorskip("ale_py")
    game = games.make(name)
    obs, _ = game.reset(seed=1)
    assert obs.shape == (64, 64, 3) and game.action_space.n == atari.ACTIONS[name]
    assert sorted(games.keys_of(game).values()) == list(range(game.action_space.n))
    for action in range(game.action_space.n):
        game.step(action)
    game.close()


def test_a_missing_library_is_one_line(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(UserError, match="ale_py.*pip install 'diffjax.atari.'"):
        games.make("Pong")


# ---- our own ---------------------------------------------------------------------------------


def chase(game: ball.Ball) -> int:
    """Plays well: moves the paddle under the ball, which it reads from the game's inside."""
    away = game._place[0] - game._paddle
    return ball.STAY if abs(away) < ball.PADDLE_SPEED / 2 else ball.LEFT if away < 0 else ball.RIGHT


@pytest.mark.parametrize("size", [8, 16, 64])
def test_ball_rewards_a_good_player(size):
    game = games.make("ball", size)
    obs, info = game.reset(seed=3)
    assert obs.dtype == np.uint8 and obs.shape == (size, size, 3) and info["lives"] == 3
    returned = [game.step(chase(game)) for _ in range(1000)]
    assert sum(r[1] for r in returned) > 20 and not any(r[2] for r in returned)
    assert returned[-1][3] and not returned[-2][3]  # truncated after 1000 steps


def test_ball_ends_without_lives():
    game = games.make("ball", 16)
    game.reset(seed=0)
    rewards, losses = [], 0
    for _ in range(1000):
        _, reward, terminated, _, info = game.step(ball.LEFT)
        rewards.append(reward)
        losses += info["life_loss"]
        if terminated:
            break
    assert terminated and losses == 3 and rewards.count(-1.0) == 3 and info["lives"] == 0


def test_ball_is_decided_by_its_seed():
    def play(seed):
        game = games.make("ball", 16)
        frames = [game.reset(seed=seed)[0]]
        frames += [game.step(t % 3)[0] for t in range(150)]
        return np.stack(frames)

    np.testing.assert_array_equal(play(5), play(5))
    assert (play(5) != play(6)).any()


def test_keys():
    assert games.keys_of(games.make("ball")) == ball.KEYS
    game = type("", (), {"meanings": ("NOOP", "FIRE", "UPLEFT", "DOWNRIGHTFIRE")})()
    keys = games.keys_of(game)
    assert keys == {"": 0, "Space": 1, "ArrowUp+ArrowLeft": 2, "ArrowDown+ArrowRight+Space": 3}
    plain = type("", (), {"action_space": ball.Discrete(2)})()
    assert games.keys_of(plain) == {"": 0, "Digit0": 0, "Digit1": 1}


# ---- by name, and somebody else's ------------------------------------------------------------


@pytest.mark.parametrize(
    "name, words",
    [
        ("Brekout", "did you mean 'Breakout'"),
        ("bal", "did you mean 'ball'"),
        ("", "known: ball"),
        (7, "a name is wanted"),
        ("no_such_module_of_mine:make", "No module named 'no_such_module_of_mine'"),
        ("json:lods", "did you mean 'loads'"),
        ("json:", "module:function"),
        ("../x:make", "module:function"),
        ("collections:OrderedDict", "which has no reset"),
    ],
)
def test_bad_names(name, words):
    with pytest.raises(UserError, match=words) as found:
        games.make(name)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("size", [7, 2048, 64.0, True])
def test_bad_sizes(size):
    with pytest.raises(UserError, match="size"):
        games.make("ball", size)


def test_a_name_from_a_file_executes_nothing():
    with pytest.raises(UserError, match="execute code"):
        games.make("this:s", own=False)
    import sys

    assert "this" not in sys.modules


class Mine:
    """A game of 10 steps, with knobs to spoil it."""

    action_space = ball.Discrete(2)

    def __init__(self, **spoil):
        self.spoil, self.frame = spoil, np.zeros((20, 30, 3), np.uint8)

    def reset(self, seed=None):
        self.t = 0
        return self.spoil.get("reset", (self.frame, {}))

    def step(self, action):
        self.t += 1
        self.frame[:] = self.t  # into the same array, as many games do
        values = {
            "image": self.frame,
            "reward": 0.5,
            "end": self.t == 10,
            "stop": False,
            "info": {},
        }
        return self.spoil.get("step", tuple((values | self.spoil).get(k) for k in values))


def test_a_game_of_one_s_own(monkeypatch, tmp_path):
    (tmp_path / "mygame.py").write_text(
        "import numpy as np\n"
        "class Game:\n"
        "    num_actions = 2\n"
        "    def reset(self, seed=None):\n"
        "        return np.full((20, 30, 3), 9, np.uint8), {}\n"
        "    def step(self, action):\n"
        "        return np.full((20, 30, 3), 10 + action, np.uint8), 1, False, False, {}\n"
        "def make():\n"
        "    return Game()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    game = games.make("mygame:make", 16)
    obs, _ = game.reset(seed=0)
    assert obs.shape == (16, 16, 3) and (obs == 9).all() and game.action_space.n == 2
    assert (game.step(1)[0] == 11).all()
    with pytest.raises(UserError, match="did you mean 'make'"):
        games.make("mygame:maek")


@pytest.mark.parametrize(
    "spoil, words",
    [
        ({"reset": np.zeros(3)}, "reset: returned"),
        ({"step": (1, 2)}, "step: returned a tuple of 2"),
        ({"image": np.zeros((20, 30, 3), np.float32)}, "observation is float32"),
        ({"image": np.zeros((20, 30), np.uint8)}, r"uint8 \[20, 30\], uint8 \[H, W, 3\] is wanted"),
        ({"image": np.zeros((20, 0, 3), np.uint8)}, "observation"),
        ({"image": np.zeros((9000, 1, 3), np.uint8)}, "observation"),
        ({"reward": float("nan")}, "reward is nan"),
        ({"reward": "one"}, "a number is wanted"),
        ({"end": 1}, "terminated is 1"),
        ({"stop": None}, "truncated is None"),
        ({"info": []}, "a dictionary is wanted"),
    ],
)
def test_a_wrong_game_is_one_line(spoil, words):
    with pytest.raises(UserError, match=words) as found:
        game = Checked(Mine(**spoil), "mine:make")
        game.reset(seed=0)
        game.step(0)
    assert "mine:make" in str(found.value) and "\n" not in str(found.value)


@pytest.mark.parametrize("n", [0, -1, 2.0, None, True, 1 << 20])
def test_wrong_actions_are_one_line(n):
    game = Mine()
    game.action_space = ball.Discrete(n)
    with pytest.raises(UserError, match="action_space.n"):
        Checked(game, "mine:make")


def test_frames_of_a_game_that_reuses_its_array_are_kept():
    game = Checked(Mine(), "mine", 20)
    game.reset()
    first, second = game.step(0)[0], game.step(0)[0]
    assert (first == 1).all() and (second == 2).all()


def test_gymnasium_s_own_games_fit():
    gymnasium = pytest.importorskip("gymnasium")

    class Theirs(gymnasium.Env):
        action_space = gymnasium.spaces.Discrete(3)
        observation_space = gymnasium.spaces.Box(0, 255, (12, 12, 3), np.uint8)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return self.observation_space.sample(), {}

        def step(self, action):
            return self.observation_space.sample(), 0.0, False, False, {}

    game = Checked(Theirs(), "theirs", 8)
    assert game.reset(seed=1)[0].shape == (8, 8, 3) and game.step(2)[1] == 0.0
    shifted = Theirs()
    shifted.action_space = gymnasium.spaces.Discrete(3, start=1)
    with pytest.raises(UserError, match="start at 1"):
        Checked(shifted, "theirs")


# ---- several at once -------------------------------------------------------------------------

BALL = functools.partial(games.make, "ball", 8)


def play(seats: Games, steps: int):
    """Steps with actions that depend on the game and its step alone; all that came, stacked."""
    found = []
    for _ in range(steps):
        found.append(seats.step((seats.game + seats.played) % 3))
    return [np.stack(part) for part in zip(*found, strict=True)]


def test_seats_end_lives_and_games():
    with Games(BALL, 2, seed=4, life_ends=True) as seats:
        assert (seats.obs.shape, seats.num_actions) == ((2, 8, 8, 3), 3)
        obs, reward, end, trunc, over, final = play(seats, 400)
        assert (seats.game % 2 == [0, 1]).all() and (seats.game > 1).all()
    assert not trunc.any() and over.sum() >= 4
    assert (end == (reward < 0)).all()  # here every lost life ends an episode
    np.testing.assert_array_equal(obs[~over], final[~over])
    assert (obs[over] != final[over]).any(axis=(1, 2, 3)).all()
    with Games(BALL, 2, seed=4) as whole:
        _, _, end, _, over, _ = play(whole, 400)
    assert (end == over).all()


def test_a_game_does_not_depend_on_the_seats():
    def frames_of(number, count):
        with Games(BALL, count, seed=9) as seats:
            rows = []
            while (seats.game <= number).any():
                row = np.flatnonzero(seats.game == number)
                rows += [seats.obs[i] for i in row]
                seats.step((seats.game + seats.played) % 3)
        return np.stack(rows)

    np.testing.assert_array_equal(frames_of(2, 1), frames_of(2, 3))


def test_a_game_is_restored_from_its_actions():
    with Games(BALL, 2, seed=4) as seats, Games(BALL, 2, seed=4) as again:
        actions, games_then = [[], []], seats.game
        for _ in range(150):
            choice = (seats.game + seats.played) % 3
            for i, a in enumerate(choice):
                actions[i].append(a)
            seats.step(choice)
            for i in np.flatnonzero(seats.game != games_then):
                actions[i] = []
            games_then = seats.game
        assert (seats.game > 1).any()
        again.restore(seats.game, actions)
        np.testing.assert_array_equal(again.obs, seats.obs)
        for a, b in zip(play(seats, 60), play(again, 60), strict=True):
            np.testing.assert_array_equal(a, b)
        with pytest.raises(UserError, match="not the same game"):
            again.restore([0, 1], [[1] * 500, []])


def test_actions_are_checked():
    with Games(BALL, 2) as seats:
        for bad in ([0], [0, 3], [-1, 0], [0.0, 1.0]):
            with pytest.raises(UserError, match="actions"):
                seats.step(bad)


@pytest.mark.parametrize("words", [{"count": 0}, {"processes": -1}, {"seed": -1}])
def test_bad_numbers_of_seats(words):
    with pytest.raises(UserError, match="games: count"):
        Games(BALL, **words)


@pytest.mark.slow
def test_processes_change_nothing():
    with Games(BALL, 3, seed=1) as here, Games(BALL, 3, seed=1, processes=2) as there:
        for a, b in zip(play(here, 200), play(there, 200), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_process_that_fails_says_why():
    with pytest.raises(UserError, match="unknown game 'bal'"):
        Games(functools.partial(games.make, "bal"), 2, processes=1)
    with Games(BALL, 2, processes=2) as seats:
        seats._groups[0]._process.kill()
        with pytest.raises(RuntimeError, match="process that plays games ended"):
            seats.step([0, 0])


# ---- scores ----------------------------------------------------------------------------------


def test_the_published_aggregates():
    table = {g: r.published for g, r in scores.REFERENCES.items()}
    found = scores.aggregate([scores.human_normalised(g, np.array(s)) for g, s in table.items()])
    assert found["mean"] == pytest.approx(1.459, abs=5e-4)
    assert found["median"] == pytest.approx(0.373, abs=5e-4)
    assert found["iqm"] == pytest.approx(0.641, abs=5e-4)
    assert found["optimality_gap"] == pytest.approx(0.480, abs=5e-4)
    assert found["superhuman"] == 11


def test_normalised_scores():
    assert scores.human_normalised("Pong", -20.7) == 0
    assert scores.human_normalised("Breakout", 30.5) == pytest.approx(1)
    with pytest.raises(UserError, match="did you mean 'Pong'"):
        scores.human_normalised("Pongg", 1.0)
