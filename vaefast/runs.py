"""What `vaefast train` left in a folder, opened to be drawn from, measured and shown."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

import torch

from vaefast import checkpoint, sampling
from vaefast.data import Split, spread
from vaefast.training import Settings, SettingsError, build, load
from vaefast.training.job import CHECKPOINT
from vaefast.training.settings import options

EVALUATION = "evaluation.json"


class RunError(ValueError):
    """A folder that holds no run, or a damaged one."""


class Run:
    """A run's folder.

    Attributes:
        folder, name: where it lies, and what people call it.
        model: in `eval()` mode, on the CPU.
        settings: what `vaefast train` was told.
        versions: of the software and the machine that trained it.
        metrics: what metrics.json holds, {} where there is none.
        evaluation: what `vaefast evaluate` measured, {} before it did.
        model_name: as `models.create` calls it.
        data: the Split that it was trained on, loaded when first asked for.

    Raises:
        RunError: names the folder and what is wrong with it; for `data`, when it is asked for and not there.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.name = self.folder.name or self.folder.resolve().name
        if not self.folder.is_dir():
            raise RunError(f"there is no folder {folder}; `vaefast train --output {folder}` would make it")
        if not (self.folder / CHECKPOINT).exists():
            raise RunError(f"{folder} holds no run of `vaefast train`: it has no {CHECKPOINT}")
        config = self._json("config.json")
        self.settings: dict = config.get("settings", {})
        self.versions: dict = config.get("versions", {})
        self.metrics = self._json("metrics.json")
        self.evaluation = self._json(EVALUATION)
        try:
            self.model = load(folder)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise RunError(f"the run in {folder} cannot be loaded: {' '.join(str(error).split())}") from None

    def _json(self, name: str) -> dict:
        try:
            found = json.loads((self.folder / name).read_text())
            if not isinstance(found, dict):
                raise ValueError("it holds no names")
            return found
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise RunError(f"{self.folder / name} cannot be read: {error}") from None

    @functools.cached_property
    def data(self) -> Split:
        if not self.settings:
            raise RunError(f"what the run in {self.folder} was trained on is not known: it has no config.json")
        try:
            data = build.load_data(Settings(**self.settings))
        except (SettingsError, TypeError) as error:
            raise RunError(f"the data of the run in {self.folder} cannot be loaded: {error}") from None
        found, trained = tuple(data.train.shape[1:]), tuple((self.model.config or {}).get("data_shape", ()))
        if trained and found != trained:
            raise RunError(f"the data of the run in {self.folder} has the shape {found}, and its model takes {trained}")
        return data

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Of one sample."""
        config = self.model.config or {}
        return tuple(config["data_shape"] if "data_shape" in config else self.data.train.shape[1:])

    @property
    def pictorial(self) -> bool:
        """Whether the data is images that can be shown: [C, H, W], grey or colour."""
        return len(self.data_shape) == 3 and self.data_shape[0] in (1, 3)

    @property
    def model_name(self) -> str:
        return (self.model.config or {}).get("name", type(self.model).__name__)

    @property
    def sampler_name(self) -> str:
        """Where its samples come from, unless someone wants others."""
        return self.settings.get("sampler", sampling.PRIOR)

    def sampler(self, name: str, seed: int) -> sampling.Sampler | None:
        """As `sampling.fitted`, to what the run was trained on; its own has the options that it was given."""
        if name == sampling.PRIOR:
            return None
        told = options(Settings(**self.settings), "sampler_options") if name == self.sampler_name else {}
        return sampling.fitted(name, self.model, self.data.train, seed=seed, **told)

    @torch.no_grad()
    def samples(self, count: int) -> torch.Tensor:
        """E[x | z] for z of its own sampler; those of the run's seed."""
        seed = self.settings.get("seed", 0)
        return self.model.sample(count, seed=seed, sampler=self.sampler(self.sampler_name, seed))

    @property
    def history(self) -> list[dict]:
        return self.metrics.get("history", [])

    def held_out(self, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """At most `count` held-out samples spread over the whole set, and their labels [N] if there are any; of several
        labels a sample the first."""
        labels = self.data.test_labels
        if labels is not None:
            labels = spread(labels.flatten(1)[:, 0] if labels.ndim > 1 else labels, count)
        return spread(self.data.test, count), labels

    def store_evaluation(self, evaluation: dict) -> Path:
        """Write evaluation.json, and return where."""
        checkpoint.write_json(self.folder / EVALUATION, evaluation)
        self.evaluation = evaluation
        return self.folder / EVALUATION
