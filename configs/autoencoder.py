"""A KL autoencoder of your own pictures at 64x64 on one GPU: `--config.data.path=mine.zip`.

Latents of 4 channels at a quarter of the side; one more entry in `network.widths` makes it an
eighth. A run of it is what other runs train behind: `--config.data.latents=runs/autoencoder`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "system": "autoencoder",
            "seed": 0,
            "steps": 20_000,
            "batch_size": 64,
            "accumulate": 1,
            "time_budget": 0.0,
            "checkpoint_every": 2_000,
            "keep": 2,
            "keep_every": 0,
            "log_every": 20,
            "sample_every": 5_000,
            "num_samples": 32,
            "data": {"path": "", "image_size": 0, "balanced": False},
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1, "context": 1},
            "network": {
                "kind": "kl",
                "widths": (128, 256),  # a level halves the side
                "blocks": 2,  # a level, in encoder and decoder
                "patch": 2,  # and this divides it before the first level
                "latent_channels": 4,
                "dtype": "bfloat16",
            },
            # reconstruction: l1 or l2; kl_weight: on the scale of latent diffusion's 1e-6
            "loss": {"reconstruction": "l1", "kl_weight": 1e-5},
            "optimizer": {
                "learning_rate": 5e-4,
                "schedule": "cosine",
                "warmup_steps": 500.0,
                "warmup_from_zero": False,
                "final": 0.02,
                "b1": 0.9,
                "b2": 0.99,
                "eps": 1e-8,
                "weight_decay": 0.0,
                "clip": 1.0,
            },
            "ema": {"ema": {"kind": "warmup", "decay": 0.999}},
            "sampling": {"posterior": False},
        }
    )
