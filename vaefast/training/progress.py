"""What is shown while training: a bar on the terminal, curves for TensorBoard."""

from __future__ import annotations

import sys
import time

from vaefast.training.settings import SettingsError
from vaefast.training.trainer import Trainer

_REFRESH = 1.0  # seconds between readings of the means, each of which waits for a GPU


class Bar:
    """Steps of all epochs; beside them the parts of the loss, active units, skipped steps and samples per second."""

    def __init__(self, trainer: Trainer, total: int, *, shown: bool = True):
        from tqdm import tqdm

        often = 0.1 if sys.stderr.isatty() else 5.0  # seconds: a log file wants no more than a line now and then
        self.trainer = trainer
        self.tail = ""
        self._read = self._began = time.perf_counter()
        self._samples = trainer.samples
        self._terminal = sys.stderr.isatty() and shown
        self._bar = tqdm(
            total=total, initial=trainer.steps, unit="step", dynamic_ncols=True, mininterval=often, disable=not shown
        )

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *exc_info) -> None:
        self._bar.close()

    @property
    def samples_per_second(self) -> float:
        return (self.trainer.samples - self._samples) / (time.perf_counter() - self._began)

    def step(self) -> None:
        if self._terminal and time.perf_counter() - self._read > _REFRESH:
            self._read = time.perf_counter()
            self._show(self.trainer.means.local())
        self._bar.update()

    def epoch(self, row: dict[str, dict[str, float]], active_units: int | None) -> None:
        self.tail = f", held-out {row['held-out']['loss']:.1f}"
        if active_units is not None:
            self.tail += f", {active_units} active"
        self._show(row["train"])

    def _show(self, parts: dict[str, float]) -> None:
        text = ", ".join(f"{name} {value:.1f}" for name, value in parts.items()) + self.tail
        if self.trainer.skipped:
            text += f", {self.trainer.skipped} skipped"
        self._bar.set_postfix_str(f"{text}, {self.samples_per_second:,.0f}/s", refresh=False)


class TensorBoard:
    """An epoch's means as scalars split/part, in a folder that `tensorboard --logdir` reads.

    Raises:
        SettingsError: where the package tensorboard is not installed.
    """

    def __init__(self, folder):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise SettingsError("tensorboard needs a package that is not here: pip install tensorboard") from None
        self._writer = SummaryWriter(str(folder))

    def epoch(self, trainer: Trainer, progress: dict) -> None:
        for split, parts in trainer.history[-1].items():
            for name, value in parts.items():
                self._writer.add_scalar(f"{split}/{name}", value, trainer.steps)
        for name, value in progress.items():
            if value is not None:
                self._writer.add_scalar(f"progress/{name}", value, trainer.steps)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
