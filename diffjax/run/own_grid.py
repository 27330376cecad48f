"""Grids of one's own: times that a person or a search chose, where a request names a schedule.

What every system's request with a field `grid` takes in it beside names of schedules: numbers
("80,5,0.3,0") or a file that `write` made. Times are those of the system's process, decreasing;
the last is 0, where the data are, and may be left out. Such a grid decides the number of steps.
"""

import json
import os
from pathlib import Path

import numpy as np

from diffjax.errors import UserError
from diffjax.run import cli

LONGEST = 10_000
HELP = "or levels of your own: 80,5,0.3 or FILE.json, which decide the number of steps"


def read(text: str) -> np.ndarray | None:
    """Returns the [N + 1] float64 times that --grid brings, or None where it names a schedule.

    Raises:
      UserError: a file that holds no grid, times that do not decrease to 0 from above it.
    """
    if text.endswith(".json"):
        found = cli.read_json(Path(text).expanduser(), "grid")
        times = found.get("grid") if isinstance(found, dict) else None
        number = lambda t: isinstance(t, float) or (type(t) is int and abs(t) < 1 << 63)
        if not isinstance(times, list) or not all(map(number, times)):
            raise UserError(f'--grid {text}: holds no {{"grid": [times]}}')
    elif text[:1].isdigit() or "," in text:
        try:
            times = [float(word) for word in text.split(",")]
        except ValueError as error:
            raise UserError(f"--grid {text[:60]}: numbers, comma-separated") from error
    else:
        return None
    grid = np.asarray(times, np.float64)
    if len(grid) and grid[-1] != 0:
        grid = np.append(grid, 0.0)
    if not 2 <= len(grid) <= LONGEST + 1 or not np.all(np.isfinite(grid)):
        raise UserError(f"--grid {text[:60]}: from 1 to {LONGEST} times above 0")
    if not np.all(np.diff(grid) < 0):
        raise UserError(f"--grid {text[:60]}: its times must decrease, to 0")
    return grid


def text(grid) -> str:
    """Returns a grid as a request's field holds it, to the last bit."""
    return ",".join(repr(float(t)) for t in grid)


def write(grid, path: Path, **about) -> None:
    """Writes a grid as FILE.json, with what is told about it (ready for JSON) beside."""
    temporary = path.with_name(path.name + ".tmp")
    content = {"grid": [float(t) for t in grid], "steps": len(grid) - 1, **about}
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)
