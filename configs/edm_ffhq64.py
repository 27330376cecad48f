"""EDM's FFHQ at 64x64, unconditional: DDPM++ of 61.8 M parameters, 200 M images.

Karras et al. 2022, Table 7. AFHQv2 is the same with `--config.network.dropout=0.25`.
"""

from pathlib import Path

from diffjax.run.cli import load_config

PIXELS = 3 * 64 * 64
IMAGES = 200_000_000


def get_config():
    config = load_config(Path(__file__).with_name("edm_cifar10.py"))
    config.name = "edm_ffhq64"
    config.update(batch_size=256, steps=IMAGES // 256, num_samples=64)
    config.data.image_size = 64
    config.network.update(channel_mult=(1, 2, 2, 2), dropout=0.05)
    config.augment.probability = 0.15
    config.optimizer.update(learning_rate=2e-4, warmup_steps=10_000_000 / 256, eps=1e-8 / PIXELS)
    config.sampling.steps = 40
    return config
