"""Weights in and out: `python -m diffjax.convert FILE --out runs/NAME` makes a run of a file.

FILE is an EDM network snapshot (.pkl), whose architecture is in it; a relay diffusion checkpoint
(.pt) with `--config configs/relay_*.py`, which has what the file does not say; or a state dict
(.pt, .pth, .safetensors) with `--config` for the architecture; or MDM's model000NNNNNN.pt with its
args.json beside it, and `--stats` for the statistics that are not in it; or a DIAMOND agent's
<Game>.pt with `--config configs/diamond.py --config.game=<Game>`. Nothing in it is executed.
The run directory that comes out is taken by sample.py and diffjax.evaluate.

`python -m diffjax.convert runs/NAME --out FILE.safetensors` is the way out: a run's weights as a
state dict, for other programs.
"""

import hashlib
import os
import shutil
import sys
from pathlib import Path

from diffjax.errors import UserError, choose, command
from diffjax.run import cli

SYSTEMS = ("edm", "relay")  # whose networks have EDM's names
FIRST = "map_layer0.weight"  # a name that every EDM network has, once


@command
def main(argv: list[str]) -> int:
    parser = cli.Parser(prog="diffjax.convert", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add(
        "file", metavar="FILE", help="an EDM .pkl, a state dict (.pt, .pth, .safetensors), or a run"
    )
    add("--out", required=True, help="the run directory to make, or of a run the .safetensors")
    add("--system", default="", help="whose weights they are; empty: the config's, or EDM's")
    add("--config", default="", help="a state dict's config file (an EDM .pkl needs none)")
    add("--prefix", default="", help="take the names that begin so, without it: state_dict.")
    add("--ema", default="", help="of a run: which EMA; empty: the first; none: raw; posthoc:STD")
    add(
        "--step", type=int, default=-1, help="of a run: the checkpoint of this step; -1: the newest"
    )
    add(
        "--stats", default="", help="of MDM: the folder of Mean.npy and Std.npy of its training set"
    )
    add("--text", default="", help="of MDM: the text encoder's folder, kept in the run's config")
    argv, overrides = cli.split_overrides(argv)
    args = parser.parse(argv)
    if args.system:
        choose(args.system, dict.fromkeys((*SYSTEMS, "mdm", "diamond")), "--system")
    file, out = Path(args.file), Path(args.out)
    if out.exists():
        raise UserError(f"{out} is there already: give --out another name, or delete it")

    if file.is_dir():
        if args.config or overrides or args.prefix:
            raise UserError(f"{file} is a run: --config and --prefix are of a file of weights")
        print(export(file, out, args.ema, args.step))
        return 0
    if args.ema or args.step != -1:
        raise UserError(f"{file} is no run directory: --ema and --step are of a run")

    from diffjax.systems.mdm import importing
    from diffjax.weights import reading

    if args.system == "mdm" or (not args.config and importing.is_published(file)):
        if args.config or overrides or args.prefix:
            raise UserError(f"{file}: its settings are in args.json; leave out --config, --prefix")
        config, assets, params = importing.run_of(file, args.stats, args.text)
    elif args.stats or args.text:
        raise UserError(f"{file}: --stats and --text are of MDM's models, with args.json beside it")
    elif reading.kind_of(file) == "pickle":
        if args.config or overrides or args.prefix:
            raise UserError(f"{file}: its architecture is in it; leave out --config and --prefix")
        if args.system == "relay":
            raise UserError(f"{file}: an EDM snapshot; leave out --system")
        config, assets, params = from_snapshot(file)
    else:
        if not args.config:
            raise UserError(f"{file} is no EDM snapshot: give its architecture by --config FILE")
        config = cli.apply_overrides(cli.load_config(args.config), overrides)
        if args.system not in ("", config.get("system")):
            raise UserError(f"--system {args.system}: {args.config} is of another system")
        if config.get("system") == "diamond":
            from diffjax.systems.diamond import importing as agents

            if args.prefix:
                raise UserError(f"{file}: --prefix is of EDM's and relay's state dicts")
            config, assets, params = agents.run_of(file, config)
        else:
            config, assets, params = from_weights(file, config, args.prefix)
    write(config, assets, params, out, str(file))
    count = sum(array.size for array in params.values())
    print(f"{out}: {told(config, assets, count)}. Sample it: python sample.py --workdir {out}")
    return 0


def told(config, assets: dict, count: int) -> str:
    """What a run of `count` parameters is, in a few words."""
    about, head = assets["data"], f"{count:,} parameters"
    size = "x".join(map(str, about.get("image_shape", ())))
    if config.system == "diamond":
        return f"{config.learn}, {head}, {size}, {about['actions']} actions of {about['name']}"
    size = size or f"up to {about['max_frames']} frames of {len(assets['mean'])} numbers"
    return f"{config.network.kind}, {head}, {size}, {len(about['class_names']) or 'no'} classes"


def from_snapshot(file: Path):
    """Returns (config, assets, {path: array}) of an EDM network snapshot.

    Raises:
      UserError: what `edm_pickles.read` and `published` refuse.
    """
    from diffjax.systems.edm import published
    from diffjax.weights import edm_pickles, reading

    architecture, state = edm_pickles.read(reading.mapped(file), str(file))
    config = published.config_of(architecture, str(file))
    config.name = file.stem
    params, u = published.to_params(state, published.taps_of(config.network), str(file))
    classes = published.num_classes(architecture, str(file))
    shape = published.image_shape(architecture, str(file))
    return config, _assets(file, config, shape, classes, u), params


def from_weights(file: Path, config, prefix: str):
    """`from_checkpoint` where the file holds whole networks, else `from_state_dict`."""
    from diffjax.weights import edm_pickles, reading

    if reading.kind_of(file) == "zip" and edm_pickles.holds_networks(file):
        return from_checkpoint(file, config, prefix.removesuffix(".") or "ema")
    return from_state_dict(file, config, prefix)


def from_checkpoint(file: Path, config, network: str):
    """Returns (config, assets, {path: array}) of one network of a relay diffusion checkpoint.

    The file says which labels the network knows and whether they were dropped in training; the
    config says the rest: blur and noise are in no file.

    Raises:
      UserError: what `edm_pickles.read_checkpoint` and `published` refuse.
    """
    from diffjax.systems.edm import published
    from diffjax.weights import edm_pickles

    cli.require(config, {"data.path": str, "network.kind": str, "diffusion.label_dropout": float})
    architecture, state = edm_pickles.read_checkpoint(file, network)
    theirs = published.config_of(architecture, str(file))
    if theirs.diffusion.precond != "edm":
        raise UserError(f"{file}: {architecture.wrapper} is not how relay diffusion's are wrapped")
    params, _ = published.to_params(state, published.taps_of(theirs.network), str(file))
    dropout = architecture.inner_attributes.get("label_dropout", 0)
    with config.unlocked():
        config.data.path = published.NO_DATA
        config.diffusion.sigma_data = theirs.diffusion.sigma_data
        if "precond" in config.diffusion:  # of a first stage, which is EDM's
            config.diffusion.precond = theirs.diffusion.precond
        if isinstance(dropout, int | float) and 0 <= dropout < 1:
            config.diffusion.label_dropout = float(dropout)
    _take_augment_dim(config, params)
    classes = published.num_classes(architecture, str(file))
    shape = published.image_shape(architecture, str(file))
    return config, _assets(file, config, shape, classes, None), params


def _take_augment_dim(config, params: dict) -> None:
    """Sets the size of the layer for augmentation labels, 0 where the file has none.

    Networks were published with and without it, and both are sampled alike.
    """
    layer = params.get("map_augment/kernel")
    if "augment_dim" in config.network:
        with config.unlocked():
            config.network.augment_dim = 0 if layer is None else int(layer.shape[0])
            if layer is None and "augment" in config:
                config.augment.probability = 0.0


def from_state_dict(file: Path, config, prefix: str):
    """Returns (config, assets, {path: array}) of a state dict and the config of its network.

    Names are the released ones, after a prefix ("state_dict.", "module.") that is found by itself
    where only one fits; or ours, of another run's weights.safetensors.

    Raises:
      UserError: what `reading.read_weights` refuses, or names of no EDM network.
    """
    from diffjax.systems.edm import published
    from diffjax.weights import reading

    cli.require(config, {"data.path": str, "network.kind": str})
    state, u = reading.read_weights(file), None
    if not any("/" in name for name in state):
        state = _without_prefix(state, prefix, file)
        state, u = published.to_params(state, published.taps_of(config.network), str(file))
    shape, classes = published.named_shape(state, str(file))
    with config.unlocked():
        config.data.path = published.NO_DATA
    _take_augment_dim(config, state)
    return config, _assets(file, config, shape, classes, u), state


def _without_prefix(state: dict, prefix: str, file: Path) -> dict:
    """The names after a prefix, all beginning with "model." as the released ones do."""
    found = [name.removesuffix(FIRST) for name in state if name.endswith(FIRST)]
    if not found:
        raise UserError(f"{file}: no name in it ends in {FIRST}, as one of every EDM network does")
    found = [name for name in found if name.startswith(prefix)]
    if len(found) != 1:
        some = ", ".join(repr(name) for name in found[:8]) or "none"
        raise UserError(f"{file}: which network? give --prefix (prefixes found: {some})")
    head = found[0]
    kept = {"model." + n.removeprefix(head): a for n, a in state.items() if n.startswith(head)}
    table = head.removesuffix("model.") + "u"  # iDDPM's, beside the network
    return kept | ({"u": state[table]} if table in state and head.endswith("model.") else {})


def _assets(file: Path, config, shape: tuple[int, int, int], classes: int, u) -> dict:
    """What the run keeps beside its weights; u is iDDPM's table of noise levels, or None."""
    from diffjax.systems.edm import preconditioning

    assets = {"data": _about(file, shape, classes)}
    if cli.flatten(config).get("diffusion.precond") == "iddpm":
        if u is None:
            raise UserError(f"{file}: lacks u, the table of noise levels of an iDDPM network")
        assets[preconditioning.LEVELS] = u
    return assets


def _about(file: Path, shape: tuple[int, int, int], classes: int) -> dict:
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return {
        "image_shape": list(shape),
        "class_names": [str(i) for i in range(classes)],
        "fingerprint": f"weights {digest[:16]}",
    }


def write(config, assets: dict, params: dict, out: Path, where: str) -> None:
    """Writes a run directory: under a temporary name, then renamed whole.

    Raises:
      UserError: weights that are not those of the config's network.
    """
    import jax

    from diffjax import systems
    from diffjax.run import sampling
    from diffjax.run.system import save_assets
    from diffjax.weights import trees

    system = systems.make(config, assets)
    shapes = jax.eval_shape(system.init, jax.random.key(0))
    tree = trees.fit(params, shapes, where)
    temporary = out.with_name(f"{out.name}.tmp{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        (temporary / "config.json").write_text(cli.config_json(config))
        save_assets(assets, temporary)
        trees.save(tree, temporary / sampling.WEIGHTS, {"source": Path(where).name})
        os.replace(temporary, out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def export(workdir: Path, out: Path, ema: str, step: int) -> str:
    """Writes a run's weights as a state dict in safetensors; returns one line that says what.

    EDM's networks, which relay's are too, and DIAMOND's get the released names and layouts,
    constants included, so that the released code loads them; others our names, with "." between
    the parts, and our layouts.

    Raises:
      UserError: another ending, no such run, or what `sampling.load_params` refuses.
    """
    if out.suffix != ".safetensors":
        raise UserError(f"--out {out}: a run's weights are written as .safetensors")

    from diffjax import systems
    from diffjax.run import mesh, sampling
    from diffjax.systems.edm import preconditioning, published
    from diffjax.weights import trees

    system, config = systems.load(workdir)
    params, which = sampling.load_params(
        system, workdir, mesh.make_mesh(mesh.LOCAL), ema=ema, step=step
    )
    if config.system == "diamond":
        from diffjax.systems.diamond import published as agents

        state, names = agents.state_dict(sampling.fetch(params)), "DIAMOND's names"
        return _write_state(state, names, out, workdir, which)
    params = trees.flatten(sampling.fetch(params))
    if config.system in SYSTEMS and config.network.kind in published.KINDS:
        taps = published.taps_of(config.network)
        state = published.from_params(params, taps, system.assets.get(preconditioning.LEVELS))
        names = "EDM's names"
    else:
        state, names = {path.replace("/", "."): a for path, a in params.items()}, "our names"
    return _write_state(state, names, out, workdir, which)


def _write_state(state: dict, names: str, out: Path, workdir: Path, which: str) -> str:
    from diffjax.weights import trees

    out.parent.mkdir(parents=True, exist_ok=True)
    trees.save(state, out, {"source": f"{workdir.name}, {which}"})
    return f"{out}: {len(state)} arrays under {names} ({workdir}, {which})"


if __name__ == "__main__":
    sys.exit(main())
