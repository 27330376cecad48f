"""The second stage of an emoji relay: 64x64 to 256x256, on top of `configs/relay_emoji64.py`.

`--config.data.path=emoji256.npz`, the same set.
"""

from pathlib import Path

from diffjax.run.cli import load_config


def get_config():
    config = load_config(Path(__file__).with_name("relay_emoji64.py"))
    relay = load_config(Path(__file__).with_name("relay_tiny.py"))
    config.update(name="relay_emoji256", system="relay", batch_size=64, num_samples=64)
    config.parent = "runs/relay_emoji64"
    config.data.image_size = 256
    config.network.update(widths=(64, 96, 128, 192), patch=4, embedding=256)
    config.diffusion = relay.diffusion
    config.diffusion.update(patch=4, blur_max=3.0)
    config.sampling = relay.sampling
    return config
