"""What docs/claims.md asks of motions made in few steps, MDM-1 to MDM-6, from features.

Reads what `mdm_steps.py sample` kept: RUN.ARM_sSEED_JUDGE.npz and real_JUDGE.npz. Runs are t10,
t20, t50, t100 and t1000, trained with so many steps, and the same with p before them, trained on
clips whose frames were permuted. KID decides; FD in 24 principal components of the real clips'
features stands beside it. Intervals are over training seeds.
"""

from pathlib import Path

import numpy as np

from diffjax.errors import UserError
from diffjax.metrics import frechet, intervals, kid

MARGIN = 0.10
COMPONENTS = 24
FROZEN, MOVING = 0.5, 0.8  # of the real clips' speed
COUNTS = (100, 50, 20, 10)  # in the order in which they are tested
Arms = dict[str, list]  # {arm: one value a seed}


def read(folder: Path) -> dict[str, dict]:
    """Returns {judge: {"kid": Arms of `kid.Kernels`, "fd", "speed": Arms of numbers, "real_speed",
    "s_floor", "fd_floor", "kid_floor", "n"}}.

    An arm is RUN.ARM, "t1000.ddim50". "real_speed" is the mean of as many real clips as an arm has
    samples, taken in the same order.
    """
    found = {}
    for file in sorted(folder.glob("real_*.npz")):
        version = file.stem.removeprefix("real_")
        arms: dict[str, list] = {}
        for other in sorted(folder.glob(f"*_s?_{version}.npz")):
            arms.setdefault(other.stem.removesuffix(f"_{version}")[:-3], []).append(_load(other))
        if arms:
            found[version] = _known(*_load(file), arms)
    return found


def _known(real, pace, arms: dict[str, list]) -> dict:
    """What `read` returns of one judge: real clips' features and speeds, (the same) of each arm."""
    mean = real.mean(0)
    axes = np.linalg.svd(real - mean, full_matrices=False)[2][:COMPONENTS].T
    moments = lambda x: frechet.moments((x - mean) @ axes)
    fd = lambda a, b: float(frechet.frechet_distance(moments(a), moments(b)))
    n = len(next(iter(arms.values()))[0][0])
    of = lambda what: {arm: [what(*one) for one in seeds] for arm, seeds in arms.items()}
    return {
        "kid": of(lambda seen, _: kid.Kernels(seen, real)),
        "fd": of(lambda seen, _: fd(seen, real)),
        "speed": of(lambda _, speed: float(speed.mean())),
        "n": n,
        "real_speed": float(pace[np.arange(n) % len(pace)].mean()),
        "s_floor": kid.floor_spread(real, n),
        "fd_floor": _halves(real, fd),
        "kid_floor": _halves(real, lambda a, b: kid.mmd2(a, b).value),
    }


def _load(file: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(file, allow_pickle=False) as arrays:
        return arrays["features"].astype(np.float64), arrays["speed"]


def _halves(real, distance) -> float:
    """A distance between two halves of the real clips: what it cannot fall below."""
    mixed = real[np.random.default_rng(0).permutation(len(real))]
    half = len(mixed) // 2
    return float(distance(mixed[:half], mixed[half : 2 * half]))


def decide(folder: Path) -> dict:
    """Returns {"claims": {claim: {"verdict", and what is behind it}}, "arms": their scores}."""
    judges = read(folder)
    of = {kind: _judge_of(judges, kind) for kind in ("t", "p")}
    if of["t"] is None:
        raise UserError(f"{folder}: no arm of t1000")
    smooth, claims = of["t"], {}
    test = _Tests(smooth)
    claims["MDM-1"] = test.no_worse("t50.50", "t1000.1000")
    claims["MDM-2"] = smallest({n: test.no_worse(f"t{n}.{n}", "t1000.1000") for n in COUNTS})
    claims["MDM-3"] = {
        **test.better("t50.50", "t1000.50"),
        "also": {
            n: {
                "better": test.better(f"t{n}.{n}", f"t1000.{n}"),
                "native no worse": test.no_worse(f"t{n}.{n}", f"t1000.{n}"),
                "respaced no worse": test.no_worse(f"t1000.{n}", f"t{n}.{n}"),
            }
            for n in COUNTS
        },
    }
    if of["p"]:
        claims["MDM-4"] = smoothness(smooth, of["p"])
    if "t1000.grid10" in smooth["kid"]:
        claims["MDM-5"] = {
            **test.better("t1000.grid10", "t1000.10"),
            "also": {
                "5": test.better("t1000.grid5", "t1000.even5"),
                "20": test.better("t1000.grid20", "t1000.20"),
                "enough": {
                    n: test.no_worse(f"t1000.grid{n}", "t1000.1000") for n in (20, 10, 5)
                },
                "evenly": {n: test.no_worse(f"t1000.{n}", "t1000.1000") for n in COUNTS},
            },
        }  # fmt: skip
    claims["MDM-6"] = frozen(smooth, "t1000.ddim50")
    claims["MDM-6"]["also"] = {
        arm: frozen(smooth, f"t1000.{arm}") for arm in ("stride50", "ddim100", "50", "1000")
    }
    return {"claims": claims, "arms": {kind: table(one) for kind, one in of.items() if one}}


def _judge_of(judges: dict, kind: str) -> dict | None:
    """What is known of the runs whose names begin with a letter."""
    return next((one for one in judges.values() if f"{kind}1000.1000" in one["kid"]), None)


class _Tests:
    """The tests of one judge, on KID over seeds."""

    def __init__(self, known: dict):
        self.known = known

    def no_worse(self, a: str, b: str) -> dict:
        arms, n = self.known["kid"], self.known["n"]
        how = {"share": MARGIN, "s_floor": self.known["s_floor"]}
        return {**intervals.no_worse(arms[a], arms[b], n, **how), "fd": self._fd(a, b)}

    def better(self, a: str, b: str) -> dict:
        arms, n = self.known["kid"], self.known["n"]
        return {**intervals.better(arms[a], arms[b], n), "fd": self._fd(a, b)}

    def _fd(self, a: str, b: str) -> dict:
        """FD of a less that of b, its interval over seeds."""
        fds = self.known["fd"]
        return intervals.over_runs(np.subtract(fds[a], fds[b]))


def smallest(tests: dict[int, dict]) -> dict:
    """MDM-2: holds where 50 passes and 20 is shown worse by more than the margin."""
    words = {n: test["verdict"] for n, test in tests.items()}
    passed = {n: all(words[m] == "holds" for m in COUNTS if m >= n) for n in words}
    if passed[50] and words[20] == "does not hold":
        word = "holds"
    elif passed[20] or words[50] == "does not hold":
        word = "does not hold"
    else:
        word = "undecided"
    return {"verdict": word, "smallest": intervals.smallest(words), "tests": tests}


def smoothness(smooth: dict, permuted: dict) -> dict:
    """MDM-4: L = ln KID(10) - ln KID(1000) of permuted clips against that of smooth ones."""
    every = np.ones(smooth["n"], bool)
    found, blind = {}, False
    for name, known, letter in (("smooth", smooth, "t"), ("permuted", permuted, "p")):
        for steps in (10, 50, 1000):
            values = [kernels(every) for kernels in known["kid"][f"{letter}{steps}.{steps}"]]
            found[f"{name} {steps}"] = values
            blind |= steps != 50 and min(values) < 2 * known["s_floor"]
    if min(min(values) for values in found.values()) <= 0:
        return {"verdict": "undecided", "blind": True, "kid": found}
    loss = lambda name: np.log(found[f"{name} 10"]) - np.log(found[f"{name} 1000"])
    result = intervals.verdict(intervals.over_runs(loss("permuted") - loss("smooth")), 1)
    if blind:
        result["verdict"] = "undecided"
    logs = {name: intervals.over_runs(loss(name)) for name in ("smooth", "permuted")}
    return {**result, "blind": bool(blind), "kid": found, "L": logs}


def frozen(known: dict, arm: str) -> dict:
    """MDM-6: the mean joint speed over the real clips', over seeds."""
    ratio = intervals.over_runs(np.array(known["speed"][arm]) / known["real_speed"])
    holds, fails = ratio["high"] < FROZEN, ratio["low"] > MOVING
    return {**ratio, "verdict": "holds" if holds else "does not hold" if fails else "undecided"}


def table(known: dict) -> dict:
    """{arm: {"kid", "fd", "speed": intervals over seeds}} and the floors."""
    every = np.ones(known["n"], bool)
    rows = {}
    for arm, kernels in known["kid"].items():
        rows[arm] = {
            "kid": intervals.over_runs([k(every) for k in kernels]),
            "fd": intervals.over_runs(known["fd"][arm]),
            "speed": intervals.over_runs(np.array(known["speed"][arm]) / known["real_speed"]),
        }
    about = {k: known[k] for k in ("n", "s_floor", "kid_floor", "fd_floor", "real_speed")}
    return {**about, "rows": rows}


def plot(found: dict, path: Path) -> None:
    """KID against the number of steps, a line a way of sampling."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = {
        "trained with so many steps": lambda run, arm: arm == run[1:],
        "1,000 trained, respaced": lambda run, arm: run[1:] == "1000" and arm.isdigit(),
        "1,000 trained, DDIM": lambda run, arm: arm.startswith("ddim"),
        "1,000 trained, searched grid": lambda run, arm: arm.startswith("grid"),
    }
    titles = {"t": "motion", "p": "frames permuted"}
    figure = Figure(figsize=(5.5 * len(found["arms"]), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = np.atleast_1d(figure.subplots(1, len(found["arms"])))
    for axis, (letter, known) in zip(axes, found["arms"].items(), strict=True):
        for shift, (label, wanted) in zip((0.96, 0.99, 1.02, 1.05), kinds.items(), strict=True):
            points = []
            for name, row in known["rows"].items():
                run, arm = name.split(".")
                if wanted(run, arm):
                    points.append((int(arm.lstrip("abcdefghijklmnopqrstuvwxyz")), row["kid"]))
            points.sort(key=lambda point: point[0])
            if not points:
                continue
            steps = np.array([n for n, _ in points]) * shift
            value, low, high = (
                np.array([k[what] for _, k in points]) for what in ("value", "low", "high")
            )
            axis.errorbar(
                steps, value, [value - low, high - value], fmt="o-", ms=3, lw=1, capsize=3,
                label=label,
            )  # fmt: skip
        axis.axhline(2 * known["s_floor"], color="grey", ls=":", lw=1, label="2 s_floor")
        axis.set(xscale="log", yscale="log", xlabel="steps", ylabel="KID (judge of our own)")
        axis.set_xticks([5, 10, 20, 50, 100, 1000], ["5", "10", "20", "50", "100", "1000"])
        axis.minorticks_off()
        axis.set_title(f"{titles[letter]}: 95 % intervals over seeds")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=100)
