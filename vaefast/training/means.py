"""Means of the parts of a loss over an epoch."""

from __future__ import annotations

import torch

from vaefast.training import distributed

Parts = dict[str, float]


class Means:
    """Means over samples, summed in float64 on the device: reading a number at every step would wait for the GPU."""

    def __init__(self):
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, torch.Tensor | int] = {}

    def add(self, parts: dict[str, torch.Tensor], taken: torch.Tensor | bool = True) -> None:
        """Count each part's values [B], unless `taken`, a bool or 0-d, is False."""
        for name, values in parts.items():
            total = values.detach().sum(dtype=torch.float64)
            count = len(values)
            if taken is not True:  # a product would keep the NaN of a skipped step
                taken = torch.as_tensor(taken, device=total.device)
                total, count = total.where(taken, 0.0), taken * torch.full_like(total, count)
            self.sums[name] = self.sums.get(name, 0) + total
            self.counts[name] = self.counts.get(name, 0) + count

    def result(self) -> Parts:
        """{part: mean} over all ranks; NaN where nothing was counted."""
        sums, counts = ({name: t.clone() for name, t in d.items()} for d in (self.sums, self._counts()))
        distributed.sum_all([*sums.values(), *counts.values()])
        return {name: (total / counts[name]).item() for name, total in sums.items()}

    def local(self) -> Parts:
        """This rank's means alone: what a progress bar can read without the other ranks."""
        return {name: (total / self.counts[name]).item() for name, total in self.sums.items()}

    def state_dict(self) -> dict:
        return {"sums": self.sums, "counts": self._counts()}

    def _counts(self) -> dict[str, torch.Tensor]:
        return {name: torch.as_tensor(self.counts[name]).to(total) for name, total in self.sums.items()}

    def load_state_dict(self, state: dict, device: torch.device) -> None:
        self.sums = {name: tensor.to(device) for name, tensor in state["sums"].items()}
        self.counts = {name: tensor.to(device) for name, tensor in state["counts"].items()}
