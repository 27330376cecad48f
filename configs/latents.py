"""Emoji behind an autoencoder, `--config.data.latents=runs/autoencoder_tiny`, or your own pictures.

What differs from the default is what latents are: of unit variance, and few numbers a side, so that
a pixel of theirs is a token and no patch.
"""

from pathlib import Path

from diffjax.run.cli import load_config


def get_config():
    config = load_config(Path(__file__).with_name("emoji.py"))
    config.name = "latents"
    config.data.latents = ""  # a finished run of configs/autoencoder.py; empty: in pixels
    config.network.update(widths=(96, 96), patch=1)
    config.diffusion.update(sigma_data=1.0, times="logitnormal", p_mean=0.0, p_std=1.0)
    return config
