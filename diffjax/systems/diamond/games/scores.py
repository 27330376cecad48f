"""The Atari 100k benchmark's scores: games compared through a random and a human player's.

A human-normalised score is (score - random) / (human - random): 0 is random play, 1 is the human
tester. The table is the one that comparisons on this benchmark share, with the results that
Alonso et al. 2024 publish beside their code.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from diffjax.errors import choose


class Reference(NamedTuple):
    """Scores of one game.

    Attributes:
      random, human: of a player that acts at random, and of the human tester.
      published: DIAMOND's mean score in each of five training runs.
    """

    random: float
    human: float
    published: tuple[float, ...]


REFERENCES = {
    "Alien": Reference(227.8, 7127.7, (703.1, 683.6, 910.1, 826.8, 597.0)),
    "Amidar": Reference(5.8, 1719.5, (215.4, 233.5, 181.9, 275.6, 222.4)),
    "Assault": Reference(222.4, 742.0, (1570.93, 1321.8, 1638.1, 1791.5, 1309.5)),
    "Asterix": Reference(210.0, 8503.3, (3027.0, 2453.0, 7330.0, 2830.5, 2852.0)),
    "BankHeist": Reference(14.2, 753.1, (19.4, 16.3, 19.3, 13.7, 30.0)),
    "BattleZone": Reference(2360.0, 37187.5, (6340.0, 10520.0, 2220.0, 2400.0, 2030.0)),
    "Boxing": Reference(0.1, 12.1, (99.4, 84.0, 97.5, 71.4, 82.2)),
    "Breakout": Reference(1.7, 30.5, (124.0, 148.8, 81.0, 108.0, 200.6)),
    "ChopperCommand": Reference(811.0, 7387.8, (1378.0, 1113.0, 1789.0, 1720.0, 849.0)),
    "CrazyClimber": Reference(10780.5, 35829.4, (81227.0, 99253.0, 96533.0, 116221.0, 102605.0)),
    "DemonAttack": Reference(152.1, 1971.0, (245.4, 107.3, 295.7, 329.9, 462.3)),
    "Freeway": Reference(0.0, 29.6, (33.8, 33.7, 32.4, 33.0, 33.7)),
    "Frostbite": Reference(65.2, 4334.7, (254.9, 297.4, 280.5, 267.6, 269.9)),
    "Gopher": Reference(257.6, 2412.5, (980.8, 4337.0, 2518.0, 13846.6, 7807.2)),
    "Hero": Reference(1027.0, 30826.4, (3155.1, 7465.0, 3216.6, 7599.5, 6672.7)),
    "Jamesbond": Reference(29.0, 302.8, (424.0, 383.9, 508.5, 388.0, 432.5)),
    "Kangaroo": Reference(52.0, 3035.0, (9871.0, 5858.0, 5712.0, 3258.0, 2212.0)),
    "Krull": Reference(1598.0, 2665.5, (9137.3, 7246.9, 8139.0, 9341.0, 9186.5)),
    "KungFuMaster": Reference(258.5, 22736.3, (14325.0, 26783.0, 25959.0, 14546.0, 11955.0)),
    "MsPacman": Reference(307.3, 6951.6, (1776.4, 1896.2, 1642.6, 2419.8, 2055.9)),
    "Pong": Reference(-20.7, 14.6, (19.3, 20.9, 20.9, 20.7, 20.0)),
    "PrivateEye": Reference(24.9, 69571.3, (100.0, 100.0, 208.1, 63.4, 100.0)),
    "Qbert": Reference(163.9, 13455.0, (4506.5, 3890.8, 4707.2, 5041.8, 4350.2)),
    "RoadRunner": Reference(11.5, 7845.0, (12228.0, 25222.0, 29552.0, 20223.0, 16141.0)),
    "Seaquest": Reference(68.4, 42054.7, (307.0, 789.2, 769.2, 280.2, 610.6)),
    "UpNDown": Reference(533.4, 11693.2, (3737.0, 3190.4, 5494.0, 1376.8, 5483.2)),
}


def human_normalised(game: str, score: float | np.ndarray) -> float | np.ndarray:
    """Returns (score - random) / (human - random) for a game of `REFERENCES`, elementwise.

    Raises:
      UserError: a game that is not in the table.
    """
    reference = choose(game, REFERENCES, "game of the Atari 100k benchmark")
    return (score - reference.random) / (reference.human - reference.random)


def aggregate(normalised: Sequence[Sequence[float]]) -> dict[str, float]:
    """Summarises human-normalised scores over games and runs.

    Args:
      normalised: one row a game, with as many runs in each.

    Returns:
      `mean` and `median` over games of the games' means over runs; `iqm`, the mean of the middle
      half of all runs; `optimality_gap`, the mean of max(0, 1 - score) over all runs (the last two:
      Agarwal et al. 2021); `superhuman`, in how many games the mean is above 1.
    """
    scores = np.asarray(normalised, np.float64)
    games = scores.mean(1)
    ordered = np.sort(scores.ravel())
    # The middle half of n runs, where n / 4 need not be whole: cut as scipy's trim_mean does.
    cut = len(ordered) // 4
    return {
        "mean": float(games.mean()),
        "median": float(np.median(games)),
        "iqm": float(ordered[cut : len(ordered) - cut].mean()),
        "optimality_gap": float(np.maximum(0.0, 1.0 - scores).mean()),
        "superhuman": int((games > 1).sum()),
    }
