"""Three stages made tiny, in two minutes on two CPU cores: base, distillation, adversaries."""

from pathlib import Path

from diffjax.run.cli import load_config


def get_config():
    config = load_config(Path(__file__).with_name("apt.py"))
    config.name = "apt_tiny"
    config.update(steps=20, batch_size=16, checkpoint_every=10, log_every=5, sample_every=20)
    config.num_samples = 16
    config.distil.update(steps=20, batch_size=16)
    config.pretrain = load_config(Path(__file__).with_name("edm_tiny.py"))
    config.pretrain.name = "base"
    return config
