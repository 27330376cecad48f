"""Intervals and verdicts: how sure a difference of scores is, for one trained network or several.

A score is given as a function of which samples are kept, bool [n] -> float, so that leaving some
out is a call. The rules are those of docs/claims.md: of one network the delete-one-block jackknife
over samples that all arms share; of three or more, Student's t over the networks' values; of two,
what both say.

    d = statistic of all;  d_b = without block b of B
    interval = d -+ t_(B-1) sqrt((B - 1)/B sum_b (d_b - mean d_b)^2)

Efron & Stein 1981, "The Jackknife Estimate of Variance"; blocks keep the cost at B + 1 scores.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import stdtrit

from diffjax.errors import UserError

BLOCKS = 32
LEVEL = 0.95

Statistic = Callable[[np.ndarray], float]


def student(degrees: int, level: float = LEVEL) -> float:
    """Returns how many standard errors a two-sided interval reaches, by Student's t."""
    return float(stdtrit(degrees, (1 + level) / 2))


def jackknife(statistic: Statistic, n: int, blocks: int = BLOCKS) -> dict[str, float]:
    """Returns {"value", "low", "high"}: statistic of n samples and its 95 % interval.

    The blocks are of consecutive samples; with fewer samples than blocks, each is its own block.
    A statistic of several arms, such as a difference, leaves the same samples out of all.

    Args:
      statistic: keep, bool [n] -> float.

    Raises:
      UserError: fewer than three samples.
    """
    blocks = min(blocks, n)
    if blocks < 3:
        raise UserError(f"an interval over samples needs at least 3 of them, got {n}")
    block = np.arange(n) * blocks // n
    value = statistic(np.ones(n, bool))
    left_out = np.array([statistic(block != b) for b in range(blocks)])
    error = np.sqrt((blocks - 1) / blocks * np.sum((left_out - left_out.mean()) ** 2))
    reach = student(blocks - 1) * error
    return {"value": float(value), "low": float(value - reach), "high": float(value + reach)}


def over_runs(values: Sequence[float]) -> dict[str, float]:
    """Returns {"value", "low", "high"}: the mean over runs, and its 95 % interval by Student's t.

    Raises:
      UserError: fewer than two runs.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise UserError(f"an interval over runs needs at least 2 of them, got {values.size}")
    mean, error = values.mean(), values.std(ddof=1) / np.sqrt(len(values))
    reach = student(len(values) - 1) * error
    return {"value": float(mean), "low": float(mean - reach), "high": float(mean + reach)}


def verdict(interval: dict, sign: int) -> dict:
    """Adds the verdict: holds where the whole interval has this sign, -1 or 1."""
    ends = sorted((sign * interval["low"], sign * interval["high"]))
    word = "holds" if ends[0] > 0 else "does not hold" if ends[1] < 0 else "undecided"
    return {**interval, "verdict": word}


def joint(words: Sequence[str]) -> str:
    """Of several verdicts: what all of them say, else "undecided"."""
    return words[0] if words and len(set(words)) == 1 else "undecided"


def of_runs(statistics: Sequence[Statistic], n: int) -> dict[str, float]:
    """Returns the interval of a statistic that was taken of each run.

    One run: over its samples. Several: over the runs; of two it is very wide.

    Args:
      statistics: one a run, each a function of which of n samples are kept.
    """
    if len(statistics) == 1:
        return jackknife(statistics[0], n)
    every = np.ones(n, bool)
    return over_runs([statistic(every) for statistic in statistics])


def decide(statistics: Sequence[Statistic], n: int, sign: int) -> dict:
    """Returns the interval of a statistic over runs, and whether it has this sign.

    With two runs the verdict is the joint one of both alone, as an interval over two says nothing.
    """
    found = verdict(of_runs(statistics, n), sign)
    if len(statistics) == 2:
        alone = [verdict(jackknife(statistic, n), sign) for statistic in statistics]
        found["verdict"] = joint([one["verdict"] for one in alone])
        found["alone"] = alone
    return found


def better(
    arms: Sequence[Statistic], references: Sequence[Statistic], n: int, *, sign: int = -1
) -> dict:
    """The verdict on "the arm is better than the reference".

    Args:
      arms, references: one a run, in the same order.
      sign: -1 where a lower score is the better one, 1 where a higher is.

    Returns:
      {"value", "low", "high"} of how much better it is, and "verdict".
    """
    gain = lambda a, b: lambda keep: sign * (a(keep) - b(keep))
    return decide([gain(a, b) for a, b in zip(arms, references, strict=True)], n, 1)


def no_worse(
    arms: Sequence[Statistic],
    references: Sequence[Statistic],
    n: int,
    *,
    share: float,
    s_floor: float = 0.0,
    sign: int = -1,
) -> dict:
    """The verdict on "the arm is no worse than the reference, but for a margin".

    It holds where the interval of loss - M lies below 0, and does not hold where it lies above:

        loss = how much worse the arm is;   M = max(share reference, 2 s_floor)

    Of one run or two, M is taken anew with every block that is left out; of several, the reference
    in it is their mean.

    Args:
      arms, references: one a run, in the same order.
      share: of the reference's score that may be lost, fixed before looking.
      s_floor: the score's standard deviation between sets of real examples: what the judge cannot
        see. It keeps a network that has reached the floor from being judged by noise.
      sign: -1 where a lower score is the better one, 1 where a higher is.

    Returns:
      {"value", "low", "high"} of loss - M, "verdict", "margin": M of all samples, and "loss": the
      interval of the loss itself.
    """
    every = np.ones(n, bool)
    mean = float(np.mean([reference(every) for reference in references]))
    margin_of = lambda score: max(share * score, 2 * s_floor)
    several = len(references) > 2

    def less_margin(a, b):
        return lambda keep: -sign * (a(keep) - b(keep)) - margin_of(mean if several else b(keep))

    pairs = list(zip(arms, references, strict=True))
    found = decide([less_margin(a, b) for a, b in pairs], n, -1)
    loss = of_runs([lambda keep, a=a, b=b: -sign * (a(keep) - b(keep)) for a, b in pairs], n)
    return {**found, "margin": margin_of(mean), "loss": loss}


def smallest(verdicts: dict[int, str]) -> int | None:
    """Returns the smallest count that is enough, by tests in a fixed order, or None.

    From the largest count down, stopping at the first whose verdict is not "holds": each test is
    made only if all before it succeeded, so their number needs no correction.

    Args:
      verdicts: {count: verdict of "no worse than the reference"}.
    """
    enough = None
    for count in sorted(verdicts, reverse=True):
        if verdicts[count] != "holds":
            break
        enough = count
    return enough
