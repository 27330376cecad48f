"""The systems, each a thin room over the core: `make` is how a config becomes one."""

import dataclasses
import functools
import importlib
from pathlib import Path

from ml_collections import ConfigDict

from diffjax.errors import UserError, choose
from diffjax.run import cli
from diffjax.run.system import System, load_assets

SYSTEMS = {
    "apt": "diffjax.systems.apt",
    "autoencoder": "diffjax.systems.autoencoder",
    "diamond": "diffjax.systems.diamond",
    "edm": "diffjax.systems.edm",
    "mdm": "diffjax.systems.mdm",
    "relay": "diffjax.systems.relay",
}


def stages(config, workdir: Path) -> list[tuple[ConfigDict, Path]]:
    """Returns [(config, run directory), ...] that one command trains, one after the other.

    Most systems are one run. A system made in stages, each of which begins from the one before,
    says which; a stage's system can be made once those before it are trained.
    """
    stages = getattr(_module(config), "stages", None)
    return [(config, workdir)] if stages is None else stages(config, workdir)


def _module(config):
    if not isinstance(config.get("system"), str):
        raise UserError("config lacks the field 'system', a system's name")
    return importlib.import_module(choose(config.system, SYSTEMS, "config.system"))


def make(config, assets: dict | None = None) -> System:
    """Returns the system that `config.system` names.

    Args:
      config: an ml_collections.ConfigDict, see `configs/`.
      assets: what `load_assets` read of a run directory. With it the training data are not opened.

    Raises:
      UserError: for an unknown system or a config that it cannot take.
    """
    return _module(config).make(config, assets)


def load(workdir: str | Path):
    """Returns (system, config) of a run directory, without opening its training data.

    A system that starts from another run's samples is told where that run is: `config.parent`, as
    written or, for runs that were moved together, beside this one.
    """
    workdir = Path(workdir)
    config = cli.read_config(workdir)
    try:
        system = make(config, load_assets(workdir))
    except UserError as error:
        raise UserError(f"{workdir}: {error}") from error
    if system.start is not None:
        parent = functools.partial(_parent, config.parent, workdir)
        start = dataclasses.replace(system.start, parent=parent)
        system = dataclasses.replace(system, start=start)
    return system, config


def _parent(name: str, workdir: Path) -> tuple[System, Path]:
    if not name:
        raise UserError(f"{workdir}: its config names no parent: give --start FOLDER")
    place = Path(name)
    if not place.is_dir():
        place = workdir.resolve().parent / place.name
    if not place.is_dir():
        raise UserError(
            f"{workdir}: its parent {name} is not there: train it, or give --start FOLDER"
        )
    return load(place)[0], place
