"""The `vaefast` command. What goes wrong ends it with one line: bad input with exit code 2, a failed run with 1."""

from __future__ import annotations

import argparse
import functools
import os
import re
import sys
from collections.abc import Sequence

from vaefast import __version__, _backends, _extension, commands
from vaefast._backends import BackendError
from vaefast._options import nearest
from vaefast.commands.inputs import CommandError
from vaefast.data import DataError
from vaefast.ops._checks import SupportError
from vaefast.runs import RunError
from vaefast.training import SettingsError

_EPILOG = """\
to begin with:
  vaefast train                        handwritten digits, no download; leaves the folder runs/digits
  vaefast report runs/digits           one page with all that the run left, to open in a browser
  vaefast sample runs/digits -n 64     more of them
  vaefast train --help                 what can be set

"vaefast COMMAND --help" says what a command takes.
"""


class _Parser(argparse.ArgumentParser):
    def __init__(self, *arguments, **options):
        kind = options.pop("formatter_class", argparse.HelpFormatter)
        super().__init__(*arguments, formatter_class=functools.partial(kind, max_help_position=28), **options)

    def error(self, message: str):
        wrong = re.search(r"invalid choice: '(.+?)' \(choose from (.+)\)", message)
        if wrong:
            names = re.findall(r"[\w-]+", wrong[2])
            message = f"unknown {wrong[1]!r}{nearest(wrong[1], names)}; there are {', '.join(names)}"
        self.exit(2, f"vaefast: error: {message} (see {self.prog} --help)\n")

    def parse_known_args(self, args=None, namespace=None):
        """argparse's, but an unknown option is refused here, by the command's own parser, with the nearest name."""
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].partition("=")[0]
            self.error(f"unknown argument {name}{nearest(name, self._option_string_actions)}")
        return namespace, unknown


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `arguments`, by default the shell's, and return the exit code."""
    options = vars(_parser().parse_args(arguments))
    try:
        _check_environment()
        code = options.pop("command")(**options) or 0
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130  # what a shell expects of a program that Ctrl-C ended
    except BrokenPipeError:  # `vaefast info | head`: nobody reads on, and Python would complain once more as it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (BackendError, CommandError, DataError, RunError, SettingsError, SupportError) as error:
        return _fail(getattr(error, "code", 2), error)
    except OSError as error:
        return _fail(1, ": ".join(str(part) for part in (error.strerror or error, error.filename) if part))


def _check_environment() -> None:
    """Refuse a VAEFAST_BACKEND or VAEFAST_ISA that holds a name that does not exist."""
    try:
        _backends.asked()
        _extension.module()
    except ValueError as error:
        raise CommandError(str(error)) from None


def _fail(code: int, message: object) -> int:
    print(f"vaefast: error: {message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "vaefast",
        description="Train variational autoencoders, draw from them, measure them and show what came of it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-V", "--version", action="version", version=f"vaefast {__version__}")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for module in commands.MODULES:
        module.add(subparsers)
    return parser
