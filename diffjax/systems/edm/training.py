"""What EDM trains at: the noise levels and weights that config.diffusion names."""

from diffjax.core import objectives, processes
from diffjax.core.objectives import Objective
from diffjax.core.processes import Process
from diffjax.errors import choose

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
