"""The default: 622 emoji of 8 kinds, 24x24, class-conditional. Four minutes on two CPU cores.

A demonstration, not a benchmark: the small classes are learnt by heart.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "system": "edm",
            "seed": 0,
            "steps": 2400,
            "batch_size": 32,  # of all devices together
            "accumulate": 1,  # slices that a batch goes through in, to save memory
            "time_budget": 0.0,  # seconds; above 0, training ends then if `steps` are not done
            "checkpoint_every": 400,
            "keep": 2,
            "keep_every": 0,
            "log_every": 20,
            "sample_every": 1200,
            "num_samples": 80,
            # "emoji", a folder, a .npz, an EDM .zip, tfds:NAME; image_size 0: images as they are;
            # latents: a run of configs/autoencoder.py to train behind; empty: in pixels
            "data": {"path": "emoji", "image_size": 0, "balanced": True, "latents": ""},
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1, "context": 1},
            "network": {
                "kind": "unet_small",
                "widths": (32, 64, 64),
                "patch": 2,
                "embedding": 128,
                "dtype": "float32",
            },
            "diffusion": {
                "precond": "edm",  # or vp, ve, iddpm: how published networks are wrapped
                "sigma_data": 0.7,
                "times": "lognormal",  # noise levels and weights of training, docs/design.md
                "p_mean": -0.6,
                "p_std": 1.4,
                "stratified": False,  # whether a batch's noise levels share out the distribution
                "label_dropout": 0.1,
            },
            # EDM's geometric augmentation; 0: none, CIFAR-10 has 0.12
            "augment": {"probability": 0.0},
            "optimizer": {
                "learning_rate": 5e-3,
                "schedule": "cosine",
                "warmup_steps": 80.0,
                "warmup_from_zero": False,  # whether the first step's rate is 0, as EDM's
                "final": 0.02,
                "b1": 0.9,
                "b2": 0.99,
                "eps": 1e-8,
                "weight_decay": 0.0,
                "clip": 1.0,
            },
            "ema": {"ema": {"kind": "warmup", "decay": 0.99}},
            "sampling": {"steps": 18, "guidance": 2.0, "sigma_min": 0.02, "sigma_max": 40.0},
        }
    )
