"""What sample.py may ask of a relay stage."""

import dataclasses

import numpy as np

from diffjax.core import grids
from diffjax.errors import UserError, choose
from diffjax.run import cli, own_grid
from diffjax.systems.images import field, in_range
from diffjax.systems.relay.postprocess import RECIPES


@dataclasses.dataclass(frozen=True)
class Request:
    """What one call of the sampler is asked for; the defaults come from the run's config."""

    start: str = field("", "a folder of pictures to start from; empty: the parent's samples")
    parent: str = field(
        "", "what the parent is asked for: steps=18,guidance=2; empty: its defaults"
    )
    cond: str = field("", "class names or numbers, comma-separated; empty: all classes in turn")
    guidance: float = field(1.0, "classifier-free guidance scale; 1 is none")
    steps: int = field(18, "noise levels from sigma_max; those below `truncation` are steps")
    truncation: float = field(0.9, "sampling starts at the first noise level below this")
    sigma_min: float = field(0.008, "smallest noise level before 0")
    sigma_max: float = field(80.0, "noise level that the grid is laid from")
    rho: float = field(7.0, "shape of the noise levels")
    grid: str = field("edm", f"edm (equation 5 of EDM); {own_grid.HELP}")
    eta: float = field(0.2, "share of the noise that is new at every level")
    second_order: bool = field(False, "correct the estimate and not the slope")
    quantile: float = field(0.0, "L, where the blur ends; 0: as in training")
    post: str = field(
        "", "what the released scripts did to pictures: imagenet, celebahq; or nothing"
    )


def noise_levels(request: Request) -> np.ndarray:
    """[N + 1] float64: the levels that sampling visits, from below `truncation` to 0.

    Levels of one's own are visited as they are, whatever `truncation` says.
    """
    grid = own_grid.read(request.grid)
    if grid is not None:
        return grid
    choose(request.grid, {"edm": 0}, "--grid")
    grid = grids.karras(request.steps, request.sigma_min, request.sigma_max, request.rho)
    if not grid[-2] < request.truncation:
        raise UserError(
            f"--truncation {request.truncation}: no noise level is below it; the lowest of these "
            f"{request.steps} is {grid[-2]:.4g}"
        )
    return grids.below(grid, request.truncation)


def check(request: Request) -> None:
    """Raises `UserError` for the first flag that cannot be met, whatever the classes."""
    if request.steps < 1 or request.steps > 10_000:
        raise UserError(f"--steps {request.steps}: must be from 1 to 10000")
    in_range(
        request,
        {
            "guidance": (1.0, 1e4),
            "truncation": (0.0, 1e9),
            "sigma_min": (1e-9, 1e9),
            "sigma_max": (1e-9, 1e9),
            "rho": (0.1, 1e3),
            "eta": (0.0, 1.0),
            "quantile": (0.0, 1e3),
        },
    )
    if not request.sigma_min < request.sigma_max:
        raise UserError(
            f"--sigma_min {request.sigma_min} must be below --sigma_max {request.sigma_max}"
        )
    if request.post:
        choose(request.post, RECIPES, "--post")
    noise_levels(request)


def adopt(request: Request, default, classes: bool):
    """Returns the parent's request: its default, the same classes, and what `--parent` says.

    Args:
      default: the parent's default request, a frozen dataclass.
      classes: whether the parent knows classes.

    Raises:
      UserError: a field that the parent's request lacks, or a value of another type.
    """
    known = {f.name: type(getattr(default, f.name)) for f in dataclasses.fields(default)}
    values = {}
    if known.pop("cond", None):  # not a field of --parent: all stages have the same classes
        values["cond"] = request.cond if classes else ""
    for word in filter(None, request.parent.split(",")):
        name, found, text = word.strip().partition("=")
        if not found:
            raise UserError(f"--parent {word}: write NAME=VALUE,NAME=VALUE")
        kind = choose(name, known, "field in --parent:")
        values[name] = cli.convert(f"--parent {name}", text, kind)
    return dataclasses.replace(default, **values)
