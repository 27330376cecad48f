"""Playing a world that is imagined, by hand: what `diffjax.run.play` takes, of a trained run."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffjax.run import devices
from diffjax.systems.diamond import forecast, imagination
from diffjax.systems.diamond import request as requests
from diffjax.systems.diamond.imagination import Starts, World
from diffjax.systems.diamond.quantise import round_level
from diffjax.systems.diamond.request import Request
from diffjax.systems.diamond.settings import Parts

FOREVER = 2**31 - 1  # steps: a world that a person plays is not cut short
HEAD = 14  # pixels of the line above a picture
SIDE = 128  # pixels, at least, of a picture's sides


class Played(NamedTuple):
    """A world that a person plays, between two steps.

    Attributes:
      starts: where it begins again when it ends: a single one.
      world: `imagination.World`, of one.
      key: of this play; step k is made of (key, k) as roll-outs of sample.py are.
      steps: k, since its beginning.
      score: the sum of the rewards' signs; None without a model of rewards.
    """

    starts: Starts
    world: World
    key: Any
    steps: int
    score: float | None


def opened(parts: Parts, about: dict, recorded, params: dict, request: Request, seed: int) -> dict:
    """Returns what `run.play.serve` is called with: start, step, keys, title and fps.

    The i-th beginning is the i-th recording's first frames, and its steps are made of the same
    keys as sample i of the same seed: the recorded actions lead to the same frames.

    Args:
      parts: `settings.Parts`.
      about: `Experience.about`.
      recorded: () -> what the run can begin from, see `experience.recordings_of`.
      params: {network: params}.

    Raises:
      UserError: nothing to begin from, or a request that cannot be met.
    """
    found = recorded()
    requests.check(dataclasses.replace(request, policy="recorded", horizon=1), "denoiser", 1)
    denoiser, params = parts.for_sampling(params, request.quantise)
    sampler = requests.sampler_of(request)
    made = imagination.Imagination(denoiser, parts.reward_end, sampler, FOREVER)
    models = {name: params[name] for name in ("denoiser", "rew_end_model") if name in params}
    base, turn = jax.random.key(seed), iter(range(10**9))

    @jax.jit
    def begin(obs, act):
        starts = made.preload(models.get("rew_end_model"), obs[None, None], act[None, None])
        world = made.reset(starts, 1)
        return starts, world, round_level(world.obs[0, -1])

    @functools.partial(jax.jit, donate_argnums=1, compiler_options=devices.captured())
    def advance(starts, world, act, key, k):
        draws = imagination.draw(forecast.step_keys(key[None], k), parts.frame)
        world, out = made.step(models, starts, world, act[None], draws)
        return world, round_level(out.final[0]), out.rew[0], out.end[0]

    def start():
        i = next(turn) % len(found["obs"])
        first = found["obs"][i, : parts.past], found["act"][i, : parts.past]
        starts, world, frame = begin(*map(jnp.asarray, first))
        score = None if parts.reward_end is None else 0.0
        key = jax.random.fold_in(base, i)
        return Played(starts, world, key, 0, score), drawn(np.asarray(frame), 0, score)

    def step(played: Played, action: int):
        act = jnp.int32(action)
        world, frame, rew, end = advance(played.starts, played.world, act, played.key, played.steps)
        frame, rew, end = jax.device_get((frame, rew, end))
        score = None if played.score is None else played.score + float(rew)
        steps = played.steps + 1
        picture = drawn(frame, steps, score, float(rew), bool(end))
        if end:  # the world has begun again already; what it is made of is new
            key = jax.random.fold_in(played.key, FOREVER)
            return Played(played.starts, world, key, 0, 0.0), picture
        return played._replace(world=world, steps=steps, score=score), picture

    told = {"keys": about["keys"], "title": f"{about['name']}, imagined", "fps": request.fps}
    return {"start": start, "step": step, **told}


def drawn(frame: np.ndarray, steps: int, score: float | None, rew: float = 0, end: bool = False):
    """A frame uint8 [H, W, 3], enlarged, under a line that says the step, the reward and the end.

    Returns:
      uint8 [s H + HEAD, s W, 3], s the whole number that makes the sides at least `SIDE`.
    """
    scale = -(-SIDE // min(frame.shape[:2]))
    large = frame.repeat(scale, 0).repeat(scale, 1)
    line = Image.new("RGB", (large.shape[1], HEAD), (150, 30, 30) if end else "black")
    text = f"{steps}"
    if score is not None:
        text += f"   score {score:+g}" + (f" ({rew:+g})" if rew else "") + ("   END" if end else "")
    ImageDraw.Draw(line).text((3, 1), text, "white", ImageFont.load_default(10))
    return np.concatenate([np.asarray(line), large])
