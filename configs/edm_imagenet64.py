"""EDM's ImageNet at 64x64, class-conditional: ADM of 296 M parameters, 2,500 M images.

Karras et al. 2022, Table 7. For a pod. Its pictures are drawn as theirs are, in 256 steps with
churn (511 evaluations each).
"""

from pathlib import Path

from diffjax.run.cli import load_config

PIXELS = 3 * 64 * 64
LOSS_SCALING = 100  # the original's loss is larger by this too, which only Adam's eps sees
IMAGES = 2_500_000_000


def get_config():
    config = load_config(Path(__file__).with_name("edm_ffhq64.py"))
    config.name = "edm_imagenet64"
    config.update(batch_size=4096, steps=IMAGES // 4096)
    config.network.update(kind="adm", model_channels=192, channel_mult=(1, 2, 3, 4), num_blocks=3)
    config.network.update(attn_resolutions=(32, 16, 8), dropout=0.1, augment_dim=0)
    config.augment.probability = 0.0
    config.optimizer.update(learning_rate=1e-4, warmup_steps=10_000_000 / 4096)
    config.optimizer.eps = 1e-8 / (PIXELS * LOSS_SCALING)
    config.ema.ema.images = 50_000_000
    config.sampling.update(steps=256, churn=40.0, s_min=0.05, s_max=50.0, s_noise=1.003)
    return config
