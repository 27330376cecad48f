"""Your own pictures at 64x64 on one GPU: `--config.data.path=mine.zip`, from diffjax.prepare.

The default's recipe with a wider net in bfloat16 and the paper's noise levels.
"""

from pathlib import Path

from diffjax.run.cli import load_config


def get_config():
    config = load_config(Path(__file__).with_name("emoji.py"))
    config.name = "images"
    config.update(steps=30_000, batch_size=256, checkpoint_every=2_000, sample_every=5_000)
    config.data.update(path="", balanced=False)
    config.network.update(widths=(128, 256, 256, 256), embedding=256, dtype="bfloat16")
    config.diffusion.update(sigma_data=0.5, p_mean=-0.8, p_std=1.4)
    config.optimizer.update(learning_rate=1e-3, warmup_steps=1000)
    config.ema.ema.decay = 0.9995
    config.sampling.update(steps=18, sigma_min=0.002, sigma_max=80.0)
    return config
