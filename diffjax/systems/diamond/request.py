"""What sample.py may ask of a DIAMOND run: the request, its checks, and the sampler it names."""

import dataclasses

from diffjax.errors import UserError, choose
from diffjax.systems import images
from diffjax.systems.diamond.quantise import QUANTISERS
from diffjax.systems.diamond.sampling import Sampler, start_of
from diffjax.systems.images import field

ORDERS = {"euler": 1, "heun": 2}
POLICIES = ("recorded", "agent")
LONGEST = 100_000


@dataclasses.dataclass(frozen=True)
class Request:
    """What one call of the sampler is asked for; the defaults come from the run's config."""

    horizon: int = field(50, "how many frames are imagined after the real ones")
    policy: str = field("recorded", "whose actions: recorded, beside the real frames, or agent")
    steps: int = field(3, "sampler steps a frame")
    sampler: str = field("euler", "euler or heun")
    start: str = field(
        "unit", "what a frame begins from: unit, sigma_max, prev_plus_sigma_max, or 2.0 of noise"
    )
    quantise: str = field("floor", "each estimate to 8 bits: floor (published), round, clip, none")
    sigma_min: float = field(2e-3, "the last noise level before 0")
    sigma_max: float = field(5.0, "the first noise level")
    rho: float = field(7.0, "how close levels are together at low noise")
    s_churn: float = field(0.0, "noise that is added while sampling; 0 none")
    s_tmin: float = field(0.0, "churn from this noise level on")
    s_tmax: float = field(1e9, "churn up to this noise level")
    s_noise: float = field(1.0, "standard deviation of that noise")
    fps: float = field(15.0, "frames a second, of clips and of --play")


RANGES = {
    "horizon": (1, LONGEST),
    "steps": (1, 1000),
    "sigma_min": (1e-6, 1e6),
    "sigma_max": (1e-6, 1e6),
    "rho": (1e-2, 1e3),
    "s_churn": (0.0, 1e6),
    "s_tmin": (0.0, 1e9),
    "s_tmax": (0.0, 1e9),
    "s_noise": (0.0, 1e3),
    "fps": (0.1, 1000.0),
}


def check(request: Request, learn: str, recorded: int) -> None:
    """Raises `UserError` for the first flag that cannot be met.

    Args:
      learn: the run's config.learn.
      recorded: steps that its recorded roll-outs have.
    """
    start_of(request.start, "--start")
    choose(request.quantise, QUANTISERS, "--quantise")
    choose(request.policy, dict.fromkeys(POLICIES), "--policy")
    sampler_of(request).grid()
    if request.policy == "agent" and learn != "agent":
        raise UserError(f"--policy agent: this run has none (config.learn {learn})")
    if request.policy == "recorded" and request.horizon > recorded:
        raise UserError(
            f"--horizon {request.horizon}: the run keeps recordings of {recorded} steps "
            "(config.evaluation.horizon)"
        )


def sampler_of(request: Request) -> Sampler:
    """Returns the sampler that the request names; `UserError` where it is none."""
    order = choose(request.sampler, ORDERS, "--sampler")
    images.in_range(request, RANGES)
    names = ("steps", "sigma_min", "sigma_max", "rho", "s_churn", "s_tmin", "s_tmax", "s_noise")
    given = {name: getattr(request, name) for name in names}
    return Sampler(**given, start=request.start, order=order)


def defaults(config) -> Request:
    """The request of a run: the sampler that its policy learns with, and `config.sampling`'s.

    Raises:
      UserError: a field that it does not have, or a value of another type.
    """
    own = config.imagination
    names = ("steps", "sigma_min", "sigma_max", "rho", "s_churn", "s_tmin", "s_tmax", "s_noise")
    base = {name: own[name] for name in (*names, "start")}
    base["sampler"] = {order: name for name, order in ORDERS.items()}.get(own.order, "euler")
    base |= {"quantise": config.denoiser.quantise, "horizon": config.evaluation.horizon}
    given = {**base, **config.get("sampling", {})}
    return images.default_request(Request, {"sampling": given})
