"""MDM on HumanML3D as published (Tevet et al. 2023, the 50-step model): data.path is its folder.

CLIP's text tower comes from a local folder, --config.text.folder. The released settings: 512 wide,
8 layers, 50 steps, masked frames, batch 64, AdamW at 1e-4, EMA 0.9999, 600 000 steps.
"""

from pathlib import Path

from diffjax.run.cli import load_config


def get_config():
    config = load_config(Path(__file__).with_name("mdm_tiny.py"))
    config.update(name="mdm_humanml", seed=10, steps=600_000, batch_size=64, num_samples=8)
    config.update(checkpoint_every=50_000, log_every=1_000, sample_every=50_000)
    config.data.update(path="HumanML3D", max_frames=196, min_frames=20, crop=4)
    config.text.update(encoder="folder", folder="clip-vit-base-patch32")
    config.network.update(width=512, layers=8, heads=4, ff=1024)
    config.optimizer.update(learning_rate=1e-4, schedule="constant", warmup_steps=0.0, final=1.0)
    config.optimizer.update(b2=0.999, clip=0.0)
    config.ema.ema = {"kind": "constant", "decay": 0.9999}
    config.sampling.seconds = 6.0
    return config
