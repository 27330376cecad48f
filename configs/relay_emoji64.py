"""The first stage of an emoji relay: 64x64 on one GPU, then `configs/relay_emoji256.py`.

`--config.data.path=emoji256.npz`, a set at 256x256 in classes, as the second stage's: its pictures
are reduced by the means of blocks, which is what that stage starts from.
"""

from pathlib import Path

from diffjax.run.cli import load_config


def get_config():
    config = load_config(Path(__file__).with_name("images.py"))
    config.update(name="relay_emoji64", steps=20_000, checkpoint_every=2_000, log_every=50)
    config.data.update(path="", image_size=64, balanced=False)
    config.network.update(widths=(64, 128, 192), patch=2, embedding=256, dtype="bfloat16")
    config.diffusion.update(sigma_data=0.7, p_mean=-0.6, p_std=1.4)
    config.sampling.update(steps=18, guidance=1.0, sigma_min=0.002, sigma_max=80.0)
    return config
