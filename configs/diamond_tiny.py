"""DIAMOND made tiny: a bouncing ball, learnt, imagined and played, in a minute on two cores."""

from pathlib import Path

from diffjax.run.cli import load_config


def get_config():
    config = load_config(Path(__file__).with_name("diamond.py"))
    config.name = "diamond_tiny"
    config.update(game="ball", epochs=2, frame_size=16, log_every=20, sample_every=1)
    config.collection.update(
        steps=600, first_least=500, first_most=500, first_rewards=0, epoch_steps=100, seats=2
    )
    config.evaluation.update(every=2, games=2, final_games=2, longest=60, starts=4, horizon=20)
    small = {"depths": (1, 1), "channels": (16, 32), "attention": (False, False)}
    config.denoiser.update(**small, cond_channels=64, batch_size=16, learning_rate=1e-3)
    config.denoiser.update(first_steps=400, epoch_steps=100, warmup_steps=10)
    config.reward_end.update(**small, lstm_dim=32, cond_channels=16, segment=8, batch_size=16)
    config.reward_end.update(first_steps=40, epoch_steps=20, learning_rate=1e-3, warmup_steps=10)
    config.actor_critic.update(lstm_dim=32, channels=(8, 16), down=(True, True), batch_size=8)
    config.actor_critic.update(first_steps=20, epoch_steps=20, rollout=5, warmup_steps=10)
    config.imagination.update(horizon=8, preload=16)
    return config
