"""torch's fused Adam on a CPU, with less around its op: a small model's step looks for its state twice as long as it
computes."""

from __future__ import annotations

import torch
from torch.optim import optimizer as hooks


class Adam:
    """The step of an optimizer that is torch's own Adam or AdamW with fused=True: the same ops on the same state, whose
    tensors stay what they are.

    Where that is not all there is to it (the first step, hooks, a step of its own, a loss scale, amsgrad, the profiler,
    parameters added later or of other types), it is the optimizer's own step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        self._optimizer, self._kind = optimizer, type(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._count = len(parameters)
        alike = len({p.dtype for p in parameters}) == 1 and all(p.is_cpu and p.is_floating_point() for p in parameters)
        self._fits = alike and self._kind in (torch.optim.Adam, torch.optim.AdamW)
        self._steps, self._pointers = torch.empty(0), []

    @torch.no_grad()
    def step(self) -> None:
        groups = self._groups() if self._fits else None
        if groups is None or not self._advance([state["step"] for _, _, states in groups for state in states]):
            self._optimizer.step()
            return
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

    def _groups(self) -> list[tuple[dict, list[torch.Tensor], list[dict]]] | None:
        """(group, its parameters with a gradient, their states) of each group; None where the op alone is not all."""
        optimizer = self._optimizer
        if (
            sum([len(group["params"]) for group in optimizer.param_groups]) != self._count
            or type(optimizer) is not self._kind
            or not self._own_step()
            or optimizer._optimizer_step_pre_hooks
            or optimizer._optimizer_step_post_hooks
            or hooks._global_optimizer_pre_hooks
            or hooks._global_optimizer_post_hooks
            or getattr(optimizer, "grad_scale", None) is not None
            or getattr(optimizer, "found_inf", None) is not None
            or torch.autograd._profiler_enabled()
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

    def _own_step(self) -> bool:
        """Whether calling the optimizer's step is calling its class's; a schedule's wrapper only notes that it was."""
        step = vars(self._optimizer).get("step")
        if step is None:
            return True
        if not getattr(step, "_wrapped_by_lr_sched", False) or step.__wrapped__ is not self._kind.step:
            return False
        self._optimizer._opt_called = True
        return True

    def _advance(self, steps: list[torch.Tensor]) -> bool:
        """Add 1 to each; they are made to lie side by side, so that it is one op. False, and nothing done, for steps
        that must lie where they are."""
        if [step.data_ptr() for step in steps] != self._pointers:
            self._pointers = []
            alike = all([s.ndim == 0 and s.dtype is torch.float32 and not s.is_shared() for s in steps])
            if not alike or len({s.data_ptr() for s in steps}) < len(steps):
                return False
            self._steps = torch.stack(steps)
            for i, step in enumerate(steps):
                step.set_(self._steps.untyped_storage(), i, (), ())
            self._pointers = [step.data_ptr() for step in steps]
        self._steps += 1
        return True
