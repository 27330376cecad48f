"""The default made tiny: 20 steps and samples in under a minute, to try a change or a machine."""

from pathlib import Path

from diffjax.run.cli import load_config


def get_config():
    config = load_config(Path(__file__).with_name("emoji.py"))
    config.name = "edm_tiny"
    config.update(steps=20, checkpoint_every=10, log_every=5, sample_every=20, num_samples=16)
    config.network.widths = (16, 32)
    config.network.embedding = 32
    config.optimizer.warmup_steps = 5
    config.sampling.steps = 8
    return config
