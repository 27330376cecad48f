"""Motions from your own BVH files: `--config.data.path=FOLDER`, for a GPU. See docs/motion.md.

Texts are the captions of FOLDER/captions.csv, or the names of subfolders (walk/proud/: "walk,
proud"). 7 million parameters, 50 steps of diffusion.
"""

from pathlib import Path

from diffjax.run.cli import load_config


def get_config():
    config = load_config(Path(__file__).with_name("mdm_tiny.py"))
    config.update(name="mdm_bvh", steps=60_000, batch_size=64, num_samples=8)
    config.update(checkpoint_every=5_000, log_every=100, sample_every=5_000)
    config.data.update(path="", max_frames=196, min_frames=20, crop=4, mirror=True)
    config.text.update(width=128, layers=2, heads=4)
    config.network.update(width=256, layers=8, heads=4, ff=1024, attention_dropout=0.0)
    config.optimizer.update(learning_rate=2e-4, warmup_steps=500.0, final=0.01, b2=0.99)
    config.ema.ema.decay = 0.9995
    config.sampling.seconds = 5.0
    return config
