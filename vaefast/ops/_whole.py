"""A likelihood and the loss that is made of it as one Function: a step of autograd and a walk back less."""

from __future__ import annotations

import torch
from torch.compiler import is_dynamo_compiling

from vaefast.ops._define import TABLE, EagerFunction, Made, Op, constant, given_out, named, unobserved, writes_gradients
from vaefast.reference.gaussian import compute_dtype


class ExpectedLoss(float):
    """`expected_grad` of a likelihood whose values nll go into the loss scale * sum(nll + beta kl); the number is
    `scale`. A likelihood that can makes this loss too, and leaves it here."""

    def __new__(cls, scale: float, beta: float, kl: torch.Tensor):
        self = super().__new__(cls, scale)
        self.terms, self._left = (scale, beta, kl), None
        return self

    def __getnewargs__(self):
        return self.terms

    def fits(self, tensors: tuple[torch.Tensor, ...]) -> bool:
        """Whether a likelihood of these tensors has a use for it, and kl is a number per sample, of nll's type."""
        if is_dynamo_compiling():  # the likelihood alone
            return False
        first, kl = tensors[0], self.terms[-1]
        alike = kl.shape == first.shape[:1] and kl.dtype == compute_dtype(first.dtype) and kl.device == first.device
        return alike and kl.shape[0] > 0 and writes_gradients(tensors)

    def leave(self, loss: torch.Tensor, nll: torch.Tensor) -> None:
        self._left = loss, nll, nll._version

    def take(self, nll: torch.Tensor) -> torch.Tensor | None:
        """The loss, or None where there is none of this nll: the likelihood made none, or somebody changed nll on its
        way, or wants to see its gradient, which the loss's does not pass through."""
        left, self._left = self._left, None  # a likelihood may keep this object with its graph: it must not keep ours
        if left is None:
            return None
        loss, made, version = left
        untouched = nll is made and nll._version == version and not nll._backward_hooks and not nll.retains_grad
        return loss if untouched else None


def whole(name: str, backward: Op, with_gradient: Op, tensors: int) -> type[torch.autograd.Function]:
    """The Function of (values, scale, beta, kl, *tensors, weight, batch_ndim, *params) -> loss; it appends to the list
    `values` the likelihood's, which have no graph.

    Forward writes the gradients that a loss minimised as it is brings. Any other gradient has a pass of its own.

    Args:
        backward, with_gradient: the likelihood's ops.
        tensors: how many it has beside the weight.
    """
    first, past = 4, 4 + tensors

    class Whole(EagerFunction):
        @staticmethod
        def forward(ctx, values, scale, beta, kl, *args):
            ctx.scale, ctx.beta, ctx.constants = scale, beta, args[tensors + 1 :]
            *grads, nll = with_gradient.eager(
                constant(kl.shape, kl.dtype, scale), *args, list(ctx.needs_input_grad[first:past])
            )
            ctx.save_for_backward(*args[: tensors + 1], *grads)
            values.append(nll)
            return TABLE["elbo_forward"].eager(nll, kl, 0, beta, scale)

        @staticmethod
        def backward(ctx, grad):
            kept = ctx.saved_tensors
            inputs, written = kept[: tensors + 1], kept[tensors + 1 :]
            shape, run = inputs[0].shape[:1], backward.for_grads(grad)
            if run is backward.eager and unobserved(grad) and grad.item() == 1:
                grad_kl = grad.new_full(shape, ctx.scale * ctx.beta)
                grads = given_out(ctx, written)
            else:
                each = (grad * ctx.scale).expand(shape)
                grad_kl = each * ctx.beta
                grads = run(each, *inputs, *ctx.constants, list(ctx.needs_input_grad[first:past]))
            # what is not wanted, a tensor of no elements, goes nowhere
            return None, None, None, grad_kl, *grads, None, *[None] * len(ctx.constants)

    return named(f"{name}_loss", Whole)


def with_loss(function, loss_function, expected: ExpectedLoss, *arguments) -> torch.Tensor:
    """The likelihood's values by its own `function`; the loss, by its `loss_function`, is left in `expected`."""
    values: list[torch.Tensor] = []
    loss = loss_function.apply(values, *expected.terms, *arguments)
    nll = function.apply(Made(values[0]), *arguments)  # beside the loss in the graph, and without kl
    expected.leave(loss, nll)
    return nll
