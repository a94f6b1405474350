"""What a run can be told. The command line's options and the keys of its TOML files are the fields of `Settings`."""

from __future__ import annotations

import dataclasses
import json
import math
import re

from vaefast.training.recipes import RECIPES
from vaefast.training.trainer import AMP

OPTIMIZERS = ("adam", "adamw")
SCHEDULES = ("cosine", "linear", "constant")


class SettingsError(ValueError):
    """A setting outside its range, or one that this machine cannot honour."""


def _field(default, metavar: str | None, text: str):
    return dataclasses.field(default=default, metadata={"help": text, "metavar": metavar})


@dataclasses.dataclass(frozen=True, init=False)
class Settings:
    """What `vaefast train` can be told; the defaults are what it does when told nothing.

    Made with keywords: `Settings(latent=8)`. Options (of the data, the model, the objective) are text,
    "name=value name=value", each value a number, true, false or a list as in JSON, or else a word.

    Attributes:
        given: the names of those that were given, neither defaults nor a recipe's.

    Raises:
        SettingsError: for a number outside its range, or a name that does not exist. TypeError: for an unknown field.
    """

    output: str = _field(
        "runs/digits", "FOLDER", "where the results go; made if it is not there, replaced if it holds an earlier run"
    )
    recipe: str = _field("default", "NAME", f"settings to begin from: {', '.join(RECIPES)}")
    data: str = _field(
        "digits",
        "DATA",
        "digits, sprites, a folder of images or of idx files, an idx, .npy, .npz or .h5ad file, torchvision:NAME, "
        "hf:NAME",
    )
    data_options: str = _field("", "OPTIONS", 'such as "size=64 channels=3", as vaefast.data.load takes them')
    model: str = _field("dense", "NAME", "which architecture")
    model_options: str = _field("", "OPTIONS", 'such as "activation=gelu"')
    latent: int = _field(
        6, "N", "how many numbers describe an image; more give sharper copies, fewer give better inventions"
    )
    likelihood: str | None = _field(None, "NAME", "what the decoder's output says of the data; off: the model's own")
    prior: str | None = _field(None, "NAME", "the distribution of z; off: the model's own, a standard normal")
    sampler: str = _field(
        "prior", "NAME", "where images are drawn from: prior, the model's own, or what is fitted after training"
    )
    sampler_options: str = _field("", "OPTIONS", 'such as "components=20"')
    objective: str = _field("elbo", "NAME", "what is minimised")
    objective_options: str = _field("", "OPTIONS", 'such as "beta=4"')
    anneal: str = _field(
        "",
        "OPTIONS",
        'numbers of the objective that change: "beta=linear:5000" goes from 0 to 1 in 5,000 steps; '
        "linear, cosine or cyclical, then steps, start, end",
    )
    epochs: int = _field(100, "N", "how many times to go through the training images")
    batch_size: int = _field(64, "N", "images per training step; more are faster per image, fewer learn more per epoch")
    accumulate: int = _field(1, "N", "batches per training step, one after the other, where memory is short")
    optimizer: str = _field("adam", "NAME", " or ".join(OPTIMIZERS))
    lr: float = _field(1e-3, "RATE", "learning rate at the start")
    critic_lr: float | None = _field(None, "RATE", "that of the critic of an adversarial objective; off: the same")
    weight_decay: float = _field(0.0, "RATE", "how much of the weights is taken away, times the learning rate (adamw)")
    schedule: str = _field(
        "cosine", "NAME", f"how the learning rate falls to zero: {', '.join(SCHEDULES)} (not at all)"
    )
    warmup: int = _field(0, "N", "steps in which the learning rate rises from zero")
    ema: float | None = _field(None, "DECAY", "average the weights, such as 0.999; the average is evaluated and saved")
    clip: float | None = _field(None, "NORM", "shorten longer gradients to this norm")
    skip_above: float | None = _field(None, "NORM", "take no step where the gradient's norm is larger")
    early_stop: int | None = _field(
        None, "N", "end after so many epochs without a better held-out loss, with the best epoch's weights"
    )
    amp: str = _field("none", "TYPE", f"type of the arithmetic of layers: {', '.join(AMP)}")
    compile: bool = _field(False, None, "run the model through torch.compile")
    cuda_graph: bool = _field(False, None, "record the whole step as a CUDA graph")
    checkpoint_every: int = _field(
        0, "N", "steps between saves for --resume; 0: at the ends of epochs, at least ten seconds apart"
    )
    resume: bool = _field(False, None, "go on where the run in the output folder ended, with its settings")
    tensorboard: bool = _field(False, None, "write the curves for TensorBoard too")
    seed: int = _field(0, "N", "the same seed on the same machine gives the same weights")
    device: str = _field("auto", "NAME", "auto (a GPU if there is one), cpu, cuda, cuda:1, …")
    backend: str = _field("auto", "NAME", "whose kernels run: auto (the fastest here), cuda, triton, cpu or reference")
    threads: int = _field(1, "N", "CPU threads; a model this small gains nothing from more than one or two")

    def __init__(self, **given):
        names = [field.name for field in dataclasses.fields(self)]
        for name in given:
            if name not in names:
                raise TypeError(f"there is no setting {name!r}; there are {', '.join(names)}")
        recipe = given.get("recipe", "default")
        _one_of("recipe", recipe, RECIPES)
        for field in dataclasses.fields(self):
            value = given.get(field.name, RECIPES[recipe].get(field.name, field.default))
            object.__setattr__(self, field.name, value)
        object.__setattr__(self, "given", frozenset(given))
        self._check()

    def _check(self) -> None:
        ranges = {
            "epochs": (1, 10**6),
            "batch_size": (1, 10**6),
            "accumulate": (1, 10**6),
            "latent": (1, 10**5),
            "warmup": (0, 10**9),
            "early_stop": (1, 10**6),
            "checkpoint_every": (0, 10**9),
            "seed": (0, 2**63 - 1),
            "threads": (1, 1024),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise SettingsError(f"{name.replace('_', ' ')} must be from {low} to {high}, got {value}")
        for name in ("lr", "critic_lr", "clip", "skip_above"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise SettingsError(f"{name.replace('_', ' ')} must be a positive number, got {value}")
        if not 0 <= self.weight_decay < math.inf:
            raise SettingsError(f"weight decay must be a number from 0 up, got {self.weight_decay}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise SettingsError(f"ema must be above 0 and below 1, got {self.ema}")
        _one_of("amp", self.amp, AMP)
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        _one_of("schedule", self.schedule, SCHEDULES)
        for name in ("data_options", "model_options", "sampler_options", "objective_options", "anneal"):
            options(self, name)


def _one_of(name: str, value: object, names) -> None:
    if value not in names:
        raise SettingsError(f"{name} must be one of {', '.join(names)}, got {value!r}")


def options(settings: Settings, name: str) -> dict:
    """The setting `name`, text of options, as a dict.

    Raises:
        SettingsError: for text that is not "name=value name=value".
    """
    found, rest = {}, getattr(settings, name).strip()
    while rest:
        key, equals, value = rest.partition("=")
        if not equals or key.split() != [key]:
            part = (key or rest).split()[0]
            raise SettingsError(f'{name.replace("_", " ")} must be "name=value name=value", got {part!r}')
        found[key], rest = first_value(value)
    return found


def first_value(text: str) -> tuple[object, str]:
    """The value of JSON, or else the word, that `text` begins with; and what follows it."""
    word = re.match(r"\S*", text)[0]
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError:
        value, end = word, len(word)
    if text[end : end + 1].strip():
        value, end = word, len(word)
    return value, text[end:].strip()
