"""A running average of the weights."""

from __future__ import annotations

import contextlib

import torch


class EMA:
    """average <- d average + (1 - d) weights after every step, d = min(decay, (1 + t) / (10 + t)) at step t.

    The smaller d of the first steps forgets the random weights of the start. Buffers, such as BatchNorm's running
    statistics, are not averaged: the model's own are used.

    Args:
        model: its parameters of floating point are averaged, in their own type.
        decay: above 0, below 1.

    Attributes:
        average: the averaged tensors, in the order of the parameters.

    Raises:
        ValueError: for a decay out of its range.
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"ema must be above 0 and below 1, got {decay}")
        self.decay = decay
        self.count = 0
        named = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
        self._names, self._weights = list(named), [p.detach() for p in named.values()]
        self.average = [p.clone() for p in self._weights]

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        torch._foreach_lerp_(self.average, self._weights, 1 - decay)
        self.count += 1

    def restart(self) -> None:
        """The average becomes what the model holds."""
        torch._foreach_copy_(self.average, self._weights)

    @contextlib.contextmanager
    def applied(self):
        """The model holds the average within the block, and its own weights again, bit for bit, after it."""
        own = [p.clone() for p in self._weights]
        torch._foreach_copy_(self._weights, self.average)
        try:
            yield
        finally:
            torch._foreach_copy_(self._weights, own)

    def state_dict(self) -> dict:
        return {"count": self.count, "average": dict(zip(self._names, self.average, strict=True))}

    def load_state_dict(self, state: dict) -> None:
        self.count = state["count"]
        torch._foreach_copy_(
            self.average, [state["average"][name].to(a) for name, a in zip(self._names, self.average, strict=True)]
        )
