"""Which requests a study compares: every combination of the fields that vary."""

import dataclasses
import itertools

from diffjax.errors import UserError, choose
from diffjax.run import cli


def combinations(request, vary: list[str], without: tuple[str, ...] = ()) -> list[dict]:
    """Returns {field: value} of all combinations, the first of each choice first; [{}] of none.

    Args:
      request: a system's; its types are what values are read as.
      vary: words "FIELD=VALUE,VALUE".
      without: fields that the study's own flags set.

    Raises:
      UserError: an unknown field, one of `without`, or a value of another type.
    """
    known = {f.name: type(getattr(request, f.name)) for f in dataclasses.fields(request)}
    choices = []
    for word in vary:
        name, equals, text = word.partition("=")
        kind = choose(name, known, "field in --vary:")
        if not equals or name in without:
            raise UserError(
                f"--vary {word}: write FIELD=VALUE,VALUE"
                + (f"; {name} has a flag of its own" if name in without else "")
            )
        values = [cli.convert(f"--vary {name}", value, kind) for value in text.split(",")]
        choices.append([(name, value) for value in values])
    return [dict(some) for some in itertools.product(*choices)]


def title(fields: dict) -> str:
    """Returns a combination in words: "start=unit steps=3"."""
    return " ".join(f"{name}={value}" for name, value in fields.items())
