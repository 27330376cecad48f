"""How far an imagined game strays from the real one: `python -m diffjax.studies.drift`.

From real starting frames and under the real actions, a world model imagines on; beside what really
came, frame by frame. Ways of sampling are compared (`--vary start=unit,sigma_max`), each from the
same starts, actions and noises; several runs are trainings under several seeds. Drift is told
together with variety, as what is too sure of itself drifts little. `--against RUN` sets runs beside
others, such as a world of one step (of the system apt) beside its parent. Writes NAME.json, .png,
.gif and .npz.
"""

import dataclasses
import functools
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from diffjax import systems
from diffjax.errors import UserError, command
from diffjax.run import cli, devices, sampling
from diffjax.run import mesh as meshes
from diffjax.studies import arms, drift_measures, drift_report, files
from diffjax.studies.drift_measures import Curves
from diffjax.systems import diamond
from diffjax.systems.apt import origins
from diffjax.systems.diamond import experience, forecast
from diffjax.systems.diamond import request as requests
from diffjax.systems.diamond.quantise import round_level, to_float
from diffjax.systems.diamond.replay import Folder

FEWEST = 8  # roll-outs
SHORTEST = 10  # of them
OWN = ("horizon", "policy", "fps")  # fields of the request that this command sets itself
SHOWN = 4  # roll-outs of the picture, and
SHOWN_FRAMES = 100
ALONE = "as it is"  # the arm of --against without --vary
LONG_PART = 100  # frames that a marginal is taken over


@command
def main(argv: list[str]) -> int:
    parser = _parser()
    first = cli.workdir_of(parser, argv)
    devices.start()
    default = systems.load(first)[0].request
    if not isinstance(default, requests.Request):
        raise UserError(f"{first}: no run of the system diamond")
    args, request = cli.with_request(parser, argv, default, without=OWN)
    alone = args.against and not cli.given(argv, "--vary")
    chosen = arms.combinations(request, [] if alone else args.vary, OWN)
    every = {
        arms.title(fields) or ALONE: dataclasses.replace(request, **fields) for fields in chosen
    }
    for arm in every.values():
        requests.check(dataclasses.replace(arm, horizon=1, policy="recorded"), "", 1)
    if args.horizon < SHORTEST:
        raise UserError(f"--horizon {args.horizon}: at least {SHORTEST}, as a slope is fitted")
    if args.starts < FEWEST:
        raise UserError(f"--starts {args.starts}: at least {FEWEST}")
    if args.contexts < 3 or args.noises < 2:
        raise UserError("--contexts is at least 3 and --noises at least 2, as variances are taken")
    if args.long and args.long < LONG_PART:
        raise UserError(f"--long {args.long}: at least {LONG_PART}, or 0 for none")
    if not args.margin >= 0:
        raise UserError(f"--margin {args.margin}: a share, at least 0")
    sampling.check_seed(args.seed)
    out = files.place(args.out, drift_report.ENDINGS)
    runs = [open_run(Path(name), args) for name in args.workdir]
    parents = open_parents(runs, args) if args.against else None
    judge = open_judge(args.judge, runs[0], args)
    windows = open_windows(args.ref, runs[0], args.horizon, args.starts)
    result, arrays, films = study(runs, every, windows, judge, args, parents)
    drift_report.write(out, result, arrays, films)
    print(drift_report.table(result))
    print(f"{out}.json, {out}.png, {out}.gif, {out}.npz")
    return 0


def _parser() -> cli.Parser:
    parser = cli.Parser(
        prog="diffjax.studies.drift", description=__doc__.split(":")[0], add_help=False
    )
    add = parser.add_argument
    add("--workdir", nargs="+", default=["runs/diamond"], help="runs of one config, one a seed")
    add("--ref", default="", help="a folder of recorded episodes; empty: what the run has kept")
    add("--judge", default="", help="a run whose reward model sees; empty: the first; or pixels")
    add("--vary", nargs="+", default=["start=unit,sigma_max"], help="fields and their values")
    add("--against", nargs="+", default=[], help="runs, or one, as they are sampled: the first arm")
    add("--horizon", type=cli.positive, default=50, help="frames that are imagined")
    add("--starts", type=cli.positive, default=128, help="roll-outs, of each run")
    add("--contexts", type=cli.positive, default=32, help="starts of which one frame is sampled")
    add("--noises", type=cli.positive, default=16, help="how often, from other noise")
    add("--long", type=int, default=0, help="frames of long roll-outs, for marginals; 0: none")
    add("--margin", type=float, default=0.1, help="share of the first arm's error that may be lost")
    add("--seed", type=int, default=0, help="of all noise")
    add("--batch", type=cli.positive, default=32, help="roll-outs at a time")
    add("--ema", default="", help="which EMA; empty: the first; none: raw")
    add("--step", type=int, default=-1, help="the checkpoint of this step; -1: the newest")
    add("--out", default="drift", help="NAME.json, .png, .gif and .npz are written")
    return parser


# ---- what is opened ------------------------------------------------------------------------------


class Run(NamedTuple):
    """A run directory, opened.

    Attributes:
      parts: `Parts`. params: {network: its parameters}.
      assets: what it keeps. which: the weights, in words.
    """

    parts: diamond.Parts
    params: dict
    assets: dict
    which: str


def open_run(workdir: Path, args) -> Run:
    system, config = systems.load(workdir)
    if config.system == "apt":
        config = origins.config_of(system.assets)
    if config.system != "diamond":
        raise UserError(f"{workdir}: no run of the system diamond")
    mesh = meshes.make_mesh(meshes.LOCAL)
    params, which = sampling.load_params(system, workdir, mesh, ema=args.ema, step=args.step)
    return Run(diamond.parts_of(config, system.assets), params, system.assets, which)


def open_parents(runs: list[Run], args) -> tuple[Any, list[Run]]:
    """Returns (request, the runs of --against, as many as `runs`); a single one stands for all.

    Raises:
      UserError: another number of runs, or some that are sampled otherwise than the first.
    """
    newest = SimpleNamespace(ema="", step=-1)  # flags are of --workdir's runs
    first, *others = (systems.load(Path(name))[0].request for name in args.against)
    if any(request != first for request in others):
        raise UserError("--against: runs that are sampled differently")
    found = [open_run(Path(name), newest) for name in args.against]
    if len(found) not in (1, len(runs)):
        raise UserError(f"--against: {len(found)} runs, --workdir has {len(runs)}: as many, or one")
    return first, found if len(found) == len(runs) else found * len(runs)


def open_judge(name: str, first: Run, args) -> tuple[str, Any, Any]:
    """Returns (in words, the reward and end network or None, its parameters)."""
    run = open_run(Path(name), args) if name and name != "pixels" else first
    if (run.parts.frame, run.parts.actions) != (first.parts.frame, first.parts.actions):
        raise UserError(f"--judge {name}: a run of other frames or actions")
    if name == "pixels" or run.parts.reward_end is None:
        if name not in ("", "pixels"):
            raise UserError(f"--judge {name}: this run has no reward and end model")
        return "means of 8x8 squares", None, None
    words = f"reward and end model of {name or 'the first run'}"
    return words, run.parts.reward_end, run.params["rew_end_model"]


def open_windows(ref: str, run: Run, horizon: int, count: int) -> dict[str, np.ndarray]:
    """Returns {"obs": uint8 [S, n + T, H, W, C], "act": int32 [S, n + T]}, spread evenly over all
    there are, all real to the end."""
    parts, length = run.parts, run.parts.past + horizon
    if ref:
        folder = Folder(ref)
        if folder[0].obs.shape[1:] != parts.frame:
            raise UserError(f"--ref {ref}: frames of {list(folder[0].obs.shape[1:])}")
        if folder.actions > parts.actions:
            raise UserError(f"--ref {ref}: action {folder.actions - 1} is none of the run's")
        places = [(i, t) for i, n in enumerate(folder.lengths) for t in range(n - length + 1)]
        some = [places[i] for i in _spread(len(places), count)]
        cut = lambda name: np.stack([getattr(folder[i], name)[t : t + length] for i, t in some])
        found = {"obs": cut, "act": cut}
        found = {name: make(name) for name, make in found.items()} if some else {}
    else:
        kept = experience.recordings_of(run.assets, parts.frame, parts.past, parts.actions)
        whole = np.flatnonzero(kept["length"] >= length)
        whole = whole[_spread(len(whole), count)]
        found = {name: kept[name][whole, :length] for name in ("obs", "act")}
    if not found or len(found["obs"]) < FEWEST:
        raise UserError(
            f"--horizon {horizon}: fewer than {FEWEST} recorded roll-outs are so long; give "
            "--ref FOLDER of longer episodes"
        )
    return {"obs": found["obs"], "act": found["act"].astype(np.int32)}


def _spread(there: int, wanted: int) -> np.ndarray:
    return np.unique(np.linspace(0, there - 1, min(there, wanted)).astype(int)) if there else []


# ---- the study -----------------------------------------------------------------------------------

# Compiled once an arm, whatever the run: networks and samplers are static and compare as values.


@functools.partial(jax.jit, static_argnums=(0, 1))
def _forecast(denoiser, sampler, params, obs, act, keys):
    return forecast.forecast(denoiser, sampler, params, to_float(obs), act, keys)


@functools.partial(jax.jit, static_argnums=0)
def _see(net, params, frames, act):
    return drift_measures.see(net, params, frames, act)


_curves = jax.jit(drift_measures.curves)
_decide = jax.jit(drift_measures.decisions, static_argnums=(0, 1))
_lean = jax.jit(drift_measures.leanings, static_argnums=0)


class Rolled(NamedTuple):
    """What roll-outs of one arm of one run come to.

    Attributes:
      curves: `Curves` of NumPy arrays [S, T].
      features: [S, T, d]. reward: int [S, T]. frames: uint8 [few, T, H, W, C].
    """

    curves: Curves
    features: np.ndarray
    reward: np.ndarray
    frames: np.ndarray


def keys_of(seed: int, index: np.ndarray) -> jax.Array:
    base = jax.random.key(seed)
    return jax.vmap(lambda i: jax.random.fold_in(base, i))(jnp.asarray(index))


def rolled(run: Run, request, windows: dict, judge, args, project=None, bar=None) -> Rolled:
    """project: of features, as they come. Without a request the real frames go the same way."""
    past, count, parts = run.parts.past, len(windows["obs"]), []
    _, net, params = judge
    for begin in range(0, count, args.batch):
        index = np.minimum(np.arange(begin, begin + args.batch), count - 1)  # the last repeats
        obs, act = windows["obs"][index], windows["act"][index, :-1]
        real = to_float(jnp.asarray(obs))
        made = real[:, past:]
        if request is not None:
            denoiser, own = run.parts.for_sampling(run.params, request.quantise)
            how = denoiser, requests.sampler_of(request), own["denoiser"]
            made = _forecast(*how, obs[:, :past], act, keys_of(args.seed, index))
        seen = _see(net, params, jnp.concatenate([real[:, past - 1 : past], made], 1),
                    act[:, past - 1 :])  # fmt: skip
        features = np.asarray(seen.features)
        features = features if project is None else project(features)
        frames = round_level(made[:SHOWN]) if not begin else None
        kept = min(args.batch, count - begin)
        row = jax.device_get((_curves(made, real[:, past:]), seen.reward))
        parts.append(jax.tree.map(lambda a, n=kept: a[:n], (*row, features)))
        shown = jax.device_get(frames) if not begin else shown  # noqa: F821
        if bar is not None:
            bar.update(kept)
    found, reward, features = jax.tree.map(lambda *a: np.concatenate(a), *parts)
    return Rolled(found, features, reward, shown)


def one_frame(run: Run, request, windows: dict, args) -> dict[str, np.ndarray]:
    """{"frames": [contexts, noises, ...], "shares", "leanings": [steps, ...]}: see `decisions`."""
    past = run.parts.past
    obs = to_float(jnp.asarray(windows["obs"][: args.contexts, :past]))
    act = jnp.asarray(windows["act"][: args.contexts, :past])
    denoiser, own = run.parts.for_sampling(run.params, request.quantise)
    sampler, params = requests.sampler_of(request), own["denoiser"]
    keys = keys_of(args.seed, np.arange(args.noises))
    found = _decide(denoiser, sampler, params, obs, act, keys)
    lean = [
        _lean(denoiser, params, found.x[i, :, 0], obs, act, jnp.float32(level), keys_of(1, [i])[0])
        for i, level in enumerate(sampler.grid()[:2][: sampler.steps])
    ]
    made = {"frames": found.frames, "estimates": found.estimates[:2], "leanings": jnp.stack(lean)}
    return jax.device_get(made)


def long_marginals(run: Run, request, windows: dict, judge, real, project, args) -> dict:
    """{offset: the Frechet distance of the `LONG_PART` frames before it to all real ones}; the
    windows' actions, over and over."""
    past, count = run.parts.past, min(args.batch, len(windows["obs"]))
    act = windows["act"][:count]
    later = np.resize(np.arange(past, act.shape[1]), args.long)
    act = np.concatenate([act[:, :past], act[:, later]], 1)[:, :-1]
    denoiser, own = run.parts.for_sampling(run.params, request.quantise)
    how = denoiser, requests.sampler_of(request), own["denoiser"]
    made = _forecast(*how, windows["obs"][:count, :past], act, keys_of(args.seed, np.arange(count)))
    begin = to_float(jnp.asarray(windows["obs"][:count, past - 1 : past]))
    seen = _see(*judge[1:], jnp.concatenate([begin, made], 1), act[:, past - 1 :])
    found, real = project(np.asarray(seen.features)), real.reshape(1, -1, real.shape[-1])
    marks = {m for m in (LONG_PART, args.long // 2, args.long) if m >= LONG_PART}
    part = lambda m: found[:, m - LONG_PART : m].reshape(1, -1, found.shape[-1])
    distance = lambda a, b: drift_measures.frechet_curve(a.swapaxes(0, 1), b.swapaxes(0, 1))
    return {str(m): float(distance(part(m), real)[0]) for m in sorted(marks)}


def study(runs: list[Run], every: dict, windows: dict, judge, args, parents=None):
    """Returns (the result, ready for JSON; arrays; {row: clips} for a film).

    Args:
      runs: of one thing, one a training seed.
      every: {arm's name: its request}; the first is what the others are compared with.
      windows: of `open_windows`. judge: of `open_judge`.
      args: starts, contexts, noises, seed, batch, margin, long.
      parents: (request, as many runs), then the first arm, "against"; None: there are none.
    """
    parts = runs[0].parts
    taken = {name: (request, runs) for name, request in every.items()}
    if parents is not None:
        taken = {"against": parents, **taken}
    for run in (*runs[1:], *(parents[1] if parents else ())):
        if (run.parts.frame, run.parts.past, run.parts.actions) != (
            *(parts.frame, parts.past, parts.actions),
        ):
            raise UserError("--workdir: runs of other frames or actions")
    real = rolled(runs[0], None, windows, judge, args)
    project = drift_measures.principal(real.features.reshape(-1, real.features.shape[-1]))
    real = real._replace(features=project(real.features))
    measured, arrays = {}, {}
    shown = min(SHOWN, args.batch)
    films = {"real": windows["obs"][:shown, parts.past :][:, :SHOWN_FRAMES]}
    with tqdm(total=len(taken) * len(runs) * len(windows["obs"]), unit="roll-out") as bar:
        for name, (request, own) in taken.items():
            bar.set_description(name)
            found = [rolled(run, request, windows, judge, args, project, bar) for run in own]
            decided = [one_frame(run, request, windows, args) for run in own]
            measured[name] = {"rolled": found, "decided": decided}
            if args.long:
                more = [long_marginals(run, request, windows, judge, real.features, project, args)
                        for run in own]  # fmt: skip
                measured[name]["long"] = more
            films[name] = found[0].frames[:, :SHOWN_FRAMES]
            for field in Curves._fields:
                arrays[f"{name}/{field}"] = np.stack([getattr(r.curves, field) for r in found])
    words, *_ = judge
    about = {
        "workdirs": args.workdir, "weights": [run.which for run in runs], "judge": words,
        **({"against": args.against} if parents else {}),
        "ref": args.ref or "the run's own recordings", "starts": len(windows["obs"]),
        "horizon": windows["obs"].shape[1] - parts.past, "seed": args.seed,
        "contexts": min(args.contexts, len(windows["obs"])), "noises": args.noises,
    }  # fmt: skip
    return drift_report.compare(about, measured, real, args.margin), arrays, films


if __name__ == "__main__":
    sys.exit(main())
