"""Sampling in batches, over all devices, so that sample s depends on (seed, s) alone."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from diffjax.errors import UserError, choose
from diffjax.run import cli, devices, posthoc
from diffjax.run import mesh as meshes
from diffjax.run.checkpoints import Checkpoints
from diffjax.run.system import System
from diffjax.weights import trees

MAX_BATCH = 1 << 16
WEIGHTS = "weights.safetensors"  # a run's EMA weights alone, without checkpoints


def sampler(system: System, request, mesh: Mesh, draw: Callable | None = None) -> Callable:
    """Returns jitted (params, seed uint32, index int32 [B], condition) -> outputs [B, ...].

    The batch is cut over the mesh; params keep the shardings they come with. `draw` is the system's
    `sample` unless another of its functions is given.
    """
    draw = draw or system.sample

    def run(params, seed, index, condition):
        base = jax.random.key(seed)
        keys = jax.vmap(lambda i: jax.random.fold_in(base, i))(index)
        keys, condition = jax.lax.with_sharding_constraint((keys, condition), meshes.rows(mesh))
        return draw(params, keys, condition, request)

    options = devices.captured() if system.small_kernels else None
    return jax.jit(run, compiler_options=options)


def starts(system: System, request, mesh: Mesh) -> Callable | None:
    """Returns (seed, index, condition) -> the pictures [B, h, w, C] that these samples start from.

    seed and condition are as `sampler` takes them, index is int32 [B] on the host.

    They are those that the request brings, else samples of the parent under the same seed, number
    and condition, whose own start is found the same way: so a chain of runs is followed to its
    first. None where samples start from noise.

    Raises:
      UserError: no parent, or one that does not fit or has no weights.
    """
    if system.start is None:
        return None
    place = functools.partial(_global, sharding=meshes.rows(mesh))
    given = system.start.pictures(request)
    if given is not None:
        pick = lambda index: np.stack([given[i % len(given)] for i in index.tolist()])
        return lambda seed, index, condition: place(pick(index))
    if system.start.parent is None:
        raise UserError("this stage starts from pictures: give --start FOLDER")
    parent, workdir = system.start.parent()
    wanted = system.start.adopt(parent, request)
    params, _ = load_params(parent, workdir, mesh, request=wanted)
    before = starts(parent, wanted, mesh)
    run = sampler(parent, wanted, mesh, parent.pixels)

    def pictures(seed, index, condition):
        if before is not None:
            condition = condition, before(seed, index, condition)
        return run(params, seed, place(index), condition)

    return pictures


def own(system: System, request) -> int:
    """Returns how many samples the request asks for by itself: of the pictures that it brings to
    start from, or of what it is conditioned on; 0 where it does not say."""
    if system.count is not None:
        return system.count(request)
    given = system.start.pictures(request) if system.start else None
    return 0 if given is None else len(given)


def batches(
    system: System,
    params,
    request,
    *,
    num: int,
    seed: int,
    batch: int,
    mesh: Mesh,
    run: Callable | None = None,
    condition: Callable | None = None,
) -> Iterator[dict]:
    """Yields outputs of samples 0 .. num - 1 as NumPy trees, `batch` at a time, one compile.

    The last batch is filled up with samples that are made and thrown away. `run` is a `sampler`
    made before, to compile once for several calls; `condition` replaces the request's: index -> it.
    """
    condition = condition or functools.partial(system.condition, request)
    run = run or sampler(system, request, mesh)
    size = min(batch, num)
    size += -size % meshes.batch_shards(mesh)
    if size > MAX_BATCH:
        raise UserError(f"--batch {batch}: at most {MAX_BATCH} at a time")
    check_seed(seed)
    place = functools.partial(_global, sharding=meshes.rows(mesh))
    condition(np.arange(1))  # a request that cannot be met is refused before a parent is opened
    begin = starts(system, request, mesh)
    for first in range(0, num, size):
        index = np.arange(first, first + size)
        wanted = jax.tree.map(place, condition(index))
        number = _global(np.uint32(seed), meshes.replicated(mesh))
        index = index.astype(np.int32)
        if begin is not None:
            wanted = wanted, begin(number, index, wanted)
        outputs = run(params, number, place(index), wanted)
        keep = min(size, num - first)
        yield jax.tree.map(lambda a: a[:keep], fetch(outputs))  # noqa: B023


def check_seed(seed: int) -> None:
    """Raises `UserError` for a number that is no seed of samples."""
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed {seed}: must be from 0 to {2**32 - 1}")


def collect(system: System, params, request, *, progress: bool = False, **kwargs):
    """Returns all of `batches` as one NumPy tree [num, ...]; `progress` shows a bar."""
    parts, bar = [], tqdm(total=kwargs["num"], unit="sample", disable=None if progress else True)
    for part in batches(system, params, request, **kwargs):
        parts.append(part)
        bar.update(len(jax.tree.leaves(part)[0]))
    bar.close()
    return jax.tree.map(lambda *a: np.concatenate(a), *parts)


def fetch(tree):
    """Returns a tree of global arrays as NumPy, on every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def load_params(
    system: System, workdir: Path, mesh: Mesh, *, ema: str = "", step: int = -1, request=None
):
    """Returns (params, description) of a run directory, placed by the system's sharding rules.

    Args:
      request: what will be sampled; with it the params are what `system.sample` takes, with the
        weights of other runs that the request names. Without it they are the run's own alone.
      ema: which EMA; "" is the first by name (where a system has none, the raw parameters), "none"
        the raw parameters, "posthoc:STD" one of
        another width, made of the stored ones (`posthoc`).
      step: a checkpoint's step; -1 is the newest. A directory without checkpoints is read from
        its weights.safetensors, the EMA of its last step.

    Raises:
      UserError: where what is asked for is not there or cannot be read.
    """
    params, which = _own_params(system, workdir, mesh, ema, step)
    if request is None or system.equip is None:
        return params, which
    params, added = system.equip(params, request, mesh)
    return params, f"{which}, {added}" if added else which


def _own_params(system: System, workdir: Path, mesh: Mesh, ema: str, step: int):
    if step < -1:
        raise UserError(f"--step {step}: a checkpoint's step, or -1 for the newest")
    shapes = jax.eval_shape(system.init, jax.random.key(0))
    shardings = meshes.tree_shardings(shapes, system.sharding, mesh)
    structs = jax.tree.map(
        lambda s, h: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=h), shapes, shardings
    )
    if (workdir / "checkpoints").is_dir():
        checkpoints = Checkpoints(workdir, read_only=True)
        if checkpoints.newest() is not None:
            step = checkpoints.newest() if step < 0 else step
            names = {name: name for name in checkpoints.meta(step)["ema"]}
            raw = f"params/{system.training.sampled}" if system.training else "params"
            if not names and not ema:  # a system without averages
                return checkpoints.restore_part(raw, structs, step), f"step {step}"
            if ema.startswith(posthoc.PREFIX):
                return _posthoc(checkpoints, cli.read_config(workdir), structs, ema, step)
            if ema == "none":
                found = checkpoints.restore_part(raw, structs, step)
            else:
                ema = choose(ema, {**names, "none": ""}, "--ema") if ema else next(iter(names))
                found = checkpoints.restore_part(f"ema/{ema}", structs, step)
            return found, f"step {step}, {'raw weights' if ema == 'none' else 'EMA ' + ema}"
    file = workdir / WEIGHTS
    if not file.is_file():
        raise UserError(f"{workdir} holds no checkpoint and no {WEIGHTS} yet: train it first")
    if step >= 0 or ema:
        raise UserError(f"{workdir} holds only {WEIGHTS}: --step and --ema need its checkpoints")
    flat = trees.load(file)
    return jax.device_put(trees.fit(flat, shapes, str(file)), shardings), WEIGHTS


def _posthoc(checkpoints: Checkpoints, config, structs, ema: str, step: int):
    """The average that "posthoc:STD" names: a sum over checkpoints in float64, one at a time."""
    parts, error = posthoc.plan(checkpoints, config, ema, step)
    total = jax.tree.map(lambda s: np.zeros(s.shape), structs)
    for part in parts:
        stored = fetch(checkpoints.restore_part(f"ema/{part.name}", structs, part.step))
        total = jax.tree.map(lambda t, a, w=part.weight: t + w * np.float64(a), total, stored)
    params = jax.tree.map(lambda t, s: _global(t.astype(s.dtype), s.sharding), total, structs)
    about = f"{len(parts)} stored averages, profile off by {error:.2%}"
    return params, f"step {step}, EMA {ema} ({about})"


def check_out(system: System, path: Path, request=None) -> None:
    """Raises `UserError` where `save` could not write: asked before the sampling, not after.

    request: of the samples; None: they are there.
    """
    pictures = (system.suffix, *system.suffixes)
    if path.suffix not in (".npz", *pictures, ""):
        raise UserError(
            f"--out {path}: ends in {' or '.join(pictures)} for a picture, .npz for arrays, "
            "or nothing for a folder"
        )
    if path.exists() and path.is_dir() == bool(path.suffix):
        raise UserError(f"--out {path} is a {'folder' if path.is_dir() else 'file'} already")
    above = next(p for p in path.absolute().parents if p.exists())
    if not above.is_dir():
        raise UserError(f"--out {path}: {above} is a file")
    if request is not None and system.showable is not None and path.suffix != ".npz":
        system.showable(request)


def place_for(system: System, workdir: Path, seed: int) -> Path:
    """Returns where sample.py writes without --out: a picture, or a folder where single samples
    are files of another kind."""
    folder = workdir / "samples" / f"seed_{seed}"
    return folder if system.single else folder.with_suffix(system.suffix)


def save(system: System, outputs, path: Path) -> str:
    """Writes outputs as PATH says: .npz arrays, a picture, or (no ending) a folder of samples.

    Returns one line that says what was written.
    """
    check_out(system, path)
    count = len(jax.tree.leaves(outputs)[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("wb") as file:
            np.savez_compressed(file, **outputs)
        temporary.replace(path)
        return f"{count} samples in {path}"
    if path.suffix in (system.suffix, *system.suffixes):
        system.show(outputs, path)
        return f"{count} samples in {path}"
    path.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        one = jax.tree.map(lambda a: a[i], outputs)  # noqa: B023
        system.write(one, path / f"{i:06d}{system.single or system.suffix}")
    if not system.single:
        return f"{count} pictures in {path}/"
    system.show(outputs, path / f"samples{system.suffix}")
    return f"{count} samples in {path}/"


def _global(array, sharding):
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
