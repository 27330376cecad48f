"""Motion made tiny: a person of formulas, described by texts. 20 steps and samples in a minute."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "system": "mdm",
            "seed": 0,
            "steps": 20,
            "batch_size": 32,  # of all devices together
            "accumulate": 1,  # slices that a batch goes through in, to save memory
            "time_budget": 0.0,  # seconds; above 0, training ends then if `steps` are not done
            "checkpoint_every": 20,
            "keep": 2,
            "keep_every": 0,
            "log_every": 5,
            "sample_every": 20,
            "num_samples": 4,
            "conditioning": "text",  # or action (the data's classes), or none
            "condition_dropout": 0.1,  # how often training leaves the condition out: for guidance
            # walker (a person of formulas), a folder of .bvh files, a folder in HumanML3D's format,
            # or an .npz; frames are counted at fps; crop: cut clips at random to multiples of it
            "data": {
                "path": "walker",
                "fps": 20.0,
                "max_frames": 60,
                "min_frames": 20,
                "crop": 4,
                "mirror": False,
                "balanced": False,
                "shuffle_frames": False,  # a control, for studies
            },
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1, "context": 1},
            # words: a small encoder that is trained along; folder: CLIP's or DistilBERT's files
            "text": {
                "encoder": "words",
                "folder": "",
                "words": 4096,
                "width": 64,
                "layers": 1,
                "heads": 2,
            },
            "network": {
                "kind": "trans_enc",
                "width": 96,
                "layers": 3,
                "heads": 4,
                "ff": 192,
                "mask_frames": True,
                "attention": "auto",
                "dropout": 0.1,
                "attention_dropout": 0.1,  # of its weights; 0 lets training use a faster attention
                "dtype": "float32",
            },
            # steps: of the schedule, all trained; context and predict: frames that are known and
            # frames that follow, for motions without an end (configs/mdm_dip.py)
            "diffusion": {"schedule": "cosine", "steps": 50, "context": 0, "predict": 0},
            # weights of the geometric losses, beside the squared error
            "loss": {"positions": 0.0, "contact": 0.0, "velocity": 0.0},
            "optimizer": {
                "learning_rate": 1e-3,
                "schedule": "cosine",
                "warmup_steps": 5.0,
                "warmup_from_zero": False,
                "final": 0.05,
                "b1": 0.9,
                "b2": 0.99,
                "eps": 1e-8,
                "weight_decay": 0.0,
                "clip": 1.0,
            },
            "ema": {"ema": {"kind": "warmup", "decay": 0.99}},
            "sampling": {"guidance": 2.5, "seconds": 3.0},
        }
    )
