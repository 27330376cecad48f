"""The curves of a DIAMOND run: a panel a network, over the updates of all."""

import json
import os
from pathlib import Path

import numpy as np

from diffjax.systems.diamond.settings import GROUPS


def loss_plot(metrics: Path, path: Path) -> None:
    """Draws the losses in a metrics.jsonl, those on held-out episodes as dots, and the scores.

    Args:
      path: the PNG to write, under a temporary name first. Nothing is written where there is
        nothing to draw.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    text = metrics.read_text() if metrics.exists() else ""
    records = [json.loads(line) for line in text.splitlines()]

    def curve(name: str):
        found = [(r["step"], r[name]) for r in records if name in r]
        return np.array(found, np.float64).reshape(-1, 2).T

    panels = [f"{group}_loss" for group in GROUPS.values()] + ["score_mean"]
    panels = [name for name in panels if curve(name).size]
    if not panels:
        return
    figure = Figure(figsize=(7, 2.2 * len(panels) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = np.atleast_1d(figure.subplots(len(panels), 1, sharex=True))
    for axis, name in zip(axes, panels, strict=True):
        axis.plot(*curve(name), "o-" if name == "score_mean" else "-", color="tab:blue", ms=3)
        if curve(f"test_{name}").size:
            axis.plot(*curve(f"test_{name}"), "o", color="tab:orange", ms=4, label="held out")
            axis.legend(loc="upper right")
        label = "score in the game" if name == "score_mean" else name.replace("_", " ")
        axis.set(
            ylabel=label, yscale="log" if name in ("denoiser_loss", "reward_end_loss") else "linear"
        )
        axis.grid(alpha=0.3, which="both")
    axes[-1].set(xlabel="updates of all networks")
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, dpi=100, format="png")
    os.replace(temporary, path)
