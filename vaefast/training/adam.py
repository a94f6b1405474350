"""torch's fused Adam on a CPU, with less around its op: a small model's step looks for its state twice as long as it
computes."""

from __future__ import annotations

import torch
from torch.optim import optimizer as hooks


class Adam:
    """The step of an optimizer that is torch's own Adam or AdamW with fused=True: the same ops on the same state, which
    stays where it is.

    Where that is not all there is to it (the first step, hooks, amsgrad, parameters added later or of other types), it
    is the optimizer's own step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        self._optimizer = optimizer
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._count = len(parameters)
        alike = len({p.dtype for p in parameters}) == 1 and all(p.is_cpu and p.is_floating_point() for p in parameters)
        self._fits = alike and type(optimizer) in (torch.optim.Adam, torch.optim.AdamW)
        self._steps, self._views = torch.empty(0), []

    @torch.no_grad()
    def step(self) -> None:
        groups = self._groups() if self._fits else None
        if groups is None:
            self._optimizer.step()
            return
        self._advance([state for _, _, states in groups for state in states])
        for group, parameters, states in groups:
            beta1, beta2 = group["betas"]
            (torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_)(
                parameters,
                [p.grad for p in parameters],
                [s["exp_avg"] for s in states],
                [s["exp_avg_sq"] for s in states],
                [],
                [s["step"] for s in states],
                amsgrad=False,
                lr=group["lr"],
                beta1=beta1,
                beta2=beta2,
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=group["maximize"],
            )
        self._optimizer._opt_called = True  # what a schedule asks for

    def _groups(self) -> list[tuple[dict, list[torch.Tensor], list[dict]]] | None:
        """(group, its parameters with a gradient, their states) of each group; None where the op alone is not all."""
        optimizer = self._optimizer
        if (
            sum([len(group["params"]) for group in optimizer.param_groups]) != self._count
            or optimizer._optimizer_step_pre_hooks
            or optimizer._optimizer_step_post_hooks
            or hooks._global_optimizer_pre_hooks
            or hooks._global_optimizer_post_hooks
        ):
            return None
        found = []
        for group in optimizer.param_groups:
            plain = group["fused"] and not (group["amsgrad"] or group["capturable"] or group["differentiable"])
            parameters = [p for p in group["params"] if p.grad is not None]
            states = [optimizer.state.get(p) for p in parameters]
            if not plain or not all(states) or any([p.grad.is_sparse for p in parameters]):
                return None
            if not all([isinstance(n, float) for n in (group["lr"], *group["betas"])]):
                return None
            if parameters:
                found.append((group, parameters, states))
        return found

    def _advance(self, states: list[dict]) -> None:
        """Add 1 to every state's step; they are views of one tensor, so that it is one op."""
        steps = [state["step"] for state in states]
        if len(steps) != len(self._views) or not all([a is b for a, b in zip(steps, self._views, strict=True)]):
            self._steps = torch.stack(steps) if steps else torch.empty(0)
            self._views = [*self._steps.unbind()]
            for state, view in zip(states, self._views, strict=True):
                state["step"] = view
        self._steps += 1
