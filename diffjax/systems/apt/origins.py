"""The runs that a stage begins from, and what it keeps of them to be sampled without them."""

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from diffjax import systems
from diffjax.errors import UserError
from diffjax.run import cli, sampling
from diffjax.run.system import System, load_assets

BASE = "base"  # the asset: {"config": the diffusion model's}


def place(name: str, near: Path | None = None, field: str = "config.base") -> Path:
    """Returns where a run is: as written, else in or beside `near`, for runs moved together.

    Raises:
      UserError: it is nowhere.
    """
    if not name:
        raise UserError(f"{field} is empty: a run directory")
    tried = [Path(name)]
    if near is not None:
        tried += [near / Path(name).name, near.resolve().parent / Path(name).name]
    for path in tried:
        if (path / "config.json").is_file():
            return path
    cli.read_config(tried[0])  # says what is wrong
    raise UserError(f"{field} {name}: no run directory")


def read(config) -> dict:
    """Returns the assets of a new run: the base's, and its config.

    Raises:
      UserError: no such run, or data that the base's network was not made for.
    """
    where = place(config.base)
    theirs = cli.read_config(where)
    if theirs.get("system") == "apt":
        raise UserError(f"config.base {config.base}: a run of apt; name the diffusion model")
    assets = load_assets(where)
    if config.data.path:
        theirs.data.path = config.data.path
    system = systems.make(theirs, assets)
    if system.backbone is not None and system.backbone.unrolled is not None:
        # It looks at its frames itself; a run that goes on is to find the same ones.
        mark = {"fingerprint": system.backbone.unrolled.source(where).fingerprint}
        assets = {**assets, "data": {**assets["data"], **mark}}
    elif config.data.path:
        fresh = systems.make(theirs).assets
        about, ours = (dict(a.get("data", {}), fingerprint="") for a in (assets, fresh))
        differ = sorted(k for k in about | ours if about.get(k) != ours.get(k))
        if differ:
            raise UserError(
                f"config.data.path {config.data.path}: its {differ[0]} is another than that of "
                f"{config.base}"
            )
        assets = fresh
    return {**assets, BASE: {"config": theirs.to_dict()}}


def config_of(assets: dict) -> ConfigDict:
    """Returns the base's config; `UserError` where the assets do not tell."""
    about = assets.get(BASE)
    if not isinstance(about, dict) or not isinstance(about.get("config"), dict):
        raise UserError("the run directory lacks assets/base.json, its base's config")
    return ConfigDict(about["config"])


def opened(config, assets: dict, *, training: bool = False) -> System:
    """Returns the base's system, without opening its training data.

    Args:
      training: whether it is for training. A base whose samples start from pictures (`Start`) then
        takes training pictures made small, as while it was trained itself: its data are opened.

    Raises:
      UserError: assets that do not tell, or a system that cannot be trained further.
    """
    theirs = config_of(assets)
    own = {name: value for name, value in assets.items() if name != BASE}
    system = systems.make(theirs, own)
    if system.backbone is None or system.denoiser is None:
        raise UserError(
            f"config.base {config.base}: a run of {theirs.get('system')} cannot be post-trained "
            "(its System has no backbone)"
        )
    return systems.make(theirs) if training and system.start is not None else system


def samples_of(base: System, config, request) -> Callable:
    """`System.compare`: the base's own samples, of this request."""

    def compare(mesh, num: int, seed: int):
        params, _ = sampling.load_params(base, place(config.base), mesh)
        how = {"num": num, "seed": seed, "batch": num, "mesh": mesh}
        return sampling.collect(base, params, request, **how)

    return compare
