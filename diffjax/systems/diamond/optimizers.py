"""DIAMOND's optimiser: clipping, AdamW that spares biases, norms and embeddings, a warm-up."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import optax


@dataclass(frozen=True)
class Settings:
    """Of one network's optimiser; the defaults are the denoiser's.

    Attributes:
      learning_rate: after the warm-up.
      weight_decay: decoupled, times the learning rate.
      clip: largest global norm of a gradient.
      warmup_steps: of the learning rate.
      decay_steps: updates at which it has fallen, linearly, to 0, for a short training that ends
        there; 0: it does not fall.
      b1, b2, eps: Adam's.
    """

    learning_rate: float = 1e-4
    weight_decay: float = 1e-2
    clip: float = 1.0
    warmup_steps: int = 100
    decay_steps: int = 0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8


# network -> its published settings
ATARI = {
    "denoiser": Settings(),
    "rew_end_model": Settings(clip=100.0),
    "actor_critic": Settings(clip=100.0, weight_decay=0.0),
}
CSGO = Settings(clip=10.0)


def schedule(settings: Settings) -> Callable:
    """step -> learning rate: min(1, step/warmup_steps) of it, so that the first step has none, and
    of that max(0, 1 - step/decay_steps) where it falls."""
    rate = optax.linear_schedule(0.0, settings.learning_rate, max(settings.warmup_steps, 1))
    if not settings.decay_steps:
        return rate
    left = optax.linear_schedule(1.0, 0.0, settings.decay_steps)
    return lambda step: rate(step) * left(step)


def decayed(params):
    """A tree like params: True where weights decay, which is every kernel and nothing else."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def make(settings: Settings) -> optax.GradientTransformation:
    """Returns the whole update, learning rate included, for `optax.apply_updates`."""
    s = settings
    return optax.chain(
        optax.clip_by_global_norm(s.clip),
        optax.adamw(schedule(s), s.b1, s.b2, s.eps, weight_decay=s.weight_decay, mask=decayed),
    )
