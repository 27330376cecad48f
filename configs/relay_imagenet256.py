"""Relay diffusion's second stage on ImageNet: 64x64 to 256x256, ADM of 554 M parameters.

Teng et al. 2023, the released commands; the first stage is EDM's (`configs/edm_imagenet64.py`, or
its published weights). The released script never set label dropout, without which guidance means
nothing: it is 0.1 here. 200 levels of which 100 are steps, almost evenly spaced in ln sigma. The
published model has seen 1,250 M images.
"""

from pathlib import Path

from diffjax.run.cli import load_config

IMAGES = 1_250_000_000


def get_config():
    config = load_config(Path(__file__).with_name("relay_celebahq256.py"))
    config.update(name="relay_imagenet256", batch_size=4096, steps=IMAGES // 4096)
    config.parent = "runs/edm_imagenet64"
    config.network.dropout = 0.1
    config.augment.probability = 0.12
    config.diffusion.update(blur_max=3.0, quantile=0.93, label_dropout=0.1)
    config.optimizer.warmup_steps = 10_000_000 / 4096
    config.sampling.update({"steps": 200, "rho": 100.0, "truncation": 0.9, "quantile": 0.93})
    config.sampling.update({"guidance": 3.5})
    return config
