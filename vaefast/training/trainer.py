"""The training loop: any module, any objective, any iterable of batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch

Parts = dict[str, float]


class NotFiniteError(ArithmeticError):
    """The loss became infinite or NaN."""


class Trainer:
    """Minimises an objective, epoch by epoch.

    Args:
        model: any module; it is used where it lies, and batches are moved to the device of its first parameter.
        objective: (model, batch) -> {"loss": [B], ...}, parts per sample; the mean loss is minimised, the others are
            reported.
        optimizer: of the model's parameters.
        schedule: anything with `step()`, such as a torch learning-rate scheduler; called after every step.

    Attributes:
        history: one entry per finished epoch, {"train": {part: mean}, "held-out": {...} if there was such data}.

    What is random (order of batches, noise) follows `torch.manual_seed`.
    """

    def __init__(self, model: torch.nn.Module, objective: Callable, optimizer: torch.optim.Optimizer, schedule=None):
        self.model = model
        self.objective = objective
        self.optimizer = optimizer
        self.schedule = schedule
        self.history: list[dict[str, Parts]] = []

    def fit(
        self,
        train: Iterable[torch.Tensor],
        held_out: Iterable[torch.Tensor] | None = None,
        *,
        epochs: int,
        on_step: Callable[[], None] = lambda: None,
        on_epoch: Callable[[dict[str, Parts]], None] = lambda row: None,
    ) -> None:
        """Train for `epochs` more epochs. `on_step` and `on_epoch` (given the epoch's history entry) show progress.

        Raises:
            NotFiniteError: at the end of an epoch whose loss is not finite.
        """
        for _ in range(epochs):
            row = {"train": self._train(train, on_step)}
            if held_out is not None:
                row["held-out"] = self.evaluate(held_out)
            self.history.append(row)
            on_epoch(row)

    def _train(self, batches: Iterable[torch.Tensor], on_step: Callable[[], None]) -> Parts:
        self.model.train()
        means = _Means()
        for batch in batches:
            parts = self.objective(self.model, batch.to(self._device()))
            self.optimizer.zero_grad()
            parts["loss"].mean().backward()
            self.optimizer.step()
            if self.schedule is not None:
                self.schedule.step()
            means.add(parts)
            on_step()
        result = means.result()
        if not math.isfinite(result["loss"]):
            raise NotFiniteError(f"the loss became {result['loss']} in epoch {len(self.history) + 1}")
        return result

    @torch.no_grad()
    def evaluate(self, batches: Iterable[torch.Tensor]) -> Parts:
        """The mean of each part over all samples, in `eval()` mode, without gradients."""
        self.model.eval()
        means = _Means()
        for batch in batches:
            means.add(self.objective(self.model, batch.to(self._device())))
        return means.result()

    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


class _Means:
    """Means over samples, summed in float64 on the device: reading a number at every step would wait for the GPU."""

    def __init__(self):
        self.count = 0
        self.sums: dict[str, torch.Tensor] = {}

    def add(self, parts: dict[str, torch.Tensor]) -> None:
        self.count += len(parts["loss"])
        for name, values in parts.items():
            self.sums[name] = self.sums.get(name, 0) + values.detach().sum(dtype=torch.float64)

    def result(self) -> Parts:
        return {name: (total / self.count).item() for name, total in self.sums.items()}
