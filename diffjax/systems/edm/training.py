"""What EDM trains at: the noise levels and weights that config.diffusion names; augmentation."""

from diffjax import nets
from diffjax.core import objectives, processes
from diffjax.core.objectives import Objective
from diffjax.core.processes import Process
from diffjax.data import augment
from diffjax.errors import UserError, choose

# Rectified flow's times keep this far from 1, where x_t holds no data and sigma/alpha is infinite,
# and from 0; VP keeps as far from 0.
ENDS = 1e-5

# config.diffusion.times -> its settings to an objective, and the process whose time that counts in.
TIMES = {
    "lognormal": lambda s: (objectives.edm(s.p_mean, s.p_std, s.sigma_data), processes.edm()),
    "logitnormal": lambda s: (objectives.flow(s.p_mean, s.p_std), processes.flow()),
    "uniform": lambda s: (objectives.uniform_flow(ENDS), processes.flow()),
    "vp": lambda s: (objectives.vp(), processes.vp()),
    "ve": lambda s: (objectives.ve(), processes.ve()),
}


def objective(settings) -> tuple[Objective, Process]:
    """Returns (objective, its process) of a config's `diffusion`.

    Any of them trains any preconditioning: the denoiser is told the ratio sigma/alpha, which every
    process has.
    """
    return choose(settings.times, TIMES, "config.diffusion.times")(settings)


def pipe(config) -> augment.Pipe | None:
    """The augmentation that config.augment asks for; None where its probability is 0."""
    made = augment.Pipe(config.augment.probability)
    if not 0 <= made.probability <= 1:
        raise UserError(f"config.augment.probability {made.probability}: must be in [0, 1]")
    if not made.probability:
        return None
    # A network that cannot be told of the transformation learns to draw transformed pictures.
    able = [kind for kind, row in nets.KINDS.items() if "augment_dim" in row.fields]
    if config.network.kind not in able:
        raise UserError(
            f"config.augment.probability {made.probability}: a network of kind "
            f"{config.network.kind} cannot be told how its pictures were moved, and would draw "
            f"moved ones ({', '.join(able)} can)"
        )
    if config.network.augment_dim != made.label_dim:
        raise UserError(
            f"config.network.augment_dim {config.network.augment_dim}: must be {made.label_dim} "
            "where config.augment.probability is above 0"
        )
    return made
