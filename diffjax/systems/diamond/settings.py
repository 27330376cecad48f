"""What a config says of DIAMOND's networks, of the worlds they make and of how they learn."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffjax.errors import UserError, choose
from diffjax.nets import diamond_unet
from diffjax.nets.actor_critic import ActorCritic
from diffjax.nets.diamond_unet import DiamondUNet
from diffjax.nets.reward_end import RewardEnd
from diffjax.run import cli
from diffjax.systems.diamond import losses, optimizers
from diffjax.systems.diamond.denoiser import Denoiser, Levels
from diffjax.systems.diamond.imagination import Imagination, Learning
from diffjax.systems.diamond.quantise import QUANTISERS
from diffjax.systems.diamond.sampling import Sampler

# config.learn -> the networks that are trained, in this order, by their published names
LEARN = {
    "denoiser": ("denoiser",),
    "world": ("denoiser", "rew_end_model"),
    "agent": ("denoiser", "rew_end_model", "actor_critic"),
}
# network -> its group in the config
GROUPS = {"denoiser": "denoiser", "rew_end_model": "reward_end", "actor_critic": "actor_critic"}
# A config may come with somebody else's run: more levels, blocks in one, or steps are no network's.
MOST = {"levels": 8, "blocks": 16, "steps": 1000}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
TRAINING = {
    **dict.fromkeys(("first_steps", "epoch_steps", "batch_size", "warmup_steps"), int),
    **dict.fromkeys(("learning_rate", "weight_decay", "clip", "time_budget"), float),
    "dtype": str,
}
UNET = {"cond_channels": int, "depths": tuple, "channels": tuple, "attention": tuple}
OWN = {
    "denoiser": {
        **UNET,
        **dict.fromkeys(("sigma_data", "sigma_offset", "mean", "std", "lowest", "highest"), float),
        "quantise": str,
        "objective": str,
        "generated_frames": int,
    },
    "reward_end": {**UNET, "lstm_dim": int, "segment": int},
    "actor_critic": {
        "lstm_dim": int,
        "channels": tuple,
        "down": tuple,
        "rollout": int,
        **dict.fromkeys(("gamma", "lam", "value_weight", "entropy_weight"), float),
    },
}
IMAGINATION = {"horizon": int, "preload": int}
SAMPLER = {f.name: type(f.default) for f in dataclasses.fields(Sampler) if f.name != "unroll"}
# Of every game, in steps: Atari's own limit, 108,000 frames, so that nothing of it is cut by these.
NETWORKS = tuple(GROUPS.values())
OPTIONAL = {
    "collection.limit": 27_000,
    "evaluation.limit": 27_000,
    **{f"{group}.decay_steps": 0 for group in NETWORKS},
}
FIELDS = {
    **dict.fromkeys(OPTIONAL, int),
    "game": str,
    "learn": str,
    **dict.fromkeys(("seed", "epochs", "frame_size", "past_frames", "updates_per_call"), int),
    **dict.fromkeys(("checkpoint_every", "keep", "keep_every", "log_every"), int),
    **dict.fromkeys(("sample_every", "num_samples"), int),
    "time_budget": float,
    "sample_weights": tuple,
    "data.path": str,
    "data.held_out": float,
    **{
        f"collection.{k}": int
        for k in ("steps", "first_least", "first_most", "first_rewards", "epoch_steps", "seats")
    },
    "collection.processes": int,
    "collection.epsilon": float,
    "collection.temperature": float,
    **{f"evaluation.{k}": int for k in ("every", "games", "final_games", "seats")},
    **{f"evaluation.{k}": int for k in ("longest", "starts", "horizon")},
    **{f"imagination.{name}": kind for name, kind in (IMAGINATION | SAMPLER).items()},
    **{
        f"{group}.{name}": kind
        for group, own in OWN.items()
        for name, kind in (TRAINING | own).items()
    },
}


class Parts(NamedTuple):
    """What a config is made into.

    Attributes:
      networks: those that are trained, of `LEARN`.
      denoiser: `Denoiser`.
      reward_end, actor_critic: modules, or None where they are not trained.
      imagination: the `Imagination` that a policy learns in.
      learning: `Learning`.
      levels: of the denoiser's training.
      optimizers: {network: `optimizers.Settings`}.
      frame: its shape, (H, W, 3).
      past: n, the frames that the denoiser sees.
      actions: how many there are.
    """

    networks: tuple[str, ...]
    denoiser: Denoiser
    reward_end: Any
    actor_critic: Any
    imagination: Imagination
    learning: Learning
    levels: Levels
    optimizers: dict[str, optimizers.Settings]
    frame: tuple[int, int, int]
    past: int
    actions: int

    @property
    def nets(self) -> dict[str, Any]:
        """{network: module} of those that are trained."""
        every = (self.denoiser.net, self.reward_end, self.actor_critic)
        return {name: net for name, net in zip(GROUPS, every) if name in self.networks}

    def for_sampling(self, params: dict, quantiser: str | None = None) -> tuple[Denoiser, dict]:
        """(a denoiser that computes the same with fewer, larger layers, {network: params}).

        Args:
          params: {network: params}, as they are trained.
          quantiser: instead of the denoiser's own.
        """
        net, own = diamond_unet.merged(self.denoiser.net, params["denoiser"])
        quantiser = self.denoiser.quantiser if quantiser is None else quantiser
        denoiser = dataclasses.replace(self.denoiser, net=net, quantiser=quantiser)
        return denoiser, {**params, "denoiser": own}

    def policy(self, params: dict) -> Callable:
        """(frames in [-1, 1], memory) -> (logits, value, memory), of {network: params}."""
        net, own = self.actor_critic, params["actor_critic"]
        return lambda obs, memory: net.apply({"params": own}, obs, memory)

    def init(self, key: jax.Array) -> dict:
        """{network: params}, float32; each from a key of its own."""
        frame = jax.ShapeDtypeStruct((1, *self.frame), jnp.float32)
        past = jax.ShapeDtypeStruct((1, *self.frame[:2], self.past * 3), jnp.float32)
        moment = jax.ShapeDtypeStruct((1, 1, *self.frame), jnp.float32)
        one = jax.ShapeDtypeStruct((1,), jnp.float32)
        whole = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
        inputs = {
            "denoiser": (frame, past, one, whole(1, self.past)),
            "rew_end_model": (moment, whole(1, 1), moment),
            "actor_critic": (frame,),
        }
        made = {}
        for i, name in enumerate(GROUPS):
            if name in self.networks:
                net, own = self.nets[name], jax.random.fold_in(key, i)
                made[name] = net.lazy_init(own, *inputs[name])["params"]
        return made


def check(config) -> None:
    """Raises `UserError` for the first field that is absent or makes no sense."""
    cli.require(config, FIELDS)
    choose(config.learn, LEARN, "config.learn")
    _at_least(config, 1, ["epochs", "past_frames", "updates_per_call", "checkpoint_every", "keep"])
    _at_least(config, 1, ["log_every", "sample_every", "num_samples"])
    _at_least(config, 0, ["keep_every", "time_budget", "seed"])
    _at_least(config, 1, [f"collection.{k}" for k in ("steps", "first_least", "seats")])
    _at_least(config, 0, [f"collection.{k}" for k in ("epoch_steps", "processes", "first_rewards")])
    _at_least(config, 1, [f"evaluation.{k}" for k in ("every", "seats", "longest", "starts")])
    _at_least(config, 1, ["collection.limit", "evaluation.limit"])
    _at_least(config, 0, [f"{group}.decay_steps" for group in NETWORKS])
    _at_least(config, 1, ["evaluation.horizon", "imagination.horizon", "imagination.preload"])
    _at_least(config, 0, ["evaluation.games", "evaluation.final_games"])
    _at_least(config, 1, ["actor_critic.rollout", "imagination.steps"])
    if config.imagination.steps > MOST["steps"]:
        raise UserError(f"config.imagination.steps {config.imagination.steps}: at most 1000")
    if not config.imagination.rho > 0:
        raise UserError(f"config.imagination.rho {config.imagination.rho}: must be above 0")
    weights = config.sample_weights
    numbers = all(isinstance(weight, int | float) and 0 <= weight < 1e9 for weight in weights)
    if not numbers or not sum(weights) > 0:
        raise UserError(f"config.sample_weights {weights}: shares, 0 or more, not all of them 0")
    if not isinstance(config.get("sampling", {}), Mapping | ConfigDict):
        raise UserError("config.sampling is not a table of sample.py's flags")
    for network in LEARN[config.learn]:
        group = GROUPS[network]
        if len(config[group].channels) > MOST["levels"]:
            raise UserError(f"config.{group}.channels: at most {MOST['levels']} levels")
        for depth in config[group].get("depths", ()):
            if not isinstance(depth, int) or not 0 < depth <= MOST["blocks"]:
                raise UserError(f"config.{group}.depths {depth!r}: 1 to {MOST['blocks']} blocks")
        for name in ("depths", "channels", "attention", "down"):
            if name in config[group] and len(config[group][name]) != len(config[group].channels):
                raise UserError(f"config.{group}.{name} is not one value a level of its channels")
        _at_least(config, 1, [f"{group}.{k}" for k in ("batch_size", "warmup_steps")])
        _at_least(config, 0, [f"{group}.{k}" for k in ("first_steps", "epoch_steps")])
        _at_least(config, 0, [f"{group}.{k}" for k in ("weight_decay", "time_budget")])
        for name in ("learning_rate", "clip"):
            if not config[group][name] > 0:
                raise UserError(f"config.{group}.{name} must be above 0")
        choose(config[group].dtype, DTYPES, f"config.{group}.dtype")
    if not config.denoiser.first_steps:
        raise UserError("config.denoiser.first_steps 0: without a denoiser there is no world")
    if config.collection.first_most < config.collection.first_least:
        raise UserError("config.collection.first_most is below first_least")
    if config.evaluation.longest < config.past_frames + 2:
        raise UserError("config.evaluation.longest: a game of so few frames shows nothing")
    if not 0 <= config.collection.epsilon <= 1 or not config.collection.temperature > 0:
        raise UserError("config.collection: epsilon is from 0 to 1, temperature above 0")
    if not 0 < config.data.held_out < 1:
        raise UserError(f"config.data.held_out {config.data.held_out}: a share, above 0, below 1")
    if not 0 <= config.seed < 2**31:
        raise UserError(f"config.seed {config.seed}: must be from 0 to {2**31 - 1}")
    if config.denoiser.generated_frames < 0 or config.reward_end.segment < 2:
        raise UserError(
            "config.denoiser.generated_frames is at least 0, config.reward_end.segment at least 2"
        )
    if not 8 <= config.frame_size <= 1024:
        raise UserError(f"config.frame_size {config.frame_size}: from 8 to 1024 pixels")


def _at_least(config, least: int, names: list[str]) -> None:
    for name in names:
        value = config
        for part in name.split("."):
            value = value[part]
        if not value >= least:
            raise UserError(f"config.{name} {value}: must be at least {least}")


def make(config, actions: int) -> Parts:
    """Returns the `Parts` of a config that `check` has passed, for a game of so many actions.

    Raises:
      UserError: sizes of no network, settings of no sampler.
    """
    d, r, a = config.denoiser, config.reward_end, config.actor_critic
    levels = lambda c: {k: tuple(c[k]) for k in ("depths", "channels", "attention")}
    networks = LEARN[config.learn]
    choose(d.quantise, QUANTISERS, "config.denoiser.quantise")
    choose(d.objective, losses.OBJECTIVES, "config.denoiser.objective")
    if d.cond_channels % (2 * config.past_frames):
        raise UserError(
            f"config.denoiser.cond_channels {d.cond_channels}: a multiple of twice "
            f"config.past_frames {config.past_frames} is wanted"
        )
    net = DiamondUNet(d.cond_channels, **levels(d), num_actions=actions, dtype=DTYPES[d.dtype])
    denoiser = Denoiser(net, d.sigma_data, d.sigma_offset, d.quantise)
    reward_end = actor_critic = None
    if "rew_end_model" in networks:
        reward_end = RewardEnd(
            actions, r.lstm_dim, r.cond_channels, **levels(r), dtype=DTYPES[r.dtype]
        )
    if "actor_critic" in networks:
        actor_critic = ActorCritic(
            actions, a.lstm_dim, tuple(a.channels), tuple(a.down), dtype=DTYPES[a.dtype]
        )
    sampler = sampler_of(config)
    sampler.grid()
    learning = Learning(a.rollout, a.gamma, a.lam, a.value_weight, a.entropy_weight)
    settings = {
        name: optimizers.Settings(
            **{k: config[GROUPS[name]][k] for k in ("learning_rate", "weight_decay", "clip")},
            warmup_steps=config[GROUPS[name]].warmup_steps,
            decay_steps=config[GROUPS[name]].decay_steps,
        )
        for name in networks
    }
    parts = Parts(
        networks,
        denoiser,
        reward_end,
        actor_critic,
        Imagination(denoiser, reward_end, sampler, config.imagination.horizon),
        learning,
        Levels(d.mean, d.std, d.lowest, d.highest),
        settings,
        (config.frame_size, config.frame_size, 3),
        config.past_frames,
        actions,
    )
    try:
        jax.eval_shape(parts.init, jax.random.key(0))
    except (TypeError, ValueError, ArithmeticError) as error:  # channels of no group or no head
        first = " ".join(str(error).split())[:200]
        raise UserError(f"config: these sizes are of no network ({first})") from error
    return parts


def sampler_of(config) -> Sampler:
    """Returns the sampler of `config.imagination`; `UserError` where it is none."""
    given = {name: kind(config.imagination[name]) for name, kind in SAMPLER.items()}
    return Sampler(**given)


def updates_of(config, network: str) -> Callable[[int], int]:
    """Returns epoch -> how many updates a network has in it."""
    group = config[GROUPS[network]]
    return lambda epoch: group.epoch_steps if epoch else group.first_steps
