"""`vaefast train`. Its options, and the keys of its TOML file, are the fields of `training.Settings`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import types
import typing
from pathlib import Path

from vaefast import models, objectives, sampling
from vaefast._options import nearest
from vaefast.commands.inputs import RUN_NEEDS, CommandError, need
from vaefast.models import parts, priors
from vaefast.training import NotFiniteError, Settings, run
from vaefast.training.settings import first_value

_DESCRIPTION = """\
Train a variational autoencoder. Without options: on 5,000 real handwritten digits
that come with the package. It leaves in a folder the weights, loss curves, images
that the model made up, and its numbers. Ctrl-C stops early and keeps the weights."""
_EPILOG = """\
An option that is given wins over the --config file, which wins over the recipe, which
wins over the defaults (in brackets).

examples:
  vaefast train
  vaefast train --recipe best
  vaefast train --data photos --data-options "size=64" --model conv --latent 64 --output runs/photos
  vaefast train --output runs/photos --resume
"""
_GROUPS = {
    "what to learn from, and where it goes": ("output", "recipe", "data", "data_options"),
    "the model and its loss": (
        *("model", "model_options", "latent", "likelihood", "prior"),
        *("sampler", "sampler_options"),
        *("objective", "objective_options", "anneal"),
    ),
    "the machine": ("seed", "device", "backend", "threads", "amp", "compile", "cuda_graph"),
}
# what the help of an option cannot know where Settings is written
_NAMES = {
    "model": models.NAMES,
    "objective": objectives.NAMES,
    "likelihood": parts.LIKELIHOODS,
    "prior": priors.NAMES,
    "sampler": sampling.CHOICES,
}
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def add(subparsers) -> None:
    parser = subparsers.add_parser(
        "train",
        help="train a model, by default on handwritten digits",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="read options from a TOML file, a line each, such as: batch_size = 128; or from an earlier run's "
        "config.json, which repeats it",
    )
    groups = {}
    for title, names in _GROUPS.items():
        groups |= dict.fromkeys(names, parser.add_argument_group(title))
    for field, kind in fields(Settings).items():
        _add_option(groups.get(field.name, parser), field, kind)
    parser.set_defaults(command=train)


def fields(settings: type) -> dict[dataclasses.Field, type]:
    """The fields of a dataclass of settings and the plain type of each (that of `int | None` is int)."""
    hints = typing.get_type_hints(settings)
    return {field: _plain(hints[field.name]) for field in dataclasses.fields(settings)}


def _plain(hint) -> type:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(kind for kind in typing.get_args(hint) if kind is not type(None))
    return hint


def _add_option(parser, field: dataclasses.Field, kind: type) -> None:
    option = f"--{field.name.replace('_', '-')}"
    named = {True: "yes", False: "no"} if kind is bool else {None: "off"}
    default = named.get(field.default, field.default)
    text = field.metadata["help"]
    if field.name in _NAMES:
        text += f"; one of {', '.join(_NAMES[field.name])}"
    if default != "":
        text += f" ({default})"
    common = {"dest": field.name, "default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
    if kind is bool:
        parser.add_argument(option, action=argparse.BooleanOptionalAction, **common)
    else:
        parser.add_argument(option, type=kind, metavar=field.metadata["metavar"], **common)


def train(config: str | None, **given) -> None:
    """Train with what was `given`, what the file `config` says of the rest, and the defaults of what is left."""
    need("training", RUN_NEEDS | {"matplotlib": "matplotlib", "tqdm": "tqdm"})
    settings = Settings(**({} if config is None else read(Path(config), Settings)) | given)
    try:
        run(settings)
    except NotFiniteError as error:
        raise CommandError(f"{error}. A smaller --lr may help.", 1) from None
    except OSError as error:
        raise CommandError(f"{error.strerror or error}: {error.filename or settings.output}", 1) from None


def read(path: Path, settings: type) -> dict:
    """The values of the fields of `settings` in a TOML file, or in the config.json of a run.

    Raises:
        CommandError: for a file that is not there or damaged, an unknown key (with the nearest name), a value of the
            wrong type.
    """
    try:
        content = path.read_text()
        values = json.loads(content)["settings"] if path.suffix == ".json" else _toml(content)
    except OSError as error:
        raise CommandError(f"cannot read --config {path}: {error.strerror}") from None
    except (KeyError, TypeError):
        raise CommandError(f"--config {path} is not the config.json of a run: it has no settings") from None
    except ValueError as error:
        raise CommandError(f"--config {path} is damaged: {error}") from None
    kinds = {field.name: kind for field, kind in fields(settings).items()}
    metavars = {field.name: field.metadata["metavar"] for field in fields(settings)}
    for name, value in values.items():
        if name not in kinds:
            raise CommandError(f"--config {path}: unknown option {name}{nearest(name, kinds)}")
        is_options = metavars[name] == "OPTIONS" and isinstance(value, dict)
        values[name] = _options(value) if is_options else _checked(path, name, value, kinds[name])
    return values


def _toml(content: str) -> dict:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib
    return tomllib.loads(content)


def _options(table: dict) -> str:
    """A TOML table as the text that the command line takes, "name=value name=value"."""
    return " ".join(f"{name}={_written(value)}" for name, value in table.items())


def _written(value: object) -> str:
    """As JSON; a string as a word, where that is read as the same."""
    is_word = isinstance(value, str) and first_value(value) == (value, "")
    return value if is_word else json.dumps(value, separators=(",", ":"))


def _checked(path: Path, name: str, value: object, kind: type):
    if kind is float and type(value) is int:
        return float(value)
    if value is None or kind not in _KINDS or type(value) is kind:
        return value
    raise CommandError(f"--config {path}: {name} must be {_KINDS[kind]}, got {value!r}")
