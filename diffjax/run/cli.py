"""What every command line does the same way: flags, config files, overrides. Imports no JAX."""

import argparse
import ast
import dataclasses
import difflib
import importlib.util
import json
import math
import re
from pathlib import Path

from ml_collections import ConfigDict

from diffjax.errors import UserError, did_you_mean


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are one line (`UserError`), with did-you-mean for flags."""

    def __init__(self, **kwargs):
        kwargs.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str):
        raise UserError(message)

    def parse(self, argv: list[str]) -> argparse.Namespace:
        """Like parse_args, but an unknown flag names its nearest neighbour."""
        # First, so that a misspelt required flag is said to be misspelt, not absent.
        flags = [word for word in argv if word.startswith("--")]
        known = {option for action in self._actions for option in action.option_strings}
        refuse_unknown([word for word in flags if word.split("=")[0] not in known], self)
        args, unknown = self.parse_known_args(argv)
        refuse_unknown(unknown, self)
        return args


def refuse_unknown(unknown: list[str], parser: argparse.ArgumentParser) -> None:
    """Raises `UserError` for the first of the words that `parser` did not take."""
    if not unknown:
        return
    known = [option for action in parser._actions for option in action.option_strings]
    word = unknown[0].split("=")[0]
    if word.startswith("-"):
        raise UserError(f"unknown flag {word}{did_you_mean(word, known)}")
    raise UserError(f"unexpected argument {word!r}: flags are written --name value")


def given(argv: list[str], flag: str) -> bool:
    """Whether a flag was written, as --flag VALUE or --flag=VALUE."""
    return any(word.split("=")[0] == flag for word in argv)


def add_request_flags(parser: argparse.ArgumentParser, request, without=()) -> None:
    """Adds one flag a field of a frozen dataclass: its value the default, its `help` the help.

    without: names of fields that get none.
    """
    for field in (f for f in dataclasses.fields(request) if f.name not in without):
        value = getattr(request, field.name)
        kind = type(value)
        parser.add_argument(
            f"--{field.name}",
            type=_boolean if kind is bool else kind,
            default=value,
            help=field.metadata.get("help", ""),
            metavar=kind.__name__.upper(),
        )


def sampling_parser(
    prog: str, description: str, *, num: int, batch: int, help_num: str = "how many samples"
) -> Parser:
    """Returns the flags of every command that samples a run; `with_request` adds the system's."""
    parser = Parser(prog=prog, description=description, add_help=False)
    add = parser.add_argument
    add("--workdir", default="runs/emoji", help="a run directory")
    add("--num", type=positive, default=num, help=help_num)
    add("--seed", type=int, default=0, help="sample s is made of (seed, s)")
    add("--batch", type=positive, default=batch, help="how many at a time, on all devices")
    add("--ema", default="", help="which EMA; empty: the first; none: raw; posthoc:STD")
    add("--step", type=int, default=-1, help="the checkpoint of this step; -1: the newest")
    return parser


def workdir_of(parser: Parser, argv: list[str]) -> Path:
    """Returns --workdir before the other flags are known: the run's system brings them.

    Where there is no run to bring more, --help shows the flags that every run has, and exits.
    """
    given = parser.parse_known_args(argv)[0].workdir
    workdir = Path(given if isinstance(given, str) else given[0])  # of several, the first
    if {"--help", "-h"} & set(argv) and not (workdir / "config.json").is_file():
        parser.epilog = "A run's system adds flags of its own: --workdir RUN --help lists them."
        parser.print_help()
        raise SystemExit(0)
    return workdir


def with_request(
    parser: Parser, argv: list[str], request, without=()
) -> tuple[argparse.Namespace, object]:
    """Returns all flags and the request, after adding one flag a field of it, and --help.

    without: names of fields that get no flag, as the command has one of that name itself.
    """
    add_request_flags(parser, request, without)
    parser.add_argument("--help", "-h", action="help", help="this list")
    args = parser.parse(argv)
    return args, read_request(args, request, without)


def read_request(args: argparse.Namespace, request, without=()):
    """Returns the request with the values that its flags were given."""
    names = {f.name for f in dataclasses.fields(request)} - set(without)
    values = {name: getattr(args, name) for name in names}
    return dataclasses.replace(request, **values)


def convert(what: str, text: str, kind: type):
    """Returns the text as a bool, int, float or str; `UserError` names `what` where it is none."""
    try:
        return _boolean(text) if kind is bool else kind(text)
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise UserError(f"{what}={text}: takes {kind.__name__}") from error


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def load_config(path: str) -> ConfigDict:
    """Runs a config file's get_config() and returns the ConfigDict, with `name` set from the file.

    Raises `UserError` where the file is missing, does not run, or has no get_config().
    """
    file = Path(path)
    if not file.is_file():
        siblings = [str(p) for p in file.parent.glob("*.py")] if file.parent.is_dir() else []
        raise UserError(f"no config file {path}{did_you_mean(path, siblings)}")
    spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's own file raises
        raise UserError(f"{path}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config() must return an ml_collections.ConfigDict")
    if "name" not in config:
        config.name = file.stem
    return config


def split_overrides(argv: list[str]) -> tuple[list[str], list[str]]:
    """Separates `--config.field=value` words (or `--config.field value`) from the other flags."""
    rest, overrides, words = [], [], list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--config."):
            rest.append(word)
        elif "=" in word:
            overrides.append(word.removeprefix("--config."))
        elif words:
            overrides.append(f"{word.removeprefix('--config.')}={words.pop(0)}")
        else:
            raise UserError(f"{word} needs a value: {word}=VALUE")
    return rest, overrides


def apply_overrides(config: ConfigDict, overrides: list[str]) -> ConfigDict:
    """Returns a copy of the config with `field.sub=value` words applied, types kept.

    Raises `UserError` for an unknown field (with the nearest one) or a value of another type.
    """
    config = config.copy_and_resolve_references()
    for word in overrides:
        field, _, text = word.partition("=")
        node, parts = config, field.split(".")
        for depth, part in enumerate(parts):
            if not isinstance(node, ConfigDict) or part not in node:
                # The nearest of all fields of the config, so that a field written without its
                # group ("path" for "data.path") is found too.
                known = _flat(config)
                near = [k for k in known if k.split(".")[-1] == parts[-1]]
                near += difflib.get_close_matches(field, known, n=1)
                hint = f" (did you mean {near[0]!r}?)" if near else did_you_mean(part, node)
                raise UserError(f"config has no field {field!r}{hint}")
            if depth < len(parts) - 1:
                node = node[part]
        old = node[parts[-1]]
        if isinstance(old, ConfigDict):
            inside = ", ".join(f"{field}.{k}" for k in old)
            raise UserError(f"config field {field!r} is a group: set one of {inside}")
        node[parts[-1]] = _value(field, text, old)
    config.lock()
    return config


def _value(field: str, text: str, old):
    """The override's text as a value of the old one's type."""
    if isinstance(old, str):
        return text
    try:
        new = ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(text, text))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        new = text
    if isinstance(old, float) and type(new) is int:
        new = float(new)
    if isinstance(old, tuple) and isinstance(new, list):
        new = tuple(new)
    if old is not None and type(new) is not type(old):
        raise UserError(f"config field {field!r} takes {type(old).__name__}, not {text!r}")
    return new


def _flat(config: ConfigDict, prefix: str = "") -> dict:
    flat = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, ConfigDict):
            flat.update(_flat(value, name + "."))
        else:
            flat[name] = value
    return flat


def require(config: ConfigDict, fields: dict[str, type], prefix: str = "config") -> None:
    """Raises `UserError` for the first of the fields that is absent or of another type.

    Args:
      fields: {"group.field": type}; `float` takes whole numbers too, `tuple` lists too.
    """
    flat = _flat(config)
    for name, kind in fields.items():
        if name not in flat:
            raise UserError(f"{prefix} lacks the field {name!r}{did_you_mean(name, flat)}")
        value = flat[name]
        good = {float: (int, float), tuple: (tuple, list)}.get(kind, kind)
        if not isinstance(value, good) or (isinstance(value, bool) and kind is not bool):
            raise UserError(f"{prefix}.{name} takes {kind.__name__}, not {value!r}")
        if kind is float and not math.isfinite(value):
            raise UserError(f"{prefix}.{name} {value}: must be finite")


def with_defaults(config: ConfigDict, optional: dict) -> ConfigDict:
    """Returns a copy in which the absent ones of {"group.field": default} have their defaults.

    Raises:
      UserError: where one that is there is not of its default's type.
    """
    config = config.copy_and_resolve_references()
    config.unlock()
    flat = _flat(config)
    require(config, {name: type(value) for name, value in optional.items() if name in flat})
    for name, value in optional.items():
        group, last = name.split(".")
        if not isinstance(config.get(group, ConfigDict()), ConfigDict):
            raise UserError(f"config.{group} takes a group of fields, not {config[group]!r}")
        if group not in config:
            config[group] = ConfigDict()
        if last not in config[group]:
            config[group][last] = value
    return config


def flatten(config: ConfigDict | dict) -> dict:
    """Returns {"group.field": value} with JSON's own types, for comparing and for printing."""
    return _flat(ConfigDict(json.loads(config_json(config))))


def config_json(config: ConfigDict | dict) -> str:
    """Returns the config as JSON text, keys sorted."""
    plain = config.to_dict() if isinstance(config, ConfigDict) else config
    return json.dumps(plain, indent=2, sort_keys=True)


def read_json(path: Path, what: str, limit: int = 16 << 20):
    """Reads a JSON file; `UserError` where missing, over `limit` bytes or not JSON."""
    if not path.is_file():
        raise UserError(f"{path}: no such file ({what})")
    if path.stat().st_size > limit:
        raise UserError(f"{path}: {path.stat().st_size} bytes is too large for {what}")
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a {what} ({error})") from error


def read_config(workdir: Path) -> ConfigDict:
    """Reads the config.json of a run directory."""
    if workdir.is_file():
        raise UserError(f"{workdir} is a file, not a run directory")
    if not workdir.is_dir():
        parent = workdir.parent
        siblings = [str(p) for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
        raise UserError(f"no run directory {workdir}{did_you_mean(workdir, siblings)}")
    if not (workdir / "config.json").is_file():
        raise UserError(f"{workdir} is no run directory: it holds no config.json")
    plain = read_json(workdir / "config.json", "run's config")
    if not isinstance(plain, dict):
        raise UserError(f"{workdir / 'config.json'}: not a run's config")
    return ConfigDict(plain)


def positive(text: str) -> int:
    """argparse type: an int of at least 1."""
    if not re.fullmatch(r"[0-9]{1,12}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def step_range(flag: str, text: str) -> tuple[int, int] | None:
    """Reads "FIRST:LAST" with FIRST < LAST; None where the text is empty."""
    if not text:
        return None
    match = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", text)
    if not match or int(match[1]) >= int(match[2]):
        raise UserError(f"{flag} {text}: write FIRST:LAST with FIRST below LAST")
    return int(match[1]), int(match[2])
