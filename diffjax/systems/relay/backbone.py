"""How the network of a relay stage is trained further, to make a picture in one call: `Backbone`.

Its noisiest state holds the small picture: A(T) x0 + T n in training, the enlarged picture + T n
where it is sampled (`System.problem`). The network sees the small picture there and nowhere else,
so that a discriminator made of it, which is fed clean pictures, does not.
"""

from collections.abc import Callable

from diffjax.errors import UserError
from diffjax.run.system import Backbone
from diffjax.systems import latents, picture_backbone
from diffjax.systems.relay.request import Request, noise_levels


def make(config, net, shape, names, coefficients: Callable, default: Request) -> Backbone | None:
    """Returns the backbone of a stage; None where its own request has no noise levels.

    Args:
      config: the run's.
      net: the module.
      shape: (H, W, C) of its pictures. names: of the classes.
      coefficients: sigma -> `denoisers.Coefficients`.
      default: the run's request: one call from its first level T, after `truncation`, is what
        replaces its steps. Levels are told down to its `sigma_min`.
    """
    try:
        first = float(noise_levels(default)[0])
    except UserError:  # a default that every request has to replace
        return None
    lowest, settings = default.sigma_min, config.diffusion
    made = picture_backbone.make(
        config.network,
        net,
        latents.identity(shape),
        names,
        picture_backbone.feed_wrapped(coefficients, lowest, first),
        std=settings.sigma_data,
        start=(first, first),
        nameless=bool(names) and settings.label_dropout > 0,
    )
    return made._replace(lowest=lowest, asks=("cond", "start", "parent"))
