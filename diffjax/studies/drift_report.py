"""What `studies.drift` found: numbers with intervals, a table, a plot, a film; and its files."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from diffjax.metrics import frechet, intervals, kid
from diffjax.run import clips
from diffjax.studies import drift_measures, files

MARKS = (1, 10, 50, 200, 1000)  # offsets that are reported
AUC = 50  # offsets that errors are averaged over, where there are so many
SPLITS = 20
ENDINGS = (".json", ".png", ".npz", ".gif")


def measures(rolled, decided: dict, real) -> dict[str, tuple[Callable, int]]:
    """{name: (a function of which roll-outs or contexts are kept, how many there are)} of one arm
    of one run.

    auc: the mean square error over the first 50 offsets; slope, end: of the Frechet distance of
    features, and at the last of these offsets; bias: how far the frames' mean is off there; ln
    variety; share_0, share_1: `context_share` at the first two steps; lean_0, lean_1: the mean of
    `leanings` there.
    """
    reach = min(AUC, rolled.curves.error.shape[1])
    error, bias = (np.asarray(a, np.float64) for a in (rolled.curves.error, rolled.curves.bias))
    curve = lambda keep: drift_measures.frechet_curve(
        rolled.features[:, :reach], real.features[:, :reach], keep
    )
    last = lambda keep: _frechet(rolled.features[keep, reach - 1], real.features[keep, reach - 1])
    found = {
        "auc": (lambda keep: error[keep, :reach].mean(), len(error)),
        "slope": (lambda keep: drift_measures.slope(curve(keep)), len(error)),
        "end": (last, len(error)),
        "bias": (lambda keep: abs(bias[keep, reach - 1].mean()), len(error)),
    }
    frames, estimates = decided["frames"], decided["estimates"]
    of_contexts = {
        "ln_variety": lambda keep: np.log(max(drift_measures.variety(frames, keep), 1e-30))
    }
    for i in range(len(estimates)):
        of_contexts[f"share_{i}"] = lambda keep, i=i: drift_measures.context_share(
            estimates[i], keep
        )
        of_contexts[f"lean_{i}"] = lambda keep, i=i: float(
            np.mean(decided["leanings"][i][keep], dtype=np.float64)
        )
    return {**found, **{k: (f, len(frames)) for k, f in of_contexts.items()}}


def _frechet(a, b) -> float:
    return frechet.frechet_distance(frechet.moments(a), frechet.moments(b))


def floors(real) -> dict[str, float]:
    """Of real features at the offset that `end` is of: {"end": the mean Frechet distance between
    halves of the roll-outs, "s_end": its standard deviation over `SPLITS` of them}."""
    x = real.features[:, min(AUC, real.features.shape[1]) - 1]
    random, half = np.random.default_rng(0), len(x) // 2
    orders = [random.permutation(len(x)) for _ in range(SPLITS)]
    found = [_frechet(x[o[:half]], x[o[half : 2 * half]]) for o in orders]
    return {"end": float(np.mean(found)), "s_end": float(np.std(found, ddof=1))}


def compare(about: dict, measured: dict, real, margin: float) -> dict:
    """Returns the result, ready for JSON: of each arm its measures with intervals, curves, numbers
    at `MARKS`; and, but for the first arm, "less_first": what it has more than the first, and
    "no_worse" than the first, but for a margin, in auc and end.

    Args:
      about: what is known already.
      measured: {arm: {"rolled": [one a run], "decided": [one a run]}}.
      real: the real frames' `Rolled`.
      margin: a share of the first arm's.
    """
    floor = floors(real)
    of = {
        name: [measures(r, d, real) for r, d in zip(m["rolled"], m["decided"], strict=True)]
        for name, m in measured.items()
    }
    reference = next(iter(of))
    rows = []
    for name, found in of.items():
        rows.append({"arm": name, **_row(found, measured[name], real)})
        if name == reference:
            continue
        pairs = list(zip(found, of[reference], strict=True))
        both = [key for key in found[0] if key in of[reference][0]]
        rows[-1]["less_first"] = {
            key: intervals.of_runs(
                [lambda keep, a=a[key][0], b=b[key][0]: a(keep) - b(keep) for a, b in pairs],
                found[0][key][1],
            )
            for key in both
        }
        rows[-1]["no_worse"] = {
            key: intervals.no_worse(
                [a[key][0] for a, _ in pairs], [b[key][0] for _, b in pairs], found[0][key][1],
                share=margin, s_floor=spread,
            )
            for key, spread in (("auc", 0.0), ("end", floor["s_end"]))
        }  # fmt: skip
    return {**about, "runs": len(of[reference]), "margin": margin, "floors": floor, "arms": rows}


def _row(found: list[dict], measured: dict, real) -> dict:
    """An arm's own numbers."""
    scores = {
        key: intervals.of_runs([one[key][0] for one in found], found[0][key][1]) for key in found[0]
    }
    rolled = measured["rolled"]
    mean = lambda field: np.mean([getattr(r.curves, field).mean(0) for r in rolled], 0)
    error, bias, full = (mean(field) for field in ("error", "bias", "full"))
    curve = np.mean([drift_measures.frechet_curve(r.features, real.features) for r in rolled], 0)
    every = real.features.reshape(-1, real.features.shape[-1])
    marks = [k for k in MARKS if k <= len(error)]
    at = {
        str(k): {
            "error": float(error[k - 1]),
            "psnr": float(10 * np.log10(4 / max(error[k - 1], 1e-12))),
            "bias": float(bias[k - 1]),
            "saturated": float(full[k - 1]),
            "frechet": float(curve[k - 1]),
            "kid": float(np.mean([kid.mmd2(r.features[:, k - 1], every).value for r in rolled])),
        }
        for k in marks
    }
    same = [float(np.mean(r.reward == real.reward)) for r in rolled]
    paid = lambda r: float(np.mean(r.reward != 1))
    return {
        "scores": scores,
        "at": at,
        "doubled": drift_measures.doubled(curve),
        "rewards": {
            "agreement": float(np.mean(same)),
            "paid": float(np.mean([paid(r) for r in rolled])),
            "paid_real": paid(real),
        },
        "curves": {"error": error.tolist(), "bias": bias.tolist(), "frechet": curve.tolist()},
        **({"long": measured["long"]} if "long" in measured else {}),
    }


def table(result: dict) -> str:
    """The arms as text, one a line."""
    names = ("auc", "slope", "end", "bias", "ln_variety", "share_0")
    lines = ["  ".join(f"{name:>22}" for name in names) + "  arm"]
    for row in result["arms"]:
        cells = []
        for name in names:
            s = row["scores"][name]
            cells.append(f"{s['value']:.3g} [{s['low']:.3g}, {s['high']:.3g}]".rjust(22))
        lines.append("  ".join(cells) + f"  {row['arm']}")
    return "\n".join(lines)


def write(out: Path, result: dict, arrays: dict, films: dict) -> None:
    """Writes NAME.json, NAME.png, NAME.gif and NAME.npz (the curves of every roll-out)."""

    def put_arrays(path: Path) -> None:
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)

    files.write(
        out,
        {
            ".json": functools.partial(files.write_json, result),
            ".png": functools.partial(_plot, result),
            ".npz": put_arrays,
        },
    )
    clips.save_clip(clips.stacked(films), out.with_name(out.name + ".gif"), scale=1)


def _plot(result: dict, path: Path) -> None:
    """Error, Frechet distance and bias against the offset, and variety, an arm each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    FigureCanvasAgg(figure)
    (error, feature), (bias, variety) = figure.subplots(2, 2)
    for i, row in enumerate(result["arms"]):
        label = row["arm"]
        k = np.arange(1, len(row["curves"]["error"]) + 1)
        error.plot(k, row["curves"]["error"], lw=1, label=label)
        feature.plot(k, row["curves"]["frechet"], lw=1, label=label)
        bias.plot(k, row["curves"]["bias"], lw=1, label=label)
        s = row["scores"]["ln_variety"]
        low, high = s["value"] - s["low"], s["high"] - s["value"]
        variety.errorbar([s["value"]], [i], xerr=[[low], [high]], fmt="o", capsize=3)
    error.set(title="mean square error", xlabel="frames imagined")
    feature.axhline(result["floors"]["end"], color="grey", ls=":", lw=1, label="halves of real")
    feature.set(title="Frechet distance of features", xlabel="frames imagined")
    bias.axhline(0, color="grey", ls=":", lw=1)
    bias.set(title="mean of imagined less real", xlabel="frames imagined")
    variety.set(title="ln of the variance of one frame over noises", ylim=(-1, len(result["arms"])))
    variety.set_yticks(range(len(result["arms"])), [r["arm"] for r in result["arms"]])
    for axis in (error, feature, bias, variety):
        axis.grid(alpha=0.3)
    error.legend(fontsize=8)
    feature.legend(fontsize=8)
    figure.suptitle(f"{result['starts']} roll-outs of each of {result['runs']} runs")
    figure.savefig(path, dpi=100, format="png")
