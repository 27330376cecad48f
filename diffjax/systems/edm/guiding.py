"""How an EDM run is guided: by its own unconditional estimate, by another run, or by both."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from diffjax import systems
from diffjax.core import guidance
from diffjax.errors import UserError
from diffjax.run.system import System
from diffjax.systems.edm.request import EVERYWHERE, Request


class Guided(NamedTuple):
    """What `sample` takes for params where request.autoguide names a run.

    Attributes:
      params: the weights that are sampled.
      guide: that run's.
    """

    params: Any
    guide: Any


def open_guide(workdir: str, about: dict) -> System:
    """Returns the system of the run that guides, which knows the same pictures and classes.

    Its network may be another: Karras et al. 2024a take a smaller one, trained for less long.

    Raises:
      UserError: no such run, or one of other pictures or classes.
    """
    guide, config = systems.load(Path(workdir))
    if config.system != "edm":
        raise UserError(f"--autoguide {workdir}: a run of {config.system}, not of edm")
    theirs = guide.assets["data"]
    if theirs.get("latents") != about.get("latents"):
        raise UserError(
            f"--autoguide {workdir}: it is trained in other latents, or one of the two in pixels"
        )
    for name in ("image_shape", "class_names"):
        ours, other = (", ".join(map(str, a[name])) or "none" for a in (about, theirs))
        if ours != other:
            raise UserError(
                f"--autoguide {workdir}: its {name} are {other[:80]}, not {ours[:80]} as here"
            )
    return guide


def guided(denoise: Callable, uncond: Callable | None, guide: Callable | None, request: Request):
    """Returns the denoiser that the request's guidance makes of these.

    Autoguidance comes first and classifier-free guidance is of its result, each in the interval and
    rescaled by itself.

    Args:
      denoise, uncond, guide: (x, sigma) -> x0: the run's own with its condition and without one
        (None: it knows none), and the guide's with the condition (None: there is no guide).
    """
    limits = (request.guidance_min, request.guidance_max)
    interval = None if limits == (0.0, EVERYWHERE) else limits
    if guide is not None:
        denoise = guidance.autoguidance(
            denoise, guide, request.autoguide_scale, interval, request.rescale
        )
    if uncond is not None:
        denoise = guidance.cfg(denoise, uncond, request.guidance, interval, request.rescale)
    return denoise
