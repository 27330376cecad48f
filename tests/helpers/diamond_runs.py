"""Runs of DIAMOND that take seconds: the ball at 8 x 8 pixels, networks of a few channels."""

import json
from pathlib import Path

import numpy as np

from diffjax.run import cli
from diffjax.run.system import save_assets
from diffjax.systems.diamond.games.ball import Ball

UNET = {"depths": "(1,)", "channels": "(8,)", "attention": "(False,)", "cond_channels": 8}
SMALL = {
    "frame_size": 8,
    "mesh.data": -1,
    "epochs": 2,
    "log_every": 2,
    "num_samples": 2,
    "sample_every": 5,
    "collection.steps": 60,
    "collection.first_least": 40,
    "collection.first_most": 40,
    "collection.epoch_steps": 20,
    "collection.seats": 2,
    "evaluation.games": 2,
    "evaluation.final_games": 2,
    "evaluation.every": 2,
    "evaluation.seats": 2,
    "evaluation.longest": 12,
    "evaluation.horizon": 4,
    "evaluation.starts": 3,
    **{f"denoiser.{name}": value for name, value in UNET.items()},
    **{f"reward_end.{name}": value for name, value in UNET.items()},
    "reward_end.lstm_dim": 8,
    "reward_end.segment": 6,
    "actor_critic.lstm_dim": 8,
    "actor_critic.channels": "(8,)",
    "actor_critic.down": "(True,)",
    "actor_critic.rollout": 3,
    "imagination.horizon": 4,
    "imagination.preload": 1,  # so that starts are loaded several times
    "imagination.steps": 2,
    **{
        f"{group}.{name}": value
        for group in ("denoiser", "reward_end", "actor_critic")
        for name, value in {
            "batch_size": 8,
            "first_steps": 4,
            "epoch_steps": 3,
            "warmup_steps": 2,
            "learning_rate": 1e-3,
        }.items()
    },
}


def words(root: Path, **more) -> list[str]:
    """train.py's flags for a run of seconds; `more` has "__" for "."."""
    fields = {**SMALL, **{name.replace("__", "."): value for name, value in more.items()}}
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    return ["--config", str(root / "configs" / "diamond_tiny.py"), *flags]


def config_of(root: Path, **more):
    flags = words(root, **more)
    return cli.apply_overrides(cli.load_config(flags[1]), cli.split_overrides(flags[2:])[1])


def recordings(folder: Path, count: int = 4, length: int = 20, size: int = 8) -> Path:
    """Writes games of the ball as a person's own recordings; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for number in range(count):
        game, rows = Ball(size), []
        obs, _ = game.reset(seed=number)
        for _ in range(length):
            act = int(random.integers(3))
            after, rew, end, _, _ = game.step(act)
            rows.append((obs, act, rew, end))
            obs = after
            if end:
                break
        names = ("obs", "act", "rew", "end")
        arrays = {name: np.stack(part) for name, part in zip(names, zip(*rows, strict=True))}
        np.savez(folder / f"{number:03d}.npz", **arrays, final=obs)
    return folder


def assets_of(config, actions: int = 3) -> dict:
    """What a run keeps, made of nothing."""
    size, length = config.frame_size, config.past_frames + config.evaluation.horizon
    random = np.random.default_rng(0)
    return {
        "data": {
            "name": "nothing",
            "actions": actions,
            "keys": {"": 0},
            "image_shape": [size, size, 3],
            "fingerprint": "",
        },
        "starts_obs": random.integers(0, 256, (2, length, size, size, 3), dtype=np.uint8),
        "starts_act": random.integers(0, actions, (2, length), dtype=np.int32),
        "starts_length": np.array([length, length - 1], np.int32),
    }


def blank(config, workdir: Path, **about) -> Path:
    """A run directory that was never trained and has no weights; about: of its game."""
    assets = assets_of(config)
    assets["data"] |= about
    save_assets(assets, workdir)
    (workdir / "config.json").write_text(cli.config_json(config))
    return workdir


def metrics(workdir: Path) -> list[dict]:
    """The records of metrics.jsonl without what differs from run to run."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    drop = ("time", "images_per_second")
    return [{k: v for k, v in json.loads(line).items() if k not in drop} for line in lines]
