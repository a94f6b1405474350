"""The `vaefast` command. What goes wrong ends it with one line: bad input with exit code 2, a failed run with 1."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import sys
from collections.abc import Sequence

from vaefast import __version__
from vaefast.info import info, text
from vaefast.training import NotFiniteError, Settings, SettingsError, run

# import name: package
_TRAIN_NEEDS = {
    "matplotlib": "matplotlib",
    "mlxtend": "mlxtend",
    "PIL": "pillow",
    "safetensors": "safetensors",
    "tqdm": "tqdm",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(2, f"vaefast: error: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `arguments`, by default the shell's, and return the exit code."""
    options = vars(_parser().parse_args(arguments))
    try:
        code = options.pop("command")(**options)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130  # what a shell expects of a program that Ctrl-C ended
    except BrokenPipeError:  # `vaefast info | head`: nobody reads on, and Python would complain once more as it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _fail(code: int, message: object) -> int:
    print(f"vaefast: error: {message}", file=sys.stderr)
    return code


def _train(**options) -> int:
    missing = [package for name, package in _TRAIN_NEEDS.items() if importlib.util.find_spec(name) is None]
    if missing:
        return _fail(2, f'training needs {", ".join(missing)}: pip install "vaefast[train]"')
    try:
        run(Settings(**options))
    except SettingsError as error:
        return _fail(2, error)
    except NotFiniteError as error:
        return _fail(1, f"{error}; nothing was saved. A smaller --lr may help.")
    except OSError as error:
        return _fail(1, f"{error.strerror}: {error.filename or options['output']}")
    return 0


def _info(as_json: bool) -> int:
    try:
        facts = info()
    except ValueError as error:  # VAEFAST_BACKEND or VAEFAST_ISA holds a name that does not exist
        return _fail(2, error)
    print(json.dumps(facts, indent=2) if as_json else text(facts))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("vaefast", description="Variational autoencoders with fused kernels.")
    parser.add_argument("--version", action="version", version=f"vaefast {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train a VAE on handwritten digits and draw new ones",
        description="Train a dense VAE on 5,000 real handwritten digits, in about half a minute, and leave in a "
        "folder its weights, loss curves, digits that it made up, and its numbers. Ctrl-C stops early and "
        "keeps the weights.",
    )
    for field in dataclasses.fields(Settings):
        option, off = f"--{field.name.replace('_', '-')}", "off" if field.default is None else field.default
        common = {"default": argparse.SUPPRESS, "help": f"{field.metadata['help']} ({off})".replace("%", "%%")}
        kind = field.type.removesuffix(" | None")
        if kind == "bool":
            train.add_argument(option, action="store_true", **common)
        else:
            kinds = {"int": int, "float": float, "str": str}
            train.add_argument(option, type=kinds[kind], metavar=field.metadata["metavar"], **common)
    train.set_defaults(command=_train)

    shows = commands.add_parser(
        "info",
        help="show which kernels run here, and why others do not",
        description="Show, for every operation, which backend runs it here, which others could, and why not the rest.",
    )
    shows.add_argument("--json", action="store_true", dest="as_json", help="the same as JSON")
    shows.set_defaults(command=_info)
    return parser
