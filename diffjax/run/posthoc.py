"""Averages of the weights that nobody tracked, from stored ones: post-hoc EMA.

Karras et al. 2024b ("Analyzing and improving the training dynamics of diffusion models"), section
3.2. A run tracks one or two averages of kind "power" and keeps checkpoints for good
(config.keep_every); afterwards an average of any other width is a sum of those.
"""

from typing import NamedTuple

from diffjax.core import ema
from diffjax.errors import UserError
from diffjax.run import cli
from diffjax.run.checkpoints import Checkpoints

PREFIX = "posthoc:"


class Part(NamedTuple):
    """One stored average: where it is, and how much of it the sum takes."""

    step: int
    name: str
    weight: float


def plan(checkpoints: Checkpoints, config, asked: str, step: int) -> tuple[list[Part], float]:
    """Returns the parts of the average that "posthoc:STD" asks for, and how far it is from that.

    Args:
      config: the run's; it says which averages are of kind power, and their widths.
      asked: "posthoc:" and the relative standard deviation, a share of the training so far.
      step: the checkpoint at which the average ends.

    Returns:
      (parts, error): their weights sum to 1; error as `ema.posthoc_error`.

    Raises:
      UserError: no such width, or fewer than two stored averages.
    """
    try:
        std = float(asked.removeprefix(PREFIX))
        ema.std_to_exponent(std)
    except (ValueError, UserError) as error:
        raise UserError(
            f"--ema {asked}: write {PREFIX}STD with a relative width of at least 0.0001 and below "
            f"0.2887, as {PREFIX}0.08"
        ) from error
    cli.require(config, {"batch_size": int})
    widths = {}  # of two of one width the second says nothing new
    for name, fields in config.get("ema", {}).items():
        if fields.get("kind") == "power":
            widths.setdefault(fields.get("relative_std"), name)
    if not widths:
        raise UserError(f"--ema {asked}: the run has no average of kind power in config.ema")
    found = [
        (at, name, width)
        for at in checkpoints.steps()
        if 0 < at <= step
        for width, name in widths.items()
    ]
    if len(found) < 2:
        raise UserError(
            f"--ema {asked}: {checkpoints.folder} holds {len(found)} stored average(s) up to step "
            f"{step}, and at least 2 are needed: keep checkpoints with config.keep_every, or track "
            "a second width"
        )
    seen = [at * config.batch_size for at, _, _ in found]
    stored = seen, [width for _, _, width in found], step * config.batch_size, std
    weights = ema.posthoc(*stored)
    parts = [Part(at, name, float(w)) for (at, name, _), w in zip(found, weights[:, 0])]
    return parts, float(ema.posthoc_error(weights, *stored)[0])
