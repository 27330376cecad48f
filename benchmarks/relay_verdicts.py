"""What docs/claims.md asks of a relay's samples, RELAY-3 to RELAY-7 and RELAY-9, from features.

An arm is "RUN.WHAT", as relay_study.py names its files: "relay_0.nfe33" is the first relay at 33
evaluations. The rules and margins are those of docs/claims.md.
"""

from diffjax.metrics import intervals
from diffjax.metrics.intervals import joint

NFES = (5, 9, 17, 33, 65)
MAIN = 33  # where everything but the number of evaluations is compared
MARGIN = 0.10


def no_worse(a, b, n: int, s_floor: float) -> dict:
    """The verdict on "a is no worse than b", of two `Kernels` over n paired samples."""
    return intervals.no_worse([a], [b], n, share=MARGIN, s_floor=s_floor)


def better(a, b, n: int) -> dict:
    """The verdict on "a is better than b"."""
    return intervals.better([a], [b], n)


def decide(kernels: dict, n: int, s_floor: float, sees: bool) -> dict:
    """{claim: {"verdict", and each comparison behind it}} of the arms that are there.

    A claim holds where it holds for each seed by itself, and does not hold where it does not for
    each; a judge that does not see leaves all of them undecided.

    Args:
      kernels: {arm: `kid.Kernels` of its features against the held-out ones}.
      n: samples an arm.
      s_floor, sees: of the judge's trial.
    """
    not_worse = lambda a, b: no_worse(kernels[a], kernels[b], n, s_floor)
    is_better = lambda a, b: better(kernels[a], kernels[b], n)
    main = lambda run: f"{run}.nfe{MAIN}"

    def fewer_evaluations(s):
        cascade = lambda nfe: f"cascade_{s}.nfe{nfe}"
        enough = (
            nfe
            for nfe in NFES
            if nfe == NFES[-1] or not_worse(cascade(nfe), cascade(NFES[-1]))["verdict"] == "holds"
        )
        nfe = next(enough)
        if nfe == NFES[0]:
            return {"verdict": "undecided", "cascade_nfe": nfe}
        below = NFES[NFES.index(nfe) - 1]
        found = not_worse(f"relay_{s}.nfe{below}", cascade(nfe))
        return {**found, "cascade_nfe": nfe, "relay_nfe": below}

    relay = lambda s: main(f"relay_{s}")
    parts = {
        "RELAY-3": {"": fewer_evaluations},
        "RELAY-4": {"": lambda s: not_worse(f"relay_{s}.share4", main(f"cascade_{s}"))},
        "RELAY-5": {"": lambda s: is_better(relay(s), "bicubic")},
        "RELAY-6": {"": lambda s: is_better(relay(s), main(f"plain_{s}"))},
        "RELAY-7": {"": lambda s: is_better(relay(s), f"relay_{s}.eta0.0")},
        "RELAY-9": {
            f" start {cut}": lambda s, cut=cut: not_worse(f"relay_{s}.start{cut}", relay(s))
            for cut in (0.6, 1.2)
        },
    }
    found = {}
    for claim, tests in parts.items():
        about, words = {}, []
        for what, test in tests.items():
            seeds = {}
            for s in range(10):
                try:
                    seeds[f"seed {s}{what}"] = test(s)
                except KeyError:  # an arm that was not sampled
                    continue
            about |= seeds
            words.append(joint([result["verdict"] for result in seeds.values()]))
        word = _strictest(words) if sees else "undecided"
        found[claim] = {"verdict": word, **about}
    return found


def _strictest(words: list[str]) -> str:
    """Of several conditions: all must hold, and one that does not hold is enough."""
    return "does not hold" if "does not hold" in words else joint(words)
