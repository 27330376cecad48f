"""What sample.py may ask of an MDM run: the request, its checks, and the sampler that it names."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.core import grids, guidance, samplers
from diffjax.errors import UserError, choose
from diffjax.run import own_grid
from diffjax.run.system import Problem
from diffjax.systems import images
from diffjax.systems.images import field

LONGEST = 20_000  # frames of one sample
EDITS = ("in_between", "upper_body")
MAX_PROMPTS = 4096


@dataclasses.dataclass(frozen=True)
class Request:
    """What one call of the sampler is asked for; the defaults come from the run's config."""

    cond: str = field(
        "", "texts, with ; between them, or classes, with commas; empty: some of the training set's"
    )
    seconds: float = field(0.0, "how long; 0: as long as the run's config says")
    frames: int = field(0, "how long in frames, in place of --seconds")
    guidance: float = field(2.5, "classifier-free guidance scale; 1 is none, 0 without condition")
    ease: int = field(
        0, "frames over which guidance grows from 0, after the known ones (models with a context)"
    )
    blend: int = field(
        0, "frames over which a jump after the known ones is spread (models with a context)"
    )
    sampler: str = field("ancestral", "ancestral, ancestral_large, ddim, dpmpp, dpmpp_sde or unipc")
    steps: int = field(0, "sampler steps; 0: all that the network was trained with")
    grid: str = field(
        "even", f"which steps: even, ends included; ddim, whole strides; {own_grid.HELP}"
    )
    eta: float = field(0.0, "0 deterministic .. 1 all noise new (ddim)")
    edit: str = field("", "in_between or upper_body: what to make new of --motion")
    motion: str = field("", "the .bvh or .npz file to edit, of the run's skeleton")
    keep: str = field("0.25,0.75", "in_between: until which share of the motion, and from which on")
    text_folder: str = field("", "the text encoder's folder, where it is not where it was")


# What each solver is: (denoise, process, grid, x, noise, eta=, trace=) -> x0.
SAMPLERS = {
    "ancestral": lambda *a, eta, **how: samplers.ddim(*a, delta=samplers.posterior(1.0), **how),
    "ancestral_large": lambda *a, eta, **how: samplers.ddim(
        *a, delta=samplers.posterior(1.0), std=samplers.transition, **how
    ),
    "ddim": lambda *a, eta, **how: samplers.ddim(*a, delta=samplers.posterior(eta), **how),
    "dpmpp": lambda *a, eta, **how: samplers.dpmpp(*a, eta=0.0, **how),
    "dpmpp_sde": lambda *a, eta, **how: samplers.dpmpp(*a, eta=1.0, **how),
    "unipc": lambda denoise, process, grid, x, noise, eta, **how: samplers.unipc(
        denoise, process, grid, x, **how
    ),
}


def check(request: Request, steps: int) -> None:
    """Raises `UserError` for the first flag that cannot be met, whatever the motions are.

    Args:
      steps: T, that the network was trained with.
    """
    choose(request.sampler, SAMPLERS, "--sampler")
    ranges = {
        "seconds": (0.0, 1e5),
        "frames": (0, LONGEST),
        "guidance": (-1e4, 1e4),
        "ease": (0, LONGEST),
        "blend": (0, LONGEST),
        "steps": (0, steps),
        "eta": (0.0, 1.0),
    }
    images.in_range(request, ranges)
    grid_of(request, steps)
    if request.edit:
        choose(request.edit, dict.fromkeys(EDITS), "--edit")
    if bool(request.edit) != bool(request.motion):
        missing = "--motion FILE" if request.edit else f"--edit {' or '.join(EDITS)}"
        raise UserError(f"editing takes --edit and --motion: give {missing} too")
    kept(request)


def kept(request: Request) -> tuple[float, float]:
    """Returns the two shares of `--keep`."""
    try:
        first, last = (float(word) for word in request.keep.split(","))
    except ValueError:
        first, last = math.nan, math.nan
    if not 0 <= first < last <= 1:
        raise UserError(f"--keep {request.keep}: two shares from 0 to 1, as 0.25,0.75")
    return first, last


def grid_of(request: Request, steps: int) -> np.ndarray:
    """Returns the sampler's grid on `processes.discrete` of T = steps, float64 [n + 1].

    Raises:
      UserError: more steps than T, no whole stride, or times of one's own above T.
    """
    own = own_grid.read(request.grid)
    if own is not None:
        if own[0] > steps:
            raise UserError(f"--grid: from time {own[0]:g}; the network knows those up to {steps}")
        return own
    choose(request.grid, {"even": 0, "ddim": 0}, "--grid")
    count = request.steps or steps
    spec = f"ddim{count}" if request.grid == "ddim" and count < steps else str(count)
    try:
        return grids.respaced(steps, spec)
    except UserError as error:
        raise UserError(f"--steps {request.steps}: {error}") from error


def frames_of(request: Request, fps: float, default: int, longest: int) -> int:
    """Returns how many frames are asked for; `longest` is what the network knows."""
    count = request.frames or round(request.seconds * fps) or default
    flag = f"--frames {request.frames}" if request.frames else f"--seconds {request.seconds:g}"
    if count < 2:
        raise UserError(f"{flag}: at {fps:g} frames a second less than 2 frames")
    if count > longest:
        more = "" if longest == LONGEST else " (configs/mdm_dip.py trains a model without an end)"
        raise UserError(
            f"{flag}: {count} frames, this model knows up to {longest}, "
            f"{longest / fps:.1f} seconds{more}"
        )
    return count


def prompts_of(cond: str) -> list[str]:
    """Returns the texts of `--cond`; [] where it is empty."""
    texts = [" ".join(text.split()) for text in cond.split(";")]
    texts = [text for text in texts if text]
    if cond and not texts:
        raise UserError(f"--cond {cond!r}: no text in it")
    if len(texts) > MAX_PROMPTS:
        raise UserError(f"--cond: {len(texts)} texts, at most {MAX_PROMPTS}")
    return texts


def guided(estimate: Callable, given: dict, scale) -> Callable:
    """Returns denoise(x, t) with classifier-free guidance, both of its halves in one batch of 2B.

    Args:
      estimate: (x, t, given) -> x0.
      given: {name: array [B, ...]}, "drop" bool [B] among them: what is without its condition.
      scale: a number, or an array that broadcasts against x. The number 1: one evaluation of B.
    """
    if isinstance(scale, int | float) and scale == 1:
        return lambda x, t: estimate(x, t, given)
    # Each motion beside its double, so that a batch that is cut over devices stays where it is.
    twice = jax.tree.map(lambda a: jnp.repeat(a, 2, 0), given)
    twice["drop"] = twice["drop"] | (jnp.arange(len(twice["drop"])) % 2 == 1)

    def denoise(x, t):
        both = estimate(jnp.repeat(x, 2, 0), t, twice)
        cond, uncond = both[::2], both[1::2]
        return guidance.cfg(lambda *_: cond, lambda *_: uncond, scale)(x, t)

    return denoise


def eased(scale: float, ease: int, frames: int) -> np.ndarray:
    """Returns a guidance scale for each frame, float32 [frames, 1]: 0 at the first, whole after
    `ease` frames.

    Ours. Where the text changes, guidance pulls the frames after a prefix away from it, and the
    more so the larger it is; without it the motion goes on as it was.
    """
    return np.float32(scale * np.minimum(1.0, np.arange(frames) / ease))[:, None]


def problem_of(denoise: Callable, process, grid, noise, first=0, mask=None) -> Problem:
    """Returns the problem whose start is draw `first` of the noise, of unit variance whatever the
    process' last level is, as DDPM's; draw first + 1 + i is step i's."""
    return Problem(denoise, process, grid, noise(first), lambda k: noise(first + 1 + k), mask)


def solve(request: Request, problem: Problem, trace: bool = False):
    """Returns x0 of the sampler that the request names; with `trace` (x0, `samplers.Trace`)."""
    return SAMPLERS[request.sampler](*problem.arguments, eta=request.eta, trace=trace)


def joined(prefix, new, blend: int, places):
    """Returns a prediction without its jump at the seam: [B, P, D].

    Inertialisation (Bollo 2018). The first predicted frame is put where the motion would be after
    a step as large as the mean of those before and after the seam, and what it was moved by fades
    with half a cosine over `blend` frames.

    Args:
      prefix: [B, C, D] with C > 1, the frames before.
      new: [B, P, D] with P > 1.
      blend: frames; 0 changes nothing.
      places: bool [D], the channels that say where something is. Those that say how fast are kept.
    """
    if not blend:
        return new
    before, last = prefix[:, -2], prefix[:, -1]
    step = 0.5 * ((last - before) + (new[:, 1] - new[:, 0]))
    jump = jnp.where(places, new[:, 0] - last - step, 0)
    fade = 0.5 + 0.5 * np.cos(np.pi * np.minimum(1.0, np.arange(new.shape[1]) / blend))
    return new - jnp.asarray(fade[:, None], new.dtype) * jump[:, None]


def autoregressive(predict: Callable, prefix, count: int):
    """Returns `count` predictions, each going on from the end of the one before: [B, count P, D].

    DiP's planner (Tevet et al. 2025): features are relative to the body, so that nothing has to be
    aligned. One compiled step, scanned.

    Args:
      predict: (i, prefix [B, C, D]) -> [B, P, D].
      prefix: the frames before the first.
    """
    known = prefix.shape[1]

    def step(prefix, i):
        new = predict(i, prefix)
        return jnp.concatenate([prefix, new], 1)[:, -known:], new

    _, parts = jax.lax.scan(step, prefix, jnp.arange(count))
    return parts.swapaxes(0, 1).reshape(prefix.shape[0], -1, prefix.shape[2])
