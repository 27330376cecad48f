"""The autoencoder made tiny: emoji to 6x6 latents and back, in under 40 s on two CPU cores."""

from pathlib import Path

from diffjax.run.cli import load_config


def get_config():
    config = load_config(Path(__file__).with_name("autoencoder.py"))
    config.name = "autoencoder_tiny"
    config.update(steps=200, batch_size=32, checkpoint_every=100, log_every=10, sample_every=200)
    config.data.path = "emoji"
    config.network.update(widths=(32, 64), blocks=1, dtype="float32")
    config.optimizer.update(learning_rate=2e-3, warmup_steps=10.0)
    config.ema.ema.decay = 0.98
    return config
