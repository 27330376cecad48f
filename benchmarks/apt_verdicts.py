"""The rules of docs/claims.md on APT, as functions of statistics: APT-1 to APT-17 and APT-19.

A statistic takes which of n samples are kept, bool [n], and gives a number, so that its interval is
the block jackknife's. Of two seeds a claim holds where it holds in each.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from diffjax.metrics.intervals import jackknife, joint, verdict

HOLDS, NOT, OPEN = "holds", "does not hold", "undecided"


class Arm(NamedTuple):
    """What is known of one arm of samples.

    Attributes:
      n: how many samples.
      kid, sharp, right: statistics: KID, sharpness relative to real pictures, the share whose class
        the judge names.
      covered: bool [m], of each real picture whether the samples reach it: recall is its mean.
    """

    n: int
    kid: Callable
    sharp: Callable
    right: Callable
    covered: np.ndarray


def interval(statistic: Callable, n: int) -> dict:
    return jackknife(statistic, n)


def difference(a: Arm, b: Arm, of: str) -> dict:
    """The interval of a's statistic less b's; recall leaves out real pictures, not samples."""
    if of == "recall":
        gap = a.covered.astype(float) - b.covered
        return jackknife(lambda keep: float(gap[keep].mean()), len(gap))
    one, other = getattr(a, of), getattr(b, of)
    return jackknife(lambda keep: one(keep) - other(keep), min(a.n, b.n))


def word(found: dict, holds: Callable, fails: Callable) -> dict:
    """The verdict of an interval by two rules."""
    return {**found, "verdict": HOLDS if holds(found) else NOT if fails(found) else OPEN}


below = lambda i, at=0.0: i["high"] < at
above = lambda i, at=0.0: i["low"] > at


def of_seed(arms: dict[str, Arm], s_floor: float) -> dict:
    """APT-1 to APT-7 of one seed's arms B25, C1, A1 and A2."""
    b25, c1, a1, a2 = (arms[name] for name in ("B25", "C1", "A1", "A2"))
    n, every = a1.n, np.ones(a1.n, bool)
    found = {}
    half = interval(lambda k: a1.kid(k) - c1.kid(k) / 2, n)
    found["APT-1"] = word(half, below, lambda i: a1.kid(every) >= c1.kid(every))
    log = interval(lambda k: np.log(a1.sharp(k)) - np.log(b25.sharp(k)), n)
    sober = a1.sharp(every) <= 1.2
    found["APT-2"] = word(log, lambda i: above(i) and sober, below)
    recall, right = (difference(b25, a1, of) for of in ("recall", "right"))
    both = (recall, right)
    holds = any(map(above, both)) and not any(map(below, both))
    said = HOLDS if holds else NOT if all(map(below, both)) else OPEN
    found["APT-3"] = {"recall": recall, "accuracy": right, "verdict": said}
    ratio = interval(lambda k: c1.sharp(k) / b25.sharp(k), n)
    found["APT-4"] = word(ratio, lambda i: below(i, 0.5), lambda i: above(i, 0.8))
    found["APT-5"] = verdict(difference(a2, a1, "kid"), -1)
    found["APT-6"] = no_worse(a1, b25, s_floor)
    found["APT-7"] = word(
        right, lambda i: above(i) and below(i, 0.1), lambda i: below(i) or above(i, 0.1)
    )
    return found


def no_worse(a: Arm, b: Arm, s_floor: float, share: float = 0.1) -> dict:
    """Whether a's KID is above b's by less than the margin: a share of b's, or twice the floor."""
    loss = lambda k: a.kid(k) - b.kid(k) - max(share * b.kid(k), 2 * s_floor)
    return verdict(jackknife(loss, min(a.n, b.n)), -1)


def over_seeds(found: list[dict]) -> dict:
    """{claim: {"verdict", "seeds"}}: of several seeds, what all say."""
    return {
        name: {"verdict": joint([one[name]["verdict"] for one in found]), "seeds": found_of}
        for name in found[0]
        for found_of in [[one[name] for one in found]]
    }


WORSE = {  # ablation: claim, which holds where the arm is worse than the default
    "g_diffusion": "APT-9",
    "d_random": "APT-10",
    "last_only": "APT-11",
    "half_depth": "APT-12",
    "t_zero": "APT-13",
}


def ablations(arms: dict[str, Arm], about: dict, s_floor: float) -> dict:
    """APT-8 to APT-17 and APT-19 of arms that share one distillation.

    Args:
      arms: {ablation: Arm}, with "default" and "again", which differ in their seeds.
      about: {ablation: {"d_loss": at the end, "alarm": bool, "kids": {"ema", "raw"}: KID at each
        kept step}}.
    """
    default, found = arms["default"], {}
    every = np.ones(default.n, bool)
    s_two = abs(default.kid(every) - arms["again"].kid(every))
    found["s_two"] = s_two
    worse = {}
    for name in set(arms) - {"default", "again"}:
        worse[name] = verdict(difference(arms[name], default, "kid"), 1)
        if abs(worse[name]["value"]) < s_two:
            worse[name]["verdict"] = OPEN
    found["worse by KID"] = worse
    for name, claim in WORSE.items():
        if name in worse:
            found[claim] = dict(worse[name])
    if "g_diffusion" in worse and about["g_diffusion"]["alarm"]:
        found["APT-9"]["verdict"] = HOLDS
    if "t_zero" in worse and arms["t_zero"].covered.mean() < default.covered.mean() / 2:
        found["APT-13"]["verdict"] = HOLDS
    if "no_r1" in worse:
        fell = about["no_r1"]["d_loss"] < about["default"]["d_loss"] / 10
        words = {(True, HOLDS): HOLDS, (False, NOT): NOT}
        said = words.get((fell, worse["no_r1"]["verdict"]), OPEN)
        found["APT-8"] = {**worse["no_r1"], "fell": fell, "verdict": said}
    if "small_batch" in worse:
        recall = difference(default, arms["small_batch"], "recall")
        said = worse["small_batch"]["verdict"]
        said = OPEN if said == HOLDS and not above(recall) else said
        found["APT-14"] = {**worse["small_batch"], "recall": recall, "verdict": said}
    if kids := about["default"].get("kids"):
        share = float(np.mean(np.array(kids["ema"]) < kids["raw"]))
        said = HOLDS if share >= 0.8 else NOT if share <= 0.5 else OPEN
        found["APT-15"] = {"share": share, "verdict": said}
    if "long_best" in arms:
        gap = verdict(difference(arms["long"], arms["long_best"], "kid"), 1)
        found["APT-16"] = gap
    if "relativistic" in worse:
        found["APT-17"] = no_worse(arms["relativistic"], default, s_floor)
        spread = {
            k: float(np.std(about[k]["kids"]["ema"][-10:])) for k in ("relativistic", "default")
        }
        steady = spread["relativistic"] < spread["default"]
        if found["APT-17"]["verdict"] == HOLDS and not steady:
            found["APT-17"]["verdict"] = OPEN
        found["APT-17"]["spread"] = spread
    if "fd" in worse:
        found["APT-19"] = no_worse(default, arms["fd"], s_floor)
    return found
