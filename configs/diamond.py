"""DIAMOND (Alonso et al. 2024): a world model of an Atari game and an agent in it, as published.

100,000 steps of the game; `--config.game=Breakout`, any of the 26, `ball` or `module:function`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "system": "diamond",
            "seed": 0,
            "game": "Breakout",
            "learn": "agent",  # or world (no policy), or denoiser (nothing but frames)
            "epochs": 1000,
            "time_budget": 0.0,  # seconds; above 0, training ends then wherever it is
            "checkpoint_every": 1,  # epochs; a signal saves in the middle of one
            "keep": 2,
            "keep_every": 0,
            "log_every": 100,  # updates of a network
            "sample_every": 10,  # epochs
            "num_samples": 4,
            "updates_per_call": 20,  # how many the device makes before it is asked again (on CPU 1)
            "frame_size": 64,
            "past_frames": 4,
            "sample_weights": (0.1, 0.1, 0.1, 0.7),  # of the quarters of the episodes, oldest first
            # a folder of recorded episodes to train on, in place of playing; the last share of
            # them is held out
            "data": {"path": "", "held_out": 0.05},
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1, "context": 1},
            # the first collection goes on from first_least until first_rewards rewards have one of
            # the two rarer signs, or to first_most; steps: in all, after which none are collected
            "collection": {
                "steps": 100_000,
                "first_least": 5000,
                "first_most": 10_000,
                "first_rewards": 10,
                "epoch_steps": 100,
                "seats": 1,
                "processes": 0,  # that play the seats' games; 0: this one
                "limit": 27_000,  # steps after which a game is cut: Atari's own 108,000 frames
                "epsilon": 0.01,
                "temperature": 1.0,
            },
            # games played for scores every so many epochs and at the end, each cut after `limit`
            # steps, its score then what it had; roll-outs kept to begin from: so many, of
            # past_frames + horizon frames, out of the first `longest` of a game
            "evaluation": {
                "every": 10,
                "games": 4,
                "final_games": 100,
                "seats": 4,
                "limit": 27_000,
                "longest": 1000,
                "starts": 16,
                "horizon": 50,
            },
            "denoiser": {
                "cond_channels": 256,
                "depths": (2, 2, 2, 2),
                "channels": (64, 64, 64, 64),
                "attention": (False, False, False, False),
                "dtype": "float32",
                "sigma_data": 0.5,
                "sigma_offset": 0.3,
                "quantise": "floor",
                "objective": "next",
                "mean": -0.4,  # of ln sigma in training, clipped to lowest .. highest
                "std": 1.2,
                "lowest": 2e-3,
                "highest": 20.0,
                "generated_frames": 1,  # how many of its own frames it is trained to go on from
                "first_steps": 10_000,  # updates in the first epoch
                "epoch_steps": 400,  # and in the others
                "time_budget": 0.0,  # seconds an epoch at most; 0: no limit
                "batch_size": 32,
                "learning_rate": 1e-4,
                "weight_decay": 1e-2,
                "clip": 1.0,
                "warmup_steps": 100,
                "decay_steps": 0,  # updates until the rate is 0; 0: it stays
            },
            "reward_end": {
                "lstm_dim": 512,
                "cond_channels": 128,
                "depths": (2, 2, 2, 2),
                "channels": (32, 32, 32, 32),
                "attention": (False, False, False, False),
                "dtype": "float32",
                "segment": 19,  # steps
                "first_steps": 10_000,
                "epoch_steps": 400,
                "time_budget": 0.0,
                "batch_size": 32,
                "learning_rate": 1e-4,
                "weight_decay": 1e-2,
                "clip": 100.0,
                "warmup_steps": 100,
                "decay_steps": 0,
            },
            "actor_critic": {
                "lstm_dim": 512,
                "channels": (32, 32, 64, 64),
                "down": (True, True, True, True),
                "dtype": "float32",
                "rollout": 15,  # steps between updates
                "gamma": 0.985,
                "lam": 0.95,
                "value_weight": 1.0,
                "entropy_weight": 0.001,
                "first_steps": 5000,
                "epoch_steps": 400,
                "time_budget": 0.0,
                "batch_size": 32,  # imagined worlds
                "learning_rate": 1e-4,
                "weight_decay": 0.0,
                "clip": 100.0,
                "warmup_steps": 100,
                "decay_steps": 0,
            },
            # the world that the policy learns in; preload: batches of starts at a time
            "imagination": {
                "horizon": 15,
                "preload": 256,
                "steps": 3,
                "sigma_min": 2e-3,
                "sigma_max": 5.0,
                "rho": 7.0,
                "order": 1,
                "s_churn": 0.0,
                "s_tmin": 0.0,
                "s_tmax": 1e9,
                "s_noise": 1.0,
                "s_past": 0.0,
                "start": "unit",
            },
            # defaults of sample.py: those of imagination, but for what is said here
            "sampling": {"fps": 15.0},
        }
    )
