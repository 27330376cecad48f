"""EDM's CIFAR-10, class-conditional: DDPM++ of 55.7 M parameters, 200 M images.

Karras et al. 2022, Table 7, and the released training loop: `--config.data.path=cifar10.zip` in
its format, or tfds:cifar10. Days on one GPU: shorten it with `steps` and `time_budget`.
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffjax.run.cli import load_config

PIXELS = 3 * 32 * 32  # our loss is a mean over them, the original's a sum
IMAGES = 200_000_000


def get_config():
    config = load_config(Path(__file__).with_name("emoji.py"))
    config.name = "edm_cifar10"
    config.update(batch_size=512, steps=IMAGES // 512, checkpoint_every=5_000, log_every=100)
    config.update(sample_every=10_000, num_samples=100)
    config.data.update(path="", balanced=False)
    config.network = ConfigDict(
        {
            "kind": "ddpmpp",
            "model_channels": 128,
            "channel_mult": (2, 2, 2),
            "num_blocks": 4,
            "attn_resolutions": (16,),
            "dropout": 0.13,
            "augment_dim": 9,
            "dtype": "bfloat16",
        }
    )
    config.diffusion.update(sigma_data=0.5, p_mean=-1.2, p_std=1.2, label_dropout=0.0)
    config.augment.probability = 0.12
    # The learning rate rises from 0 over the first 10 M images.
    config.optimizer.update(learning_rate=1e-3, schedule="constant", warmup_from_zero=True)
    config.optimizer.warmup_steps = 10_000_000 / 512
    config.optimizer.update(b1=0.9, b2=0.999, eps=1e-8 / PIXELS, clip=0.0)
    config.ema = ConfigDict({"ema": {"kind": "half_life", "images": 500_000, "ramp": 0.05}})
    config.sampling = ConfigDict({"steps": 18, "sigma_min": 0.002, "sigma_max": 80.0})
    return config
