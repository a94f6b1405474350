"""When more epochs no longer help."""

from __future__ import annotations

import math

import torch


class EarlyStop:
    """Stop once the held-out loss has not reached a new minimum for `patience` epochs; keep that epoch's weights.

    Raises:
        ValueError: for a patience below 1.
    """

    def __init__(self, patience: int):
        if patience < 1:
            raise ValueError(f"early_stop must be at least 1 epoch, got {patience}")
        self.patience = patience
        self.best, self.since = math.inf, 0
        self.weights: dict[str, torch.Tensor] | None = None

    @property
    def reached(self) -> bool:
        return self.since >= self.patience

    def see(self, loss: float, model: torch.nn.Module) -> None:
        """Take note of an epoch's held-out loss, reached by the weights that `model` holds now."""
        if loss < self.best:
            self.best, self.since = loss, 0
            self.weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        else:
            self.since += 1

    def state_dict(self) -> dict:
        return {"best": self.best, "since": self.since, "weights": self.weights}

    def load_state_dict(self, state: dict) -> None:
        self.best, self.since, self.weights = state["best"], state["since"], state["weights"]
