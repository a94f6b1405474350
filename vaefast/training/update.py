"""One optimizer's step, and what is done to the gradient before it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from vaefast.training import distributed
from vaefast.training.adam import Adam

Flag = torch.Tensor | bool


class Update:
    """Backward passes, then a step that is skipped where it would do harm.

    Args:
        optimizer: any.
        name: for messages.
        scaled: multiply the loss so that float16 gradients do not underflow (torch's GradScaler).
        clip: shorten the gradient to this norm at most.
        skip_above: take no step where the norm is larger.
        captured: within a CUDA graph, where the host cannot decide; needs a fused optimizer.

    A step is also skipped where the loss or the gradient is not finite. With several ranks the gradient is summed over
    them before all of this, so that they decide alike.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        name: str,
        *,
        scaled: bool = False,
        clip: float | None = None,
        skip_above: float | None = None,
        captured: bool = False,
    ):
        for option, value in (("clip", clip), ("skip_above", skip_above)):
            if value is not None and not value > 0:
                raise ValueError(f"{option} must be above 0, got {value}")
        self.optimizer, self.clip, self.skip_above, self.captured = optimizer, clip, skip_above, captured
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.scaler = torch.amp.GradScaler(self._parameters[0].device.type) if scaled else None
        self._adam, self._one = Adam(optimizer), torch.ones(())
        self._plain = not scaled and clip is None and skip_above is None and not captured
        if captured:
            self._make_capturable(name)

    def _make_capturable(self, name: str) -> None:
        for group in self.optimizer.param_groups:
            if not group.get("fused") or "capturable" not in group:
                raise ValueError(f"cuda_graph needs {name} to have fused=True, such as torch.optim.Adam(…, fused=True)")
            group["capturable"] = True
            # a number would be frozen in the graph; schedules fill a tensor in place
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32).to(self._parameters[0].device)

    def zero_grad(self) -> None:
        for group in self.optimizer.param_groups:  # the optimizer's own method takes several times as long
            for parameter in group["params"]:
                parameter.grad = None

    def backward(self, loss: torch.Tensor) -> None:
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    @torch.no_grad()
    def step(self, losses: Sequence[torch.Tensor]) -> tuple[Flag, Flag, Flag]:
        """Step unless it is to be skipped. `losses`: this rank's, each a scalar.

        Returns:
            (taken, counted, sound), each a bool, or 0-d where only the device knows: whether the step was taken;
            whether its loss shall be part of a mean; whether loss and gradient were finite. A gradient that overflows
            under a loss scale is sound and counted: the step is not taken, and the scale falls.
        """
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if self._plain and distributed.world() == 1 and self._parameters[0].device.type == "cpu":
            return self._plain_step(losses, gradients)
        finite = torch.stack([loss.detach().isfinite() for loss in losses]).all()
        bad = (~finite).to(torch.float32)
        distributed.sum_all([*gradients, bad])
        finite = bad == 0
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm(gradients)
        taken = finite & norm.isfinite()
        counted = sound = taken if self.scaler is None else finite
        if self.skip_above is not None:
            below = ~(norm > self.skip_above) | norm.isinf()
            taken, counted = taken & below, counted & below
        if self.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self.clip, norm)
        if self.captured:  # fused optimizers leave weights and moments alone where found_inf is not 0
            self.optimizer.grad_scale, self.optimizer.found_inf = None, (~taken).to(torch.float32)
            self.optimizer.step()
        elif taken:  # waits for a GPU, once a step
            self.optimizer.step() if self.scaler is None else self.scaler.step(self.optimizer)
        if self.scaler is not None:
            self.scaler.update()
        return taken, counted, sound

    def _plain_step(self, losses: Sequence[torch.Tensor], gradients: list[torch.Tensor]) -> tuple[bool, bool, bool]:
        """`step` of the everyday case, decided in Python: on a CPU a number costs less than an op on it."""
        taken = all(math.isfinite(loss.item()) for loss in losses) and self._all_finite(gradients)
        if taken:
            self._adam.step()
        return taken, taken, taken

    def _all_finite(self, gradients: list[torch.Tensor]) -> bool:
        """In one op for all of them, GradScaler's own, which takes less time than a norm, and dense real tensors."""
        gradients = [g._values() if g.is_sparse else g for g in gradients]
        gradients = [torch.view_as_real(g) if g.is_complex() else g for g in gradients]
        found = torch.zeros(())
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, found, self._one)
        return found.item() == 0

    def state_dict(self) -> dict:
        scaler = None if self.scaler is None else self.scaler.state_dict()
        return {"optimizer": self.optimizer.state_dict(), "scaler": scaler}

    def load_state_dict(self, state: dict) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        if self.captured:
            self._make_capturable("optimizer")
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
