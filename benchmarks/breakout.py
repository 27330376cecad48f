"""Breakout for measurements: recorded play, and where ball and paddle are.

    python benchmarks/breakout.py record --out FOLDER [--steps 60000]
    python benchmarks/breakout.py places --clips NAME.npz [--out places.json]
    python benchmarks/breakout.py chance --against RUN/metrics.jsonl [--games 100] [--out NAME.json]
    python benchmarks/breakout.py watch --run RUN --out NAME.gif [--games 1] [--steps 300]

`record` plays with three hands by turns, one a game: a random one, and two that follow the ball in
half and in nine tenths of their steps and are random in the others. FOLDER/train has the episodes
(a lost life ends one), FOLDER/test whole games, every tenth, that no model is trained on. `places`
compares real and imagined frames of an .npz that sample.py wrote: how far ball and paddle are from
where they are in the real game, beside the error of leaving the last real frame as it is. `chance`
plays whole real games at random and compares their scores with those that a run's policy had at
its end: the difference and Welch's 95 % interval. `watch` films a run's policy in the real game.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from diffjax import systems
from diffjax.errors import UserError, choose, command
from diffjax.nets.diamond_blocks import no_state
from diffjax.run import cli, clips, sampling
from diffjax.run import mesh as meshes
from diffjax.run.logs import read_metrics
from diffjax.systems import diamond
from diffjax.systems.diamond import games, held_out
from diffjax.systems.diamond.games.seats import Games
from diffjax.systems.diamond.quantise import to_float
from diffjax.systems.diamond.segments import Episode

FIRE, RIGHT, LEFT = 1, 2, 3
FOLLOW = (0.0, 0.5, 0.9)  # share of steps in which a hand follows the ball
BALL = slice(29, 57)  # rows of a 64 x 64 frame between bricks and paddle
PADDLE = slice(57, 60)
INSIDE = slice(4, 60)  # columns between the walls
LEAST = 20  # redness: below, there is nothing
TEST = 10  # every so many games is held out
LONGEST = 2000  # steps of a game


def places(frames: np.ndarray) -> dict[str, np.ndarray]:
    """Returns {"ball": [..., 2] (row, column), "paddle": [...] (column)} in pixels, NaN where there
    is none: the centre of what is red there.

    A ball among the bricks or above them is not told from them, and counts as not there.

    Args:
      frames: uint8 [..., 64, 64, 3].
    """
    red = np.clip(frames[..., 0].astype(np.float64) - frames[..., 2], 0, None)
    ball, paddle = red[..., BALL, INSIDE], red[..., PADDLE, INSIDE]
    ball, paddle = (np.where(part > LEAST, part, 0) for part in (ball, paddle))
    rows, columns = (np.arange(s.start, s.stop) for s in (BALL, INSIDE))
    with np.errstate(invalid="ignore"):
        total = ball.sum((-2, -1))
        row = (ball.sum(-1) * rows).sum(-1) / total
        column = (ball.sum(-2) * columns).sum(-1) / total
        place = (paddle.sum(-2) * columns).sum(-1) / paddle.sum((-2, -1))
    return {"ball": np.stack([row, column], -1), "paddle": place}


def hand(frame: np.ndarray, follow: float, random) -> int:
    """Returns an action: after the ball with probability `follow`, else any."""
    if random.random() >= follow:
        return int(random.integers(4))
    seen = places(frame)
    if np.isnan(seen["ball"][1]):
        return FIRE
    away = seen["ball"][1] - seen["paddle"]
    return RIGHT if away > 1 else LEFT if away < -1 else 0


def record(args) -> None:
    game, played, number = games.make("Breakout", 64), 0, 0
    args.out.mkdir(parents=True)
    scores: dict[float, list] = {}
    with tqdm(total=args.steps, unit="step") as bar:
        while played < args.steps:
            # Each hand has test games of its own.
            follow, held_out = FOLLOW[number % 3], (number // 3) % TEST == TEST - 1
            random = np.random.default_rng([args.seed, number])
            obs, _ = game.reset(seed=int(random.integers(1 << 31)))
            rows, lives, over = [], 0, False
            score, size = 0.0, 0
            for _ in range(LONGEST):
                act = hand(obs, follow, random)
                after, rew, end, trunc, info = game.step(act)
                lost = bool(info.get("life_loss", False)) and not held_out
                rows.append((obs, act, rew, end or lost, trunc))
                score, obs, over, size = score + rew, after, end or trunc, size + 1
                if lost and not over:
                    write(args.out, held_out, number, lives, rows, after)
                    rows, lives = [], lives + 1
                if over:
                    break
            if rows:
                write(args.out, held_out, number, lives, rows, obs)
            scores.setdefault(follow, []).append(score)
            played, number = played + size, number + 1
            bar.update(size)
    about = {f"follow {k}": {"games": len(v), "mean score": np.mean(v)} for k, v in scores.items()}
    print(json.dumps({"steps": played, **about}, indent=1))


def write(out: Path, held_out: bool, number: int, life: int, rows: list, final) -> None:
    """Writes an episode, compressed: frames of Breakout are mostly black."""
    parts = [np.stack(part) for part in zip(*rows, strict=True)]
    episode = Episode(parts[0], *parts[1:], final)
    folder = out / ("test" if held_out else "train")
    folder.mkdir(exist_ok=True)
    np.savez_compressed(folder / f"{number:05d}_{life}.npz", **episode._asdict())


def median(errors: np.ndarray) -> float | None:
    """Of those that there are; None: there are none."""
    there = errors[~np.isnan(errors)]
    return float(np.median(there)) if len(there) else None


def compare(args) -> None:
    if args.clips is None:
        raise UserError("places needs --clips NAME.npz")
    with np.load(args.clips, allow_pickle=False) as arrays:
        real, made = arrays["real"], arrays["imagined"]
    past = args.past
    true, seen = places(real), places(made)
    still = places(np.repeat(real[:, past - 1 : past], real.shape[1], 1))
    found = {}
    for offset in args.offsets:
        at = past + offset - 1
        if at >= real.shape[1]:
            continue
        row = {}
        for name, error in (("ball", lambda a: np.linalg.norm(a, axis=-1)), ("paddle", np.abs)):
            there = ~np.isnan(true[name][:, at]).reshape(len(real), -1).any(1)
            off = error(seen[name][there, at] - true[name][there, at])
            left = error(still[name][there, at] - true[name][there, at])
            row[name] = {
                "real ones": int(there.sum()),
                "imagined": float(np.mean(~np.isnan(off))),
                "median error": median(off),
                "within 2 pixels": float(np.mean(off <= 2)),
                "median error of the last real frame": median(left),
            }
        found[str(offset)] = row
    text = json.dumps(found, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


def chance(args) -> None:
    from scipy import stats

    if args.against is None:
        raise UserError("chance needs --against RUN/metrics.jsonl")
    scored = [record for record in read_metrics(args.against.parent) if "score_mean" in record]
    if not scored or scored[-1]["games"] < 2:
        raise UserError(f"{args.against}: no scores of two games or more")
    of_run = scored[-1]
    limit = cli.read_config(args.against.parent).evaluation.limit
    with Games(lambda: games.make("Breakout", 64), 8, args.seed, limit=limit) as seated:
        how = {"seed": args.seed, "keep": 0}
        played, _ = held_out.play(seated, held_out.uniform(4), None, args.games, **how)
    scores = np.array([game.score for game in played])
    cut = sum(game.length == limit for game in played)
    random = {"mean": scores.mean(), "std": scores.std(ddof=1), "games": len(scores), "cut": cut}
    n = of_run["games"]
    agent = {
        "mean": of_run["score_mean"], "std": of_run["score_std"] * (n / (n - 1)) ** 0.5,
        "games": n, "cut": of_run["games_cut"],
    }  # fmt: skip
    a, b = (part["std"] ** 2 / part["games"] for part in (agent, random))
    freedom = (a + b) ** 2 / (a**2 / (n - 1) + b**2 / (len(scores) - 1))
    off, half = agent["mean"] - random["mean"], stats.t.ppf(0.975, freedom) * (a + b) ** 0.5
    found = {
        "agent": agent,
        "random": random,
        "difference": off,
        "interval": [off - half, off + half],
    }
    text = json.dumps(found, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


def watch(args) -> None:
    if args.run is None or args.out is None:
        raise UserError("watch needs --run RUN and --out NAME.gif")
    system, config = systems.load(args.run)
    params, _ = sampling.load_params(system, args.run, meshes.make_mesh(meshes.LOCAL))
    net = diamond.parts_of(config, system.assets).actor_critic
    act = jax.jit(
        lambda obs, memory: net.apply({"params": params["actor_critic"]}, to_float(obs), memory)
    )
    count = args.games
    with Games(lambda: games.make("Breakout", 64), count, args.seed) as seated:
        memory = no_state(count, net.lstm_dim)
        how = {"seed": args.seed, "keep": args.steps, "most": args.steps}
        _, episodes = held_out.play(seated, act, memory, count, **how)
    longest = max(len(episode.obs) for episode in episodes)
    rows = [np.resize(e.obs[-1:], (longest, *e.obs.shape[1:])) for e in episodes]
    for row, episode in zip(rows, episodes):
        row[: len(episode.obs)] = episode.obs
    clips.save_clip(np.concatenate(rows, 2), args.out, scale=2)
    print([float(episode.rew.sum()) for episode in episodes], "points in the film")


@command
def main(argv: list[str]) -> int:
    parser = cli.Parser(prog="breakout.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("phase", help="record, places, chance or watch")
    add("--out", type=Path, help="record: a new folder; watch: a GIF; else a JSON file")
    add("--steps", type=cli.positive, help="record: in all, 60,000; watch: of each game, 300")
    add("--seed", type=int, default=0, help="of the hands")
    add("--clips", type=Path, help="places: an .npz with real and imagined")
    add("--past", type=cli.positive, default=4, help="frames that are real in both")
    add("--offsets", type=lambda text: [int(n) for n in text.split(",")], default=[10, 50])
    add("--against", type=Path, help="chance: metrics.jsonl of a run that was played for scores")
    add("--run", type=Path, help="watch: a run directory")
    add("--games", type=cli.positive, help="chance: at random, 100; watch: filmed, 1")
    args = parser.parse(argv)
    film = args.phase == "watch"
    args.steps = args.steps or (300 if film else 60_000)
    args.games = args.games or (1 if film else 100)
    phases = {"record": record, "places": compare, "chance": chance, "watch": watch}
    choose(args.phase, phases, "phase")(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
