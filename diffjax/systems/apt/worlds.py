"""A world in one call of the network a frame: a base that samples many x0 in a row (`Unrolled`).

What is trained is one frame from noise, given real ones before it. What is sampled is the base's
own roll-out, with its own request, whose sampler takes one step: from the noise and at the level
that training starts from, so it is the generator itself. Networks that the base has beside its
denoiser are kept as they are: their gradients are 0.
"""

import dataclasses
import functools

from diffjax.run.system import System
from diffjax.systems import images
from diffjax.systems.apt import adversary, origins, student

OURS = ("mode", "shift")  # of config.sampling: further steps are the base's own


def make(base: System, config, assets: dict) -> System:
    """Returns stage B or C of a base with `Backbone.unrolled`.

    Raises:
      UserError: fields that make no sense.
    """
    backbone, unrolled = base.backbone, base.backbone.unrolled
    one = unrolled.request(base.request)
    given = {k: v for k, v in config.get("sampling", {}).items() if k not in OURS}
    wanted = {"sampling": {**dataclasses.asdict(one), **given}}
    default = images.default_request(type(one), wanted)
    asked = {name: getattr(default, name) for name in backbone.asks}

    @functools.cache
    def opened():
        return unrolled.source(origins.place(config.base))

    system = dataclasses.replace(
        base,
        request=default,
        data=lambda split: opened(),
        assets=assets,
        optional={},
        compare=origins.samples_of(base, config, dataclasses.replace(base.request, **asked)),
        backbone=None,
    )
    add = {"distil": student.add, "adversarial": adversary.add}[config.stage]
    return add(system, base, config, unrolled.one)
