"""MDM on HumanAct12's actions (Tevet et al. 2023): data.path is the .npz, docs/reference/data.md.

1000 steps of diffusion, 60 frames, no guidance, as published; but positions and contact, which
need the licensed SMPL body model, have no loss here: only velocities do.
"""

from pathlib import Path

from diffjax.run.cli import load_config


def get_config():
    config = load_config(Path(__file__).with_name("mdm_humanml.py"))
    config.update(name="mdm_humanact12", conditioning="action", condition_dropout=0.0)
    config.num_samples = 12
    config.data.update(path="humanact12.npz", max_frames=60, crop=0)
    config.text.update(encoder="words", folder="")
    config.network.mask_frames = False
    config.diffusion.steps = 1000
    config.loss.velocity = 1.0
    config.sampling.update(guidance=1.0, seconds=3.0)
    return config
