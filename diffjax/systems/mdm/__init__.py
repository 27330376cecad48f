"""MDM (Tevet et al. 2023, arXiv 2209.14916) and DiP (Tevet et al. 2025): motions from texts,
classes of actions, or nothing.

The network predicts x0 on a discrete cosine schedule and is told the index t - 1. Training is the
masked squared error of x0, with the text or action dropped at random; sampling is DDPM's, with
classifier-free guidance in one batch of 2B. Editing overwrites a part of every estimate of x0; a
model with a context (DiP) is trained to go on from known frames, and makes motions without an end.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import nets
from diffjax.core import denoisers, guidance, objectives, processes, samplers
from diffjax.data.motion import features
from diffjax.errors import UserError, choose
from diffjax.run import cli
from diffjax.run.system import System
from diffjax.systems import images
from diffjax.systems.mdm import backbone as backbones
from diffjax.systems.mdm import conditions, editing, losses, motions, scores, training
from diffjax.systems.mdm import request as requests
from diffjax.systems.mdm.conditions import Told
from diffjax.systems.mdm.request import LONGEST, Request

FIELDS = {
    "conditioning": str,
    "condition_dropout": float,
    "data.path": str,
    **dict.fromkeys(["data.fps"], float),
    **dict.fromkeys([f"data.{k}" for k in ("max_frames", "min_frames", "crop")], int),
    "data.mirror": bool,
    "network.kind": str,
    "network.dropout": float,
    "diffusion.steps": int,
}
OPTIONAL = {
    "data.balanced": False,
    "data.shuffle_frames": False,
    "diffusion.schedule": "cosine",
    "diffusion.context": 0,
    "diffusion.predict": 0,
    "text.encoder": "words",
    "text.folder": "",
    "text.words": 4096,
    "text.width": 128,
    "text.layers": 2,
    "text.heads": 4,
    "loss.positions": 0.0,
    "loss.contact": 0.0,
    "loss.velocity": 0.0,
}
SCHEDULES = {"cosine": processes.cosine_betas, "linear": processes.linear_betas}
PREFIXES = 32  # beginnings of clips that a run with a context keeps
# What a set without captions is shown by.
SENTENCES = ("a person walks forward.", "a person jumps up and down.", "a person waves.")


def make(config, assets: dict | None = None) -> System:
    """Returns the MDM system of a config; see `configs/mdm_bvh.py` for its fields.

    Raises:
      UserError: where data or fields cannot be used.
    """
    cli.require(config, FIELDS)
    config = cli.with_defaults(config, OPTIONAL)
    _check_settings(config)
    settings, context = config.diffusion, config.diffusion.context
    open_motion = motions.opener(config)
    default = images.default_request(Request, config)
    if assets is None:
        assets = _assets(config, open_motion(config.data.path, "train"))
    body = motions.described(assets)
    conditioner = conditions.make(config, assets)
    _check_body(config, body, assets)
    net = nets.make_motion(
        config.network,
        features=body.size,
        condition=conditioner.kind,
        num_actions=len(body.class_names),
    )
    process = processes.discrete(SCHEDULES[settings.schedule](settings.steps))
    objective = objectives.discrete(settings.steps)
    weights = losses.Weights(**config.loss)

    def data(split: str) -> Told:
        return Told(open_motion(config.data.path, split), conditioner)

    def inputs() -> tuple:
        """Shapes of the network's x, t and condition."""
        struct, frames, condition = jax.ShapeDtypeStruct, settings.predict or 8, None
        if conditioner.kind == "action":
            condition = struct((1,), jnp.int32)
        elif conditioner.kind == "text":
            width = beside_width(config, assets)
            condition = struct((1, 1, width), jnp.float32), struct((1, 1), bool)
        x = struct((1, frames, body.size), jnp.float32), struct((1,), jnp.float32)
        return (*x, condition)

    def init(key):
        beside = conditioner.init(jax.random.fold_in(key, 1))
        return {"motion": net.lazy_init(key, *inputs())["params"], **beside}

    def estimate(params, x, t, given, told, train=False, rngs=None):
        """D(x; t) of a batch: given has mask, drop and prefix, where there are any."""

        def network(x, told_time):
            index = jnp.broadcast_to(jnp.reshape(told_time, -1), x.shape[:1])
            return net.apply(
                {"params": params["motion"]},
                *(x, index, told),
                mask=given.get("mask"),
                drop=given.get("drop"),
                prefix=given.get("prefix"),
                train=train,
                rngs=rngs,
            )

        return denoisers.from_x0(process, network, told=lambda t: t - 1)(x, t)

    def denoiser(params, x, t, given, train=False, rngs=None):
        told = conditioner.told(params, given, train, rngs)
        return estimate(params, x, t, given, told, train, rngs)

    def loss(params, batch, key):
        rows = jax.vmap(lambda row: jax.random.fold_in(key, row))(batch["row"])
        keys = jax.vmap(lambda k: jax.random.split(k, 4))(rows)
        x0, mask, prefix = training.examples(
            *(batch["motion"], batch["length"], keys[:, 0]),
            context=context,
            predict=settings.predict,
            unit=config.data.crop,
        )
        t = objective.time(jax.vmap(lambda k: jax.random.uniform(k, (1, 1)))(keys[:, 1]))
        n = jax.vmap(lambda k: jax.random.normal(k, x0.shape[1:]))(keys[:, 2])
        dropped = jax.vmap(jax.random.uniform)(keys[:, 3]) < config.condition_dropout
        given = {**batch, "mask": mask, "drop": dropped, "prefix": prefix}
        # One key for all rows, as masks of one draw are cheapest; it differs between the slices of
        # config.accumulate, whose first rows differ.
        masks = jax.random.fold_in(jax.random.fold_in(key, images.ASIDE), batch["row"][0])
        x = denoiser(
            *(params, process.perturb(x0, n, process.at(t)), t, given),
            train=True,
            rngs={"dropout": masks},
        )
        found = losses.terms(
            *(x, x0, mask, weights),
            joints_of=functools.partial(_centred, body=body),
            feet=body.skeleton.feet,
            before=prefix,
            rows=6 if body.kind == "rot6d" else 0,
        )
        means = {name: value.mean() for name, value in found.items()}
        total = means.pop("loss")
        return total, means if len(means) > 1 else {}

    def check(request: Request) -> None:
        requests.check(request, settings.steps)
        free = conditioner.kind == "none"
        # A config's default, which may be that of another kind of model, means nothing then.
        if request.guidance not in (1, default.guidance):
            if free:
                raise UserError(f"--guidance {request.guidance:g}: this model has no conditions")
            if not config.condition_dropout:
                raise UserError(
                    f"--guidance {request.guidance:g}: this model was never trained without its "
                    "condition (config.condition_dropout 0)"
                )
        if free and request.cond:
            raise UserError(f"--cond {request.cond}: this model has no conditions")
        for name in ("ease", "blend"):
            if getattr(request, name) and not context:
                told = f"--{name} {getattr(request, name)}"
                raise UserError(f"{told}: this model goes on from no known frames")
        if context and request.edit:
            raise UserError("--edit: a model with a context goes on from frames and edits none")

    def scale_of(request: Request) -> float:
        guidable = conditioner.kind != "none" and config.condition_dropout > 0
        return float(request.guidance) if guidable else 1.0

    @functools.lru_cache(maxsize=4)
    def known_of(request: Request) -> dict:
        how = Path(request.motion), body, request.edit, requests.kept(request)
        return editing.known(*how)

    def frames_of(request: Request) -> int:
        if request.edit:
            return len(known_of(request)["known"])
        longest = LONGEST if context else body.max_frames
        default_frames = longest if not context else 4 * settings.predict
        return requests.frames_of(request, body.fps, default_frames, longest)

    def condition(request: Request, index: np.ndarray) -> dict:
        check(request)
        frames, count = frames_of(request), len(index)
        given = {
            "mask": np.ones((count, frames), bool),
            "length": np.full(count, frames, np.int32),
            "drop": np.zeros(count, bool),
        }
        if conditioner.kind == "action":
            labels = images.labels_of(request.cond, body.class_names)
            given["label"] = labels[index % len(labels)]
        elif conditioner.kind == "text":
            texts = requests.prompts_of(request.cond)
            # Without a text the edited part is whatever goes with the rest.
            free = bool(request.edit) and not texts
            given["drop"] |= free
            shown = [""] if free else texts or list(body.captions) or list(SENTENCES)
            given |= told_of(request, shown, index, in_turn=not (context and texts))
        if context:
            prefixes = assets["prefixes"]
            given["prefix"] = prefixes[index % len(prefixes)]
        if request.edit:
            given |= {k: np.repeat(v[None], count, 0) for k, v in known_of(request).items()}
        return given

    def told_of(request: Request, texts: list[str], index, in_turn: bool) -> dict:
        """The fields of `texts`: one a sample, in turn, or (a model with a context) [B, K, ...],
        all of them one after the other."""
        found = conditioner.encode(texts, request.text_folder)
        shown = texts if in_turn else ["; ".join(texts)]
        pick = lambda a: a[index % len(a)] if in_turn else np.repeat(a[None], len(index), 0)
        found = {name: pick(array) for name, array in found.items()}
        if context and in_turn:
            found = {name: array[:, None] for name, array in found.items()}
        captions = motions.to_bytes(shown)
        return {**found, "caption": captions[index % len(captions)]}

    def condition_like(request: Request, source, index: np.ndarray) -> dict:
        check(request)
        for flag, value in (("--cond", request.cond), ("--edit", request.edit)):
            if value:
                raise UserError(f"{flag}: samples that are scored take the reference's conditions")
        some = scores.order(source)[index % len(source)]
        frames = max(int(source.source.lengths.max()), 2)
        if not context and frames > body.max_frames:
            raise UserError(
                f"{source.name} has motions of {frames} frames, this model knows {body.max_frames}"
            )
        length = source.source.lengths[some].astype(np.int32)
        given = {
            "mask": motions.mask_of(length, frames),
            "length": length,
            "drop": np.zeros(len(index), bool),
        }
        same = body.class_names and source.source.class_names == body.class_names
        if conditioner.kind == "action" or same:
            given["label"] = images.labels_like(source.source, body.class_names, index)
        if conditioner.kind == "text":
            captions = scores.captions(source)
            every = sorted(set(captions))
            place = {text: i for i, text in enumerate(every)}
            which = np.array([place[captions[i]] for i in some])
            given |= told_of(request, every, which, in_turn=True)
        if context:
            given["prefix"] = assets["prefixes"][index % len(assets["prefixes"])]
        return given

    def part_of(params, given, told, request: Request, noise, first=0):
        """The problem of one motion, or of the frames after a prefix."""
        part = {name: given[name] for name in ("mask", "drop", "prefix") if name in given}
        answer = lambda x, t, g: estimate(params, x, t, g, g["told"])
        scale = scale_of(request)
        if request.ease and scale != 1:
            scale = requests.eased(scale, request.ease, given["mask"].shape[1])
        denoise = requests.guided(answer, {**part, "told": told}, scale)
        if "known" in given:
            denoise = guidance.inpaint(denoise, given["known"], given["kept"])
        grid, mask = requests.grid_of(request, settings.steps), given["mask"][..., None]
        return requests.problem_of(denoise, process, grid, noise, first, mask)

    def problem(params, keys, given, request: Request):
        params = {**params, "motion": nets.rounded(config.network, params["motion"])}
        noise = samplers.draws(keys, (given["mask"].shape[1], body.size), process)
        return part_of(params, given, conditioner.told(params, given), request, noise)

    def go_on(params, keys, given, request: Request):
        """x0 of a model with a context: [B, N, D], in as many predictions as it takes."""
        params = {**params, "motion": nets.rounded(config.network, params["motion"])}
        frames, size = given["mask"].shape[1], settings.predict
        count, draws = -(-frames // size), len(requests.grid_of(request, settings.steps))
        noise = samplers.draws(keys, (size, body.size), process)
        told, mask = conditioner.told(params, given), jnp.ones((len(keys), size), bool)

        def predict(i, prefix):
            now = told
            if conditioner.kind == "text":
                now = jax.tree.map(lambda a: a[:, i * a.shape[1] // count], told)
            part = {**given, "mask": mask, "prefix": prefix}
            new = requests.solve(request, part_of(params, part, now, request, noise, i * draws))
            return requests.joined(prefix, new, request.blend, motions.places(body))

        return requests.autoregressive(predict, given["prefix"], count)[:, :frames]

    def sample(params, keys, given, request: Request):
        if context:
            x = go_on(params, keys, given, request)
        else:
            x = requests.solve(request, problem(params, keys, given, request))
        return finish(x, given)

    def finish(x, given):
        motion = motions.denormalised(x, body)
        kept = {name: given[name] for name in ("label", "caption", "given") if name in given}
        joints = motions.joints_of(motion, body)
        return {"motion": motion, "joints": joints, "length": given["length"], **kept}

    def count(request: Request) -> int:
        if request.edit or conditioner.kind == "none" or (context and request.cond):
            return config.num_samples
        if conditioner.kind == "action":
            return len(images.labels_of(request.cond, body.class_names))
        return len(requests.prompts_of(request.cond)) or config.num_samples

    return System(
        init=init,
        loss=loss,
        request=default,
        condition=condition,
        condition_like=condition_like,
        sample=sample,
        data=data,
        show=functools.partial(motions.show, body=body),
        write=functools.partial(motions.write, body=body),
        suffix=".gif",
        suffixes=(".mp4",),
        single=".bvh",
        count=count,
        open=lambda path, split: Told(open_motion(path, split), conditioner),
        scores=scores.DEFAULT,
        evaluate=functools.partial(scores.scorer, body=body),
        balanced=config.data.balanced and bool(body.class_names),
        sharding=nets.sharding(config.network),
        assets=assets,
        optional=OPTIONAL,
        process=process,
        denoiser=denoiser,
        problem=None if context else problem,
        backbone=None
        if context
        else backbones.make(
            *(config, net, conditioner, settings.steps, body.size, inputs()),
            droppable=conditioner.kind != "none" and config.condition_dropout > 0,
            finish=finish,
        ),
        judge=functools.partial(scores.judge, body=body),
    )


def beside_width(config, assets: dict) -> int:
    """The size of a text's vectors."""
    return assets["text"]["width"] if config.text.encoder == "folder" else config.text.width


def _assets(config, source) -> dict:
    """What a run keeps of its training data."""
    captions = ()
    if config.conditioning == "text":
        captions = conditions.captions_of(source)
    assets = motions.describe(source, conditions.some_of(captions))
    if config.conditioning == "text":
        assets |= conditions.text_assets(config, captions)
    if config.diffusion.context:
        some = np.unique(np.linspace(0, len(source) - 1, min(PREFIXES, len(source))).astype(int))
        first = [source[int(i)]["motion"][: config.diffusion.context] for i in some]
        assets["prefixes"] = np.stack(first)
    return assets


def _centred(x, body):
    """Joints [B, N, J, 3] of what the network sees, without the body's way over the floor."""
    joints = features.recover(motions.denormalised(x, body), body.skeleton)
    return joints - joints[..., :1, :] * np.array([1, 0, 1], x.dtype)


def _check_settings(config) -> None:
    settings = config.diffusion
    choose(settings.schedule, SCHEDULES, "config.diffusion.schedule")
    if not 2 <= settings.steps <= 10_000:
        raise UserError(f"config.diffusion.steps {settings.steps}: must be from 2 to 10000")
    if min(settings.context, settings.predict) < 0 or bool(settings.context) != bool(
        settings.predict
    ):
        raise UserError(
            f"config.diffusion.context {settings.context} and predict {settings.predict}: frames, "
            "both above 0, or both 0"
        )
    if config.text.words < 1:
        raise UserError(f"config.text.words {config.text.words}: how many words, at least 1")
    if not 0 <= config.condition_dropout < 1:
        raise UserError(f"config.condition_dropout {config.condition_dropout}: must be in [0, 1)")
    for name, value in config.loss.items():
        choose(name, dict.fromkeys(losses.Weights._fields), "field of config.loss:")
        if not 0 <= value <= 1e6:
            raise UserError(f"config.loss.{name} {value}: a weight, at least 0")


def _check_body(config, body, assets: dict) -> None:
    geometric = config.loss.positions or config.loss.contact
    if body.kind == "rot6d" and geometric:
        raise UserError(
            "config.loss.positions and contact: these motions' joints need the SMPL body model, "
            "which is not here: set both to 0"
        )
    if config.conditioning == "action" and not body.class_names:
        raise UserError("config.conditioning action: these motions have no classes")
    context = config.diffusion.context
    if context:
        found, shape = assets.get("prefixes"), (context, body.size)
        if not isinstance(found, np.ndarray) or found.shape[1:] != shape or not len(found):
            raise UserError(f"the run directory lacks assets/prefixes.npy [n, {context}, D]")
