"""The systems, each a thin room over the core: `make` is how a config becomes one."""

import importlib
from pathlib import Path

from diffjax.errors import UserError, choose
from diffjax.run import cli
from diffjax.run.system import System, load_assets

SYSTEMS = {"edm": "diffjax.systems.edm"}


def make(config, assets: dict | None = None) -> System:
    """Returns the system that `config.system` names.

    Args:
      config: an ml_collections.ConfigDict, see `configs/`.
      assets: what `load_assets` read of a run directory. With it the training data are not opened.

    Raises:
      UserError: for an unknown system or a config that it cannot take.
    """
    if not isinstance(config.get("system"), str):
        raise UserError("config lacks the field 'system', a system's name")
    module = importlib.import_module(choose(config.system, SYSTEMS, "config.system"))
    return module.make(config, assets)


def load(workdir: str | Path):
    """Returns (system, config) of a run directory, without opening its training data."""
    config = cli.read_config(Path(workdir))
    try:
        return make(config, load_assets(Path(workdir))), config
    except UserError as error:
        raise UserError(f"{workdir}: {error}") from error
