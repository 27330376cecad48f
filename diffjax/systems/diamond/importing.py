"""A published agent as a run that sample.py plays: its config, and recordings to begin from.

The file holds the weights, and their shapes say the networks' sizes. What it does not say (noise
levels, the sampler, the game) is in a config; frames of the game to begin from are in neither: the
agent plays the game here, or recordings are given (`config.data.path`).
"""

import functools
from pathlib import Path

import jax

from diffjax.errors import UserError
from diffjax.nets.diamond_blocks import no_state
from diffjax.run import cli
from diffjax.systems.diamond import held_out, published, settings
from diffjax.systems.diamond.experience import Experience, open_experience
from diffjax.systems.diamond.games.seats import Games
from diffjax.systems.diamond.published import Agent
from diffjax.systems.diamond.quantise import to_float
from diffjax.weights import trees

GAMES = 4  # that are played to record what can be begun from


def run_of(file: Path, config):
    """Returns (config, assets, {path: array}) of a published agent and a config of its game.

    Args:
      file: the .pt, or the .safetensors that `diffjax.convert` makes of a run.
      config: as `configs/diamond.py`; sizes of networks are taken from the file. Its game is
        opened, and its recordings if it has some, as for training.

    Raises:
      UserError: what `published.read` and `open_experience` refuse, CSGO's two stages, a game with
        other actions than the agent knows.
    """
    config = cli.with_defaults(config, settings.OPTIONAL)
    settings.check(config)
    agent = published.read(file)
    if agent.upsampler is not None or agent.num_actions < 1:
        raise UserError(f"{file}: the two stages of CSGO, of which no run can be made yet")
    config = config_of(agent, config, str(file))
    experience = open_experience(config)
    known = agent.num_actions
    if experience.actions != known and (config.game or experience.actions > known):
        raise UserError(
            f"{file}: this agent knows {known} actions, {experience.name} has {experience.actions}"
        )
    about = {**experience.about(), "actions": known, "fingerprint": f"weights {file.name}"}
    parts = settings.make(config, known)
    episodes = episodes_of(agent, experience, config)
    starts = held_out.starts_of(
        episodes, parts.past, config.evaluation.horizon, config.evaluation.starts
    )
    params = {name: getattr(agent, name).params for name in parts.networks}
    return config, {"data": about, **starts}, trees.flatten(params)


def config_of(agent: Agent, config, where: str):
    """Returns the config with the agent's networks in it."""
    networks = tuple(name for name in settings.GROUPS if getattr(agent, name) is not None)
    learn = [name for name, has in settings.LEARN.items() if has == networks]
    if not learn:
        raise UserError(f"{where}: has {', '.join(networks)}; a run has no such networks")
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.learn = learn[0]
        unet = agent.denoiser.net
        config.past_frames = agent.denoiser.params["conv_in"]["kernel"].shape[2] // 3 - 1
        config.denoiser.update(_levels(unet), cond_channels=unet.cond_channels)
        if agent.rew_end_model is not None:
            net = agent.rew_end_model.net
            sizes = {"cond_channels": net.cond_channels, "lstm_dim": net.lstm_dim}
            config.reward_end.update(_levels(net), **sizes)
        if agent.actor_critic is not None:
            net = agent.actor_critic.net
            config.actor_critic.update(channels=net.channels, down=net.down, lstm_dim=net.lstm_dim)
    return config


def _levels(net) -> dict:
    return {name: getattr(net, name) for name in ("depths", "channels", "attention")}


def episodes_of(agent: Agent, experience: Experience, config) -> list:
    """Held-out recordings where there are some, else games that the agent plays (or chance)."""
    if experience.test is not None:
        return [experience.test[i] for i in range(len(experience.test))]
    policy, memory, longest = held_out.uniform(agent.num_actions), None, config.evaluation.longest
    if agent.actor_critic is not None:
        net, params = agent.actor_critic
        act = lambda p, obs, memory: net.apply({"params": p}, to_float(obs), memory)
        policy = functools.partial(jax.jit(act), params)
        memory = no_state(GAMES, net.lstm_dim)
    seed = config.seed + held_out.SEED
    with Games(experience.make, GAMES, seed) as games:
        how = {"seed": seed, "keep": longest, "most": longest}
        return held_out.play(games, policy, memory, GAMES, **how)[1]
