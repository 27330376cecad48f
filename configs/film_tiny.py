"""Films made tiny: 20 steps on discs that move, and samples, in under a minute on two CPU cores."""

from pathlib import Path

from diffjax.run.cli import load_config


def get_config():
    config = load_config(Path(__file__).with_name("film.py"))
    config.name = "film_tiny"
    config.update(steps=20, batch_size=16, checkpoint_every=10, log_every=5, sample_every=20)
    config.num_samples = 8
    config.data.update(path="dots", frames=8)
    config.network.update(width=96, depth=2, heads=4, remat=False, dtype="float32")
    config.optimizer.update(learning_rate=2e-3, warmup_steps=5)
    config.ema.ema.decay = 0.99
    config.sampling.steps = 8
    return config
