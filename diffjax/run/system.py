"""The only contract between a paper and the rest: what a system gives to training and sampling."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffjax.core.processes import Process
from diffjax.errors import UserError
from diffjax.weights import trees


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """Where samples begin that do not begin from noise: pictures of the stage before.

    Attributes:
      pictures: request -> what the request itself brings: a sequence of float32 [h, w, C], taken in
        turn, or None, and then they are the parent's samples.
      adopt: (System, request) -> what the parent is asked for. Raises `UserError` where that system
        cannot be the parent.
      parent: () -> (System, its run directory), another run, which may itself have a parent. None
        before `systems.load`, which knows where runs are.
    """

    pictures: Callable
    adopt: Callable
    parent: Callable | None = None


class Problem(NamedTuple):
    """What a request sets its sampler to.

    Attributes:
      denoise: (x, t) -> x0, with weights, condition and guidance in it; t a scalar.
      process: the core's.
      grid: [N + 1] NumPy float64, the times that the request asks for.
      x: [B, ...] at grid[0].
      noise: k -> the k-th draw, of x's shape.
      mask: what of x is the sample and not padding, broadcasting against x; None: all.
    """

    denoise: Callable
    process: Process
    grid: np.ndarray
    x: Any
    noise: Callable
    mask: Any = None

    @property
    def arguments(self) -> tuple:
        """What every sampler of the core takes: (denoise, process, grid, x, noise)."""
        return self[:5]


class Training(NamedTuple):
    """How a system trains whose networks have losses of their own, such as adversaries.

    Averages, the guard against what is not finite, checkpoints and logs are those of every run.

    Attributes:
      init: key -> {name: parameters of one network, ...}. Traceable.
      optimizer: those -> the optimisers' state.
      step: (params, opt_state, batch, key, rate) -> (params, opt_state, metrics): one step of all.
        batch and key are as `System.loss` takes them, rate is the schedule's. The metrics have
        "loss" and "grad_norm", not finite where anything is not.
      sampled: the network that is averaged and sampled: `System.init` is of it alone.
    """

    init: Callable
    optimizer: Callable
    step: Callable
    sampled: str


class Unrolled(NamedTuple):
    """What a `Backbone` adds whose System samples many x0 in a row, each from those before.

    Then an x0 is not what `System.condition` and `System.sample` are about, and `System.data` may
    not be where its examples are.

    Attributes:
      one: () -> a cond of one x0.
      source: a run directory of this system -> the source of `Backbone.examples`' batches. Raises
        `UserError` where there is none.
      request: a request -> the same, with one call of the network for each x0, as it is trained:
        from `start`. `System.sample` and `System.play` take it.
      sampled: (params, z [B, ...], cond) -> x0: the system's own few steps from z, standard normal.
        They are what is distilled.
    """

    one: Callable
    source: Callable
    request: Callable
    sampled: Callable


class Backbone(NamedTuple):
    """What post-training needs of a system beside `process` and `denoiser`.

    cond is what `denoiser` takes after x and t, a pytree of arrays [B, ...].

    Attributes:
      shape: cond -> the shape of one sample x0.
      mask: cond -> bool, broadcasting against x0: True is the sample, and not padding, which is 0
        in the data; or None, where all is.
      std: of the data.
      start: (t, scale): the noisiest time, on `process`, and the deviation that sampling starts
        with there. Where `System.start` is given x holds a picture there, beside the noise in the
        process' colour: A(t) x0 in training, and what `System.problem` says where it is sampled.
        t is then the noise level, and what is between is the process' own path.
      lowest: the least time that the network was trained at; below, it is told this.
      blocks: () -> how many blocks of the network can be looked behind.
      tapped: blocks, counted from 1 -> (features, select). features(params, x, told, cond) ->
        (tokens [[B, N_k, d_k], ...], masks of those that count, or None); select: the network's
        parameters -> those that features needs.
      feed: (x0, t [B] in [0, 1]) -> (x, told [B]): clean data in the scale in which the network is
        fed, and what it is told at that share of noise.
      examples: (batch, key) -> (x0 float32 [B, ...], cond): the data without augmentation or
        dropped conditions, arguments as `System.loss`.
      unconditional: cond -> the cond of nobody; None where the network knows none.
      finish: (x0, cond) -> outputs, as `System.sample`; None where `unrolled`.
      pixels: x0 -> the float32 pictures that it stands for, where x0 are latents; None: x0 itself.
      asks: the fields of the request that say what is made and not how.
      unrolled: an `Unrolled`, where a sample is many x0 in a row; None: it is one.
    """

    shape: Callable
    mask: Callable
    std: float
    start: tuple[float, float]
    lowest: float
    blocks: Callable
    tapped: Callable
    feed: Callable
    examples: Callable
    unconditional: Callable | None
    finish: Callable | None
    asks: tuple[str, ...]
    unrolled: Unrolled | None = None
    pixels: Callable | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class System:
    """A diffusion system as a record of pure functions. `run` knows this and nothing else.

    Shapes: B samples a batch. `keys` is a typed key array [B], one key a sample, so that sample i
    does not depend on what else is in its batch.

    Attributes:
      init: key -> params. Traceable; may be called eagerly.
      loss: (params, batch, key) -> (scalar float32, {name: scalar}). `batch` holds the source's
        fields with a leading B, and `row` int32 [B], the row's number in the global batch: draws
        made from fold_in(key, row) do not depend on sharding or gradient accumulation. None where
        there is a `training`.
      request: a frozen dataclass, the default request; its fields are sample.py's flags.
      condition: (request, index int [B]) -> a pytree of arrays [B, ...], on the host: what
        sample number `index` is conditioned on. Raises `UserError` for a condition it cannot meet.
      condition_like: (request, source, index) -> the same, but conditioned as the source's
        examples are, for scoring against them.
      sample: (params, keys, condition, request) -> outputs, a pytree of arrays [B, ...]. Pure in
        its arrays, `request` is static. Where `start` is given, `condition` here is the pair
        (condition, pictures [B, h, w, C] to start from).
      pixels: the same arguments -> float32 [B, H, W, C], the pictures before they are rounded to
        8 bits: for a system whose samples start from them. None: it is no stage of a chain.
      start: where samples start that do not start from noise, a `Start`, else None.
      data: split -> a source (see `diffjax.data.sources`).
      balanced: whether training draws classes evenly.
      show: (outputs, path) -> None: writes a picture for a person. Host side.
      write: (output, path) -> None: writes one sample as it is, for use elsewhere. Host side.
      showable: request -> None: raises `UserError` for samples that `show` and `write` could not
        make a file of, before they are made. None: there are no such requests.
      suffix: the file ending of `show`'s pictures.
      suffixes: other endings that `show` writes too, each a format of its own.
      single: the file ending of `write`'s files; "" for that of the pictures. Where it is another,
        a folder of single files has a picture of all beside them, and is what sample.py makes.
      count: request -> how many samples it asks for by itself, where `--num` does not say; None: no
        request does.
      open: (path, split) -> a source to score against; None: pictures, by `data.sources`.
      scores: (metrics, feature net) that evaluate takes where its flags do not say.
      evaluate: (source, metrics, net name, sharding=, cache=) -> score, with
        score(outputs, seed) -> a JSON-ready dict. The first call raises `UserError` for what cannot
        be scored. Host side; `sharding` is of a batch over devices, `cache` a folder for what is
        known of the source, both may be left out.
      sharding: ((regular expression over a parameter's path, PartitionSpec), ...), first match.
      assets: {name: array, {path: array} or JSON value}: what sampling needs beside weights; kept
        in `assets/`.
      optional: {"group.field": default} of the config's fields that may be absent: a run from
        before a field is the same run as one that gives its default.
      equip: (params, request, mesh) -> (params, what was added): what `sample` takes for params
        where the request names weights of other runs; "" and params as they are where it does not.
        None: no request does. Host side.
      process, denoiser: the core's process and (params, x, t, cond) -> x0, for studies.
      problem: `sample`'s arguments -> the `Problem` that it solves, for studies of samplers and
        grids. Pure in its arrays, as `sample`. None: its samples come about in another way.
      fit: for a system with an outer loop of its own: what train.py calls in place of `loop.train`,
        (workdir, init_from=, dry_run=) -> exit status.
      play: (params, request, seed) -> what `run.play.serve` takes: {"start", "step", "keys",
        "title", "fps"}. None: there is nothing to play.
      small_kernels: whether its sampling gains from `devices.captured`.
      judge: (source, metric, net name, sharding=) -> a `metrics.judging.Judge`: a score of any part
        of the samples, for intervals. Raises as `evaluate`. None: `evaluate` itself is asked for
        each part, which is slower.
      training: a `Training`, which is then asked in place of `loss`; None: one network, one loss.
      begin: mesh -> (the parameters that a new run starts from, placed and its own to change, what
        they are). None: those of `init`, or of train.py's --init_from.
      beside: mesh -> (weights of another run that training looks at and leaves as they are, what
        they are). `loss` then takes them as its fourth argument.
      target: the name of the state's average that `loss` takes as its last argument; "": none.
      compare: (mesh, num, seed) -> outputs, of the same conditions, that a run's samples are shown
        beside; None: of nothing.
      finish: the weights that a finished run is sampled with, a NumPy tree -> more assets, measured
        of them. None: there are none. Host side, on process 0.
      alarm: the records of metrics.jsonl -> None, or (the first step of what is wrong, a sentence
        on what it is and what to try), and the run ends.
      panels: ((title, names of metrics, a level to draw or None), ...), the panels of loss.png;
        (): the loss and the rate.
      backbone: a `Backbone`, for whoever trains the network further. None: it cannot be.
    """

    init: Callable
    loss: Callable
    request: Any
    condition: Callable
    condition_like: Callable
    sample: Callable
    data: Callable
    show: Callable
    write: Callable
    evaluate: Callable
    pixels: Callable | None = None
    start: Start | None = None
    balanced: bool = False
    showable: Callable | None = None
    suffix: str = ".png"
    suffixes: tuple[str, ...] = ()
    single: str = ""
    count: Callable | None = None
    open: Callable | None = None
    scores: tuple[str, str] = ("fd,kid,precision,recall", "emoji")
    sharding: tuple = ()
    assets: dict[str, Any] = dataclasses.field(default_factory=dict)
    optional: dict[str, Any] = dataclasses.field(default_factory=dict)
    equip: Callable | None = None
    process: Any = None
    denoiser: Callable | None = None
    problem: Callable | None = None
    judge: Callable | None = None
    fit: Callable | None = None
    play: Callable | None = None
    small_kernels: bool = False
    training: Training | None = None
    begin: Callable | None = None
    beside: Callable | None = None
    target: str = ""
    compare: Callable | None = None
    finish: Callable | None = None
    alarm: Callable | None = None
    panels: tuple = ()
    backbone: Backbone | None = None


def save_assets(assets: dict[str, Any], workdir: Path) -> None:
    """Writes each asset: an array as assets/NAME.npy, {path: array} as assets/NAME.safetensors,
    anything else as assets/NAME.json."""
    folder = workdir / "assets"
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in assets.items():
        temporary = folder / f"{name}.tmp"
        if isinstance(value, np.ndarray):
            with temporary.open("wb") as file:
                np.save(file, value, allow_pickle=False)
            temporary.replace(folder / f"{name}.npy")
        elif isinstance(value, dict) and any(isinstance(v, np.ndarray) for v in value.values()):
            trees.save(value, folder / f"{name}.safetensors")
        else:
            temporary.write_text(json.dumps(value, indent=1))
            temporary.replace(folder / f"{name}.json")


def load_assets(workdir: Path) -> dict[str, Any]:
    """Reads what `save_assets` wrote; `UserError` names a file that cannot be read."""
    assets = {}
    for file in sorted((workdir / "assets").glob("*")):
        try:
            if file.suffix == ".npy":
                with file.open("rb") as content:  # np.load would take an archive for an array
                    assets[file.stem] = np.lib.format.read_array(content, allow_pickle=False)
            elif file.suffix == ".json":
                assets[file.stem] = json.loads(file.read_text())
            elif file.suffix == ".safetensors":
                assets[file.stem] = trees.load(file)
        except UserError:
            raise  # it names the file
        except Exception as error:  # sizes that no memory has and nests too deep for JSON included
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"{file}: cannot be read ({reason})") from error
    return assets
