"""The errors that a person can mend: one line each, exit status 2.

Every place that reads something a person wrote (a flag, a config, a file) raises `UserError` with
one line that says what is wrong, where, and what to do about it. `command` turns it into that line
on standard error and exit status 2; `--debug` on the command line shows the traceback instead.
"""

import difflib
import functools
import sys
from collections.abc import Callable, Iterable


class UserError(Exception):
    """A mistake in what a person gave us. The message is one line: what, where, what to do."""


def did_you_mean(word: object, known: Iterable[object]) -> str:
    """Returns " (did you mean 'x'?)", or " (known: ...)" where nothing is near, else "".

    Args:
      word: what was written.
      known: what could have been written.
    """
    names = [str(k) for k in known]
    near = difflib.get_close_matches(str(word), names, n=1, cutoff=0.6)
    if near:
        return f" (did you mean {near[0]!r}?)"
    more = ", ..." if len(names) > 12 else ""
    return f" (known: {', '.join(names[:12])}{more})" if names else ""


def choose(word: str, table: dict, what: str):
    """Returns `table[word]`; raises `UserError` naming `what` and the nearest name otherwise."""
    if word not in table:
        raise UserError(f"unknown {what} {word!r}{did_you_mean(word, table)}")
    return table[word]


def command(main: Callable[[list[str]], int | None]) -> Callable[..., int]:
    """Wraps a command's main(argv) so that a `UserError` is one line and exit status 2.

    The wrapped function takes argv without the program's name (default: sys.argv[1:]) and returns
    the exit status. `--debug` in argv lets every exception through; it is removed from argv.
    """

    @functools.wraps(main)
    def run(argv: list[str] | None = None) -> int:
        argv = list(sys.argv[1:] if argv is None else argv)
        debug = "--debug" in argv
        if debug:
            argv.remove("--debug")
        try:
            return main(argv) or 0
        except UserError as error:
            if debug:
                raise
            print("error: " + " ".join(str(error).split()), file=sys.stderr)
            return 2
        except OSError as error:  # a file that may not be read or written, a full disk
            if debug:
                raise
            where = f"{error.filename}: " if error.filename else ""
            print(f"error: {where}{error.strerror or error}", file=sys.stderr)
            return 2
        except RuntimeError as error:  # JAX's own error, known by its text: no JAX is imported here
            if debug or "RESOURCE_EXHAUSTED" not in str(error):
                raise
            print(
                "error: out of memory: lower --batch, or in training config.batch_size, or raise "
                "config.accumulate (docs/troubleshooting.md)",
                file=sys.stderr,
            )
            return 2
        except KeyboardInterrupt:
            if debug:
                raise
            print("interrupted", file=sys.stderr)
            return 130

    return run
