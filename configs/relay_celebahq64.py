"""Relay diffusion's first stage on CelebA-HQ: 64x64, unconditional, ADM of 295 M parameters.

Teng et al. 2023, the released command: EDM's training at batch 1024, and in sampling a share of new
noise at every level (120 steps). `--config.data.path=celebahq.zip`, at 256x256 or 64x64.
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffjax.run.cli import load_config

PIXELS = 3 * 64 * 64  # our loss is a mean over them, the original's a sum
IMAGES = 200_000_000
WARMUP = 10_000_000


def get_config():
    config = load_config(Path(__file__).with_name("edm_imagenet64.py"))
    config.name = "relay_celebahq64"
    config.update(batch_size=1024, steps=IMAGES // 1024)
    config.network.update(dropout=0.15, augment_dim=9)
    config.augment.probability = 0.2
    config.optimizer.update(eps=1e-8 / PIXELS, warmup_steps=WARMUP / 1024)
    config.ema.ema.images = 500_000
    config.sampling = ConfigDict({"steps": 120, "sigma_min": 0.002, "sigma_max": 80.0})
    config.sampling.update({"sampler": "relay", "eta": 0.05})
    return config
