"""DIAMOND (Alonso et al. 2024, arXiv 2405.12399): a world model of a game, and an agent in it.

A denoiser makes the next frame from the last four and what was done; a second model says what the
step paid and whether it was the last one; a policy learns in what the two imagine. Training is an
outer loop of its own (`fit.py`): play, learn, look. Sampling imagines on from recorded frames,
beside what really came.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.core import processes
from diffjax.errors import UserError
from diffjax.run import cli, clips
from diffjax.run.system import System
from diffjax.systems.diamond import backbone, forecast, playing, settings, state
from diffjax.systems.diamond import experience as experiences
from diffjax.systems.diamond import fit as fitting
from diffjax.systems.diamond import request as requests
from diffjax.systems.diamond.quantise import round_level, to_float
from diffjax.systems.diamond.request import Request
from diffjax.systems.diamond.settings import Parts


def make(config, assets: dict | None = None) -> System:
    """Returns the DIAMOND system of a config; see `configs/diamond.py` for its fields.

    With assets no game is opened and no recording: what a file names is not executed.

    Raises:
      UserError: where game, recordings or fields cannot be used.
    """
    config = cli.with_defaults(config, settings.OPTIONAL)
    settings.check(config)
    experience = experiences.open_experience(config) if assets is None else None
    # Kept, not copied: what training records to begin from is added to it.
    assets = {"data": experience.about()} if assets is None else assets
    about, parts = experiences.described(assets), parts_of(config, assets)
    default = requests.defaults(config)
    past = parts.past

    def recorded() -> dict:
        return experiences.recordings_of(assets, parts.frame, past, parts.actions)

    def condition(request: Request, index: np.ndarray) -> dict:
        """Frames uint8 [B, n (+ T)], actions and how many frames are real, of recording `index`."""
        found = recorded()
        requests.check(request, config.learn, found["obs"].shape[1] - past)
        pick = np.asarray(index) % len(found["obs"])
        frames = past + (request.horizon if request.policy == "recorded" else 0)
        given = {name: found[name][pick, :frames] for name in ("obs", "act")}
        return {**given, "length": np.minimum(found["length"][pick], frames)}

    def sample(params, keys, given, request: Request) -> dict:
        denoiser, params = parts.for_sampling(params, request.quantise)
        how = denoiser, requests.sampler_of(request)
        frames, act = to_float(given["obs"][:, :past]), given["act"][:, :-1]
        if request.policy == "agent":
            made, chosen = forecast.improvise(
                *(*how, parts.policy(params), params["denoiser"], frames, act, keys),
                *(request.horizon, forecast.no_memory(len(keys), parts.actor_critic)),
            )
            act = jnp.concatenate([act, chosen], 1)
        else:
            made = forecast.forecast(*how, params["denoiser"], frames, act, keys)
        frames = jnp.concatenate([frames, made], 1)
        out = {"imagined": round_level(frames), "act": act}
        if request.policy == "recorded":
            out |= {"real": given["obs"], "length": given["length"]}
        if parts.reward_end is not None:
            model = parts.reward_end, params["rew_end_model"]
            out |= forecast.judged(*model, frames, act, keys, past)._asdict()
        return out

    def showable(request: Request) -> None:
        if past + request.horizon > clips.MAX_FRAMES:
            raise UserError(
                f"--horizon {request.horizon}: a clip has at most {clips.MAX_FRAMES} frames, "
                f"{past} real ones with them; --out NAME.npz takes as many as there are"
            )

    def show(outputs: dict, path: Path) -> None:
        names = [name for name in ("real", "imagined") if name in outputs]
        frames = clips.stacked({name: np.asarray(outputs[name]) for name in names})
        clips.save_clip(frames, path, fps=default.fps, scale=1)

    def write(one: dict, path: Path) -> None:
        show({name: np.asarray(value)[None] for name, value in one.items()}, path)

    def loss(params, batch, key):
        """The denoiser's, of a batch as `segments.batch_of` makes it."""
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(batch["row"])
        return state.loss_of(parts, "denoiser", config)(params["denoiser"], batch, keys)

    system = System(
        init=parts.init,
        loss=loss,
        request=default,
        condition=condition,
        condition_like=_not_scored,
        sample=sample,
        data=_not_scored,
        show=show,
        showable=showable,
        write=write,
        evaluate=_not_scored,
        open=_not_scored,
        suffix=".gif",
        suffixes=(".mp4",),
        count=lambda request: len(recorded()["obs"]),
        assets=assets,
        optional=settings.OPTIONAL,
        process=processes.edm(),
        denoiser=backbone.estimate(parts),
        backbone=backbone.make(config, parts, default),
        play=functools.partial(playing.opened, parts, about, recorded),
        small_kernels=True,
    )
    if experience is None:
        return system
    fit = functools.partial(fitting.fit, system, parts, config, experience)
    return dataclasses.replace(system, fit=fit)


def parts_of(config, assets: dict) -> Parts:
    """What a run is made of, of its config and what it keeps: for studies, with `forecast`."""
    config = cli.with_defaults(config, settings.OPTIONAL)
    return settings.make(config, experiences.described(assets)["actions"])


def _not_scored(*_, **__):
    raise UserError(
        "diffjax.evaluate scores no worlds: how far they stray is diffjax.studies.drift, and a "
        "policy's scores in the real game are in its run's metrics.jsonl"
    )
