"""What sample.py may ask of a one-step generator: how many steps, and what of."""

import dataclasses

from diffjax.errors import UserError, choose
from diffjax.run.system import System
from diffjax.systems.apt import multistep
from diffjax.systems.images import field, in_range

MODE = "consistency: noise again before each further step; ode: without new noise"
SHIFT = "where further steps begin: shift(k/N, s), higher is noisier"


def kind(base: System) -> type:
    """Returns the class of requests: ours, and those fields of the base's that say what is made."""
    own = [
        ("steps", int, field(1, "calls of the network; trained for 1, 2 may be better")),
        ("mode", str, field("consistency", MODE)),
        ("shift", float, field(1.0, SHIFT)),
    ]
    helps = {f.name: f.metadata.get("help", "") for f in dataclasses.fields(base.request)}
    asked = [
        (name, type(value), field(value, helps[name]))
        for name in base.backbone.asks
        for value in [getattr(base.request, name)]
    ]
    return dataclasses.make_dataclass("Request", [*own, *asked], frozen=True)


def check(request) -> None:
    """Raises `UserError` for the first flag of ours that cannot be met."""
    choose(request.mode, multistep.MODES, "--mode")
    if not 1 <= request.steps <= 1000:
        raise UserError(f"--steps {request.steps}: must be from 1 to 1000")
    in_range(request, {"shift": (0.01, 1000.0)})
