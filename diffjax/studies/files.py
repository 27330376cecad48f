"""Where a study's findings go: NAME with several endings, looked at before anything is computed."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from diffjax.errors import UserError


def place(name: str, endings: Sequence[str]) -> Path:
    """Returns Path(name), beside which `write` can put these endings; a name may have one of them.

    Raises:
      UserError: no name, no such folder, one that cannot be written to, or a file that is there.
    """
    out = Path(name)
    out = out.with_suffix("") if out.suffix in endings else out
    if not out.name or not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: must be a name in a folder that is there")
    for ending in endings:
        path = _with(out, ending)
        if os.path.lexists(path):
            raise UserError(f"--out {out}: {path} exists; give another name")
        temporary = _with(path, ".tmp")
        try:
            temporary.open("ab").close()
            temporary.unlink()
        except OSError as error:
            raise UserError(f"--out {out}: {path} cannot be written: {error.strerror}") from error
    return out


def write(out: Path, puts: dict[str, Callable[[Path], None]]) -> None:
    """Writes {ending: path -> None, which writes it}, each under a temporary name first."""
    for ending, put in puts.items():
        path = _with(out, ending)
        temporary = _with(path, ".tmp")
        put(temporary)
        os.replace(temporary, path)


def write_json(value, path: Path) -> None:
    """Writes a value as JSON."""
    path.write_text(json.dumps(value, indent=1) + "\n")


def _with(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)
