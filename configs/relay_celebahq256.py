"""Relay diffusion's second stage on CelebA-HQ: 64x64 to 256x256, ADM of 553 M parameters.

Teng et al. 2023, the released commands. Sampling believes in a blur that ends later (1.05) than
training's (0.89): so it was released. The published model has seen 47 M images.
`--config.data.path=celebahq.zip`, at 256x256.
"""

from pathlib import Path

from diffjax.run.cli import load_config

PIXELS = 3 * 256 * 256
IMAGES = 47_000_000


def get_config():
    config = load_config(Path(__file__).with_name("relay_celebahq64.py"))
    relay = load_config(Path(__file__).with_name("relay_tiny.py"))
    config.update(name="relay_celebahq256", system="relay", steps=IMAGES // 1024, num_samples=16)
    config.parent = "runs/relay_celebahq64"
    config.data.image_size = 256
    config.network.update(model_channels=256, channel_mult=(1, 1, 2, 2, 4, 4), num_blocks=2)
    config.network.dropout = 0.2
    config.diffusion = relay.diffusion
    config.diffusion.update(patch=4, blur_max=2.0, quantile=0.89, sigma_data=0.5, label_dropout=0.0)
    config.optimizer.eps = 1e-8 / PIXELS
    config.sampling = relay.sampling
    config.sampling.update({"steps": 150, "truncation": 0.95, "quantile": 1.05})
    return config
