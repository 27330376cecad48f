"""A one-step generator of a trained run, `--config.base=runs/NAME`, or of emoji, from nothing.

Distils the base into WORKDIR/distilled and post-trains that against a discriminator made of the
base; with `base` empty, trains WORKDIR/base first, by `pretrain`. Sizes are for small networks; the
comments say what Lin et al. 2025a take for one of 8 billion parameters.
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffjax.run.cli import load_config


def get_config() -> ConfigDict:
    pretrain = load_config(Path(__file__).with_name("emoji.py"))
    pretrain.name = "base"
    return ConfigDict(
        {
            "system": "apt",
            "stage": "adversarial",  # or distil: stop after the distillation
            "base": "",  # a run of a diffusion model, or of the distillation; empty: `pretrain`
            "distilled": "",  # a run of the distillation; empty: it is trained
            "seed": 0,
            "steps": 600,  # alternations: one step of D, one of G; 350
            "batch_size": 32,  # 9062 images, 2048 films
            "accumulate": 1,
            "time_budget": 0.0,
            "checkpoint_every": 200,
            "keep": 3,
            "keep_every": 0,
            "log_every": 10,
            "sample_every": 200,
            "num_samples": 80,
            "data": {"path": ""},  # empty: the base's
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1, "context": 1},
            "adversarial": {
                "family": "non_saturating",  # or relativistic, with r2 True
                "r1_weight": 100.0,  # 0: no penalty
                "r1_sigma": 0.1,  # of data of unit variance; 0.01 for images, 0.1 for films
                "r1_mode": "jvp",  # fd: the paper's difference; exact
                "r2": False,
                "shift": 1.0,  # of D's times; 12 for films
                "times": "random",  # zero: D is always told that there is no noise
                "g_from": "distilled",  # or diffusion
                "d_from": "diffusion",  # or distilled, random
                "taps": (),  # blocks with a head, (-1,): the last; empty: 16, 26, 36 of 36
                "depth": 1.0,  # the share of the blocks that D has, where taps are not named
                "heads": 0,  # of a head's attention; 0: one for 64 channels
                "alarm": 0.1,  # stop where D's loss stays below and logits part; 0: never
            },
            "relay": {  # of a base that is a relay stage
                "parent": "",  # the run whose samples it starts from; empty: the base's own
                "sees": "picture",  # what D is shown; residual: what G adds to its blurred start
            },
            "optimizer": {  # RMSProp, of G and of D: b2 is its decay
                "learning_rate": 1e-4,  # 5e-6 images, 3e-6 films
                "schedule": "constant",
                "warmup_steps": 0.0,
                "warmup_from_zero": False,
                "final": 1.0,
                "b1": 0.0,
                "b2": 0.9,
                "eps": 1e-8,
                "weight_decay": 0.0,
                "clip": 0.0,
            },
            "ema": {"ema": {"kind": "constant", "decay": 0.995}},
            "sampling": {"steps": 1, "mode": "consistency", "shift": 1.0},
            "distillation": {
                "steps": 32,  # times that are distilled on
                "shift": 1.0,  # of these; 12 to 24 for films
                "guidance": -1.0,  # of the teacher; -1: the base's own sampling.guidance; 7.5
                "solver": "euler",  # or heun
                "space": "v",  # of the loss; or x
                "huber": False,
                "target": "",  # whose jump is learnt: the student's own, or an average's of `ema`
            },
            "distil": {  # what is other in the run of the distillation
                "steps": 800,
                "batch_size": 32,
                "optimizer": {
                    "learning_rate": 5e-4,  # 1e-5
                    "schedule": "cosine",
                    "warmup_steps": 50.0,
                    "warmup_from_zero": False,
                    "final": 0.02,
                    "b1": 0.9,
                    "b2": 0.99,
                    "eps": 1e-8,
                    "weight_decay": 0.0,
                    "clip": 1.0,
                },
                "ema": {"ema": {"kind": "warmup", "decay": 0.99}},
            },
            "pretrain": pretrain,  # the base's config where none is named: of any system
        }
    )
