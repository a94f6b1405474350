"""A likelihood and the loss that is made of it as one Function: a walk less each way, and half of the calls."""

from __future__ import annotations

import torch

from vaefast import _extension
from vaefast.ops import _checks
from vaefast.ops._define import TABLE, EagerFunction, Op, constant, named, released
from vaefast.reference.gaussian import compute_dtype


class ExpectedLoss(float):
    """`expected_grad` of a likelihood whose values nll go into the loss scale * sum(nll + beta kl); the number is
    `scale`. A likelihood that can makes this loss too, and leaves it here.

    nll, loss: what it returned, and that loss; None where it made none.
    """

    nll = loss = None

    def __new__(cls, scale: float, beta: float, kl: torch.Tensor):
        self = super().__new__(cls, scale)
        self.terms = scale, beta, kl
        return self

    def fits(self, tensors: tuple[torch.Tensor, ...]) -> bool:
        """Whether a likelihood of these tensors has a use for it, and kl is a number per sample, of nll's type."""
        first, kl = tensors[0], self.terms[-1]
        if not _checks.usual(1, "f", kl) or kl.shape != first.shape[:1] or kl.dtype != compute_dtype(first.dtype):
            return False
        return _extension.writes_gradients(tensors)

    def take(self, loss: torch.Tensor, nll: torch.Tensor) -> torch.Tensor:
        self.loss, self.nll = loss, nll
        return nll


def whole(name: str, backward: Op, with_gradient: Op, tensors: int) -> type[torch.autograd.Function]:
    """The Function of (scale, beta, kl, *tensors, weight, batch_ndim, *params) -> (loss, nll).

    Forward writes the gradients that a loss minimised as it is brings. Any other gradient of it, or one of nll, has its
    own pass.

    Args:
        backward, with_gradient: the likelihood's ops.
        tensors: how many it has beside the weight.
    """
    first, past = 3, 3 + tensors

    class Whole(EagerFunction):
        @staticmethod
        def forward(ctx, scale, beta, kl, *args):
            ctx.set_materialize_grads(False)
            ctx.scale, ctx.beta, ctx.constants = scale, beta, args[tensors + 1 :]
            expected = constant(kl.shape, kl.dtype, scale)
            *grads, nll = with_gradient(expected, *args, list(ctx.needs_input_grad[first:past]))
            ctx.save_for_backward(*args[: tensors + 1], *grads)
            return TABLE["elbo_forward"](nll, kl, 0, beta, scale), nll

        @staticmethod
        def backward(ctx, grad_loss, grad_nll):
            kept = ctx.saved_tensors
            inputs, written = kept[: tensors + 1], kept[tensors + 1 :]
            shape, grad_kl, grads = inputs[0].shape[:1], None, [None] * tensors
            given = [g for g in (grad_loss, grad_nll) if g is not None]
            run = backward.for_grads(*given)
            if grad_nll is None and grad_loss is not None and run is backward.eager and grad_loss.item() == 1:
                grad_kl = grad_loss.new_full(shape, ctx.scale * ctx.beta)
                grads = written if released(ctx) else [g.clone() for g in written]
            elif given:
                each = 0 if grad_loss is None else (grad_loss * ctx.scale).expand(shape)
                grad_kl = None if grad_loss is None else each * ctx.beta
                each = each if grad_nll is None else each + grad_nll
                grads = run(each, *inputs, *ctx.constants, list(ctx.needs_input_grad[first:past]))
            # what is not wanted, a tensor of no elements, goes nowhere
            return None, None, grad_kl, *grads, None, *[None] * len(ctx.constants)

    return named(f"{name}_loss", Whole)
