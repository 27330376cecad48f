"""What `studies.steps` found, for a person: sentences, a table, a plot; and its files."""

import functools
from pathlib import Path

import numpy as np

from diffjax.metrics import intervals
from diffjax.run import own_grid
from diffjax.studies import files

SEARCHED, EVEN = "found grid", "even grid"  # names of groups


def answers(about: dict) -> dict:
    """{"enough": {group: the smallest count that is enough, or None}, "answers": as sentences}."""
    reference, groups = about["reference"], {}
    for row in about["arms"]:
        if "no_worse" in row and row["steps"] <= reference["steps"]:
            groups.setdefault(row["group"], {})[row["steps"]] = row
    enough, said = {}, []
    base = about["arms"][0]["score"]
    for group, rows in groups.items():
        words = {steps: row["no_worse"]["verdict"] for steps, row in rows.items()}
        count = intervals.smallest(words)
        enough[group] = count
        tail = f" ({group})" if group else ""
        if group == EVEN:
            continue
        if count is None:
            said.append(
                f"no count below {reference['steps']} was shown to be enough{tail}: at "
                f"{max(rows)} steps {_word(rows[max(rows)], about)}"
            )
            continue
        plural = "step is" if count == 1 else "steps are"
        said.append(
            f"{count} {plural} enough{tail}: {_word(rows[count], about)} is no worse than "
            f"{reference['steps']} steps' {base['value']:.4g} within {_margin(rows[count], about)}"
        )
    for one in about["grids"]:
        word = {"holds": "better than", "does not hold": "worse than"}
        told = word.get(one["than_even"]["verdict"], "not told apart from")
        said.append(f"the grid found for {one['steps']} steps is {told} the even one")
    return {"enough": enough, "answers": said}


def _word(row: dict, about: dict) -> str:
    score = row["score"]
    return f"{about['metric']} {score['value']:.4g} [{score['low']:.4g}, {score['high']:.4g}]"


def _margin(row: dict, about: dict) -> str:
    margin = row["no_worse"]["margin"]
    if margin <= 2 * about["s_floor"]:
        return f"{margin:.2g} (2 s_floor, what the judge cannot see)"
    return f"{about['margin']:.0%}"


def table(found: dict) -> str:
    """The arms as text, one a line."""
    lines = [f"{'steps':>6} {found['metric']:>10} {'95 % interval':>24} {'no worse':>14}  which"]
    for row in found["arms"]:
        score = row["score"]
        word = row["no_worse"]["verdict"] if "no_worse" in row else "reference"
        interval = f"[{score['low']:.4g}, {score['high']:.4g}]"
        lines.append(
            f"{row['steps']:>6} {score['value']:>10.4g} {interval:>24} {word:>14}  {row['group']}"
        )
    return "\n".join(lines)


def write(out: Path, result: dict) -> None:
    """Writes NAME.json, NAME.png and a NAME.grid_K.json for each grid that was found."""
    for one in result["search"]:
        path = out.with_name(f"{out.name}.grid_{one['steps']}.json")
        about = {k: one[k] for k in ("cost", "error")}
        own_grid.write(one["grid"], path, **about, workdir=result["workdirs"][0])
    puts = {".json": files.write_json, ".png": _plot}
    files.write(out, {ending: functools.partial(put, result) for ending, put in puts.items()})


def _plot(result: dict, path: Path) -> None:
    """The score against the number of steps, a line a group; the reference's and its margin."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    groups: dict[str, list] = {}
    for row in result["arms"]:
        groups.setdefault(row["group"], []).append(row)
    for i, (group, rows) in enumerate(groups.items()):
        rows = sorted(rows, key=lambda row: row["steps"])
        steps, value, low, high = (
            np.array([row["steps"] if k == "steps" else row["score"][k] for row in rows])
            for k in ("steps", "value", "low", "high")
        )
        shift = 1.015 ** (i - (len(groups) - 1) / 2)  # so that intervals do not hide one another
        style = {SEARCHED: "*--", EVEN: "x--"}.get(group, "o-")
        axis.errorbar(
            steps * shift, value, [value - low, high - value], fmt=style, capsize=3, lw=1,
            label=group or result["metric"],
        )  # fmt: skip
    base = result["arms"][0]["score"]["value"]
    margins = [row["no_worse"]["margin"] for row in result["arms"] if "no_worse" in row]
    edge = base + (
        max(margins, default=0) if result["lower_is_better"] else -max(margins, default=0)
    )
    axis.axhline(base, color="grey", lw=1, ls=":")
    axis.axhspan(min(base, edge), max(base, edge), color="grey", alpha=0.15, lw=0, label="margin")
    counts = sorted({row["steps"] for row in result["arms"]})
    axis.set(xscale="log", xlabel="steps", ylabel=f"{result['metric']} ({result['net']})")
    axis.set_xticks(counts, [str(c) for c in counts])
    axis.minorticks_off()
    what = f"{result['num']} samples" + (f", {result['runs']} runs" if result["runs"] > 1 else "")
    axis.set_title(f"{result['ref']}: {what}, 95 % intervals")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=100, format="png")
