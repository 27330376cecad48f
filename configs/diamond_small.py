"""DIAMOND with networks of a quarter of the width, to compare seeds and settings on one game."""

from pathlib import Path

from diffjax.run.cli import load_config


def get_config():
    config = load_config(Path(__file__).with_name("diamond.py"))
    config.name = "diamond_small"
    config.denoiser.update(channels=(16, 16, 16, 16), cond_channels=64)
    config.reward_end.update(channels=(8, 8, 8, 8), cond_channels=32, lstm_dim=128)
    config.actor_critic.update(channels=(8, 8, 16, 16), lstm_dim=128)
    return config
