"""How a likelihood is defined: an elementwise -log p with its gradients, summed over each sample on the `rows` walk."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable

import torch

from vaefast.ops import _checks
from vaefast.ops._body import Body, Output
from vaefast.ops._define import define, differentiable, distinct, hint, transformed
from vaefast.ops._whole import ExpectedLoss, whole, with_loss
from vaefast.reference.gaussian import compute_dtype


def unit_scale(x: object) -> float:
    """What data is multiplied by: bytes 0…255 stand for 0…1, any other type is taken as it is."""
    return 1.0 / 255.0 if isinstance(x, torch.Tensor) and x.dtype == torch.uint8 else 1.0


def parameter(value: object, like: object) -> object:
    """A parameter that may be a number or a 0-d tensor, as a tensor that broadcasts with `like`."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and isinstance(like, torch.Tensor):
        return like.new_full((1,), value, dtype=compute_dtype(like.dtype))
    return value.reshape(1) if isinstance(value, torch.Tensor) and value.ndim == 0 else value


def _sum(terms: torch.Tensor, weight: torch.Tensor | None, batch_ndim: int) -> torch.Tensor:
    if weight is not None:
        terms = torch.where(weight == 0, 0, terms * weight.to(terms.dtype))
    return terms.flatten(batch_ndim).sum(-1) if terms.ndim > batch_ndim else terms


class Likelihood:
    """The two ops, the autograd.Function and the checks of one likelihood.

    Args:
        name: of the public function; the ops and densities are <name>_forward and <name>_backward.
        tensors: elementwise arguments in the public order; the first is a parameter.
        terms: the reference: elementwise -log p of (*tensors, *params), in differentiable PyTorch. Its gradient by
            autograd is the reference of the backward op.
        support: what x must lie in, in words, and a predicate of the data that `validate=True` asserts.
        params: names of the floats that come last.
        data: which of the tensors are data, not parameters.
        data_gradient: the backward density writes gradients of the data too, after its other inputs' order. Without,
            they come from the reference.
        with_gradient: there is a third density, <name>_with_gradient, both in one pass (`expected_grad`).
        planes: which of the tensors hold several numbers for each element, in the first dimension after the batch:
            [*batch, planes, *event]. `terms` gets them with this dimension in front.
    """

    def __init__(
        self,
        name: str,
        tensors: str,
        *,
        terms: Callable,
        support: tuple[str, Callable],
        params: tuple[str, ...] = (),
        data: str = "x",
        data_gradient: bool = True,
        with_gradient: bool = False,
        planes: str = "",
    ):
        self.name, self.names, self.terms, self.support = name, tensors.split(), terms, support
        self.count, self.params = len(self.names), params
        self.is_data = [n in data.split() for n in self.names]
        self._several = self.is_data.count(False) > 1  # parameters, whose types may differ
        self.has_planes = [n in planes.split() for n in self.names]
        self.planes = any(self.has_planes)
        # of `_checks.usual`; with planes no shapes are alike
        self._roles = "" if self.planes else "".join(["d" if is_data else "f" for is_data in self.is_data])
        self.in_density = [data_gradient or not is_data for is_data in self.is_data]
        arguments = ", ".join(f"Tensor {n}" for n in self.names)
        constants = "".join(f", float {p}" for p in params)
        self.forward = define(
            f"{name}_forward({arguments}, Tensor? weight, int batch_ndim{constants}) -> Tensor",
            reference=self._reference_forward,
            fused=self._body("forward"),
        )
        self.backward = define(
            f"{name}_backward(Tensor grad_nll, {arguments}, Tensor? weight, int batch_ndim{constants}, bool[] wanted)"
            f" -> ({', '.join(['Tensor'] * self.count)})",  # where not wanted, a tensor of no elements
            reference=self._reference_backward,
            fused=self._body("backward"),
        )
        self.with_gradient = None
        if with_gradient:
            self.with_gradient = define(
                f"{name}_with_gradient(Tensor grad_nll, {arguments}, Tensor? weight, int batch_ndim{constants},"
                f" bool[] wanted) -> ({', '.join(['Tensor'] * (self.count + 1))})",
                reference=self._reference_with_gradient,
                fused=self._body("with_gradient"),
            )
        self.function = differentiable(
            name, self.forward, self.backward, self.count + 1, with_gradient=self.with_gradient
        )
        self.whole = whole(name, self.backward, self.with_gradient, self.count) if with_gradient else None

    def _reference_forward(self, *args):
        tensors, (weight, batch_ndim, *params) = args[: self.count], args[self.count :]
        if self.planes:
            tensors = [t.movedim(batch_ndim, 0) if has else t for t, has in zip(tensors, self.has_planes, strict=True)]
        if weight is not None:  # what counts nothing must not reach the gradient as 0 * inf or 0 * NaN; 1 is harmless
            tensors = [torch.where(weight == 0, 1, t) for t in tensors]
        dtype = compute_dtype(tensors[0].dtype)
        terms = self.terms(*[t.to(dtype) for t in tensors], *params)
        return _sum(terms, weight, batch_ndim)

    def _reference_backward(self, grad_nll, *args):
        *args, wanted = args
        twice = torch.is_grad_enabled()
        # below a dispatch mode autograd is switched off for what an op does inside; this op means to use it
        with (
            torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False),
            torch.enable_grad(),
        ):
            tensors = [
                t if twice and t.requires_grad else t.detach().requires_grad_() if want else t
                for t, want in zip(args, wanted, strict=False)
            ]
            nll = self._reference_forward(*tensors, *args[self.count :])
            inputs = [t for t, want in zip(tensors, wanted, strict=True) if want]
            how = {"create_graph": twice, "materialize_grads": True}
            grads = iter(torch.autograd.grad(nll, inputs, grad_nll, **how) if inputs else ())
            return tuple([next(grads) if want else t.new_empty(0) for t, want in zip(tensors, wanted, strict=True)])

    def _reference_with_gradient(self, grad_nll, *args):
        return *self._reference_backward(grad_nll, *args), self._reference_forward(*args[:-1])

    def _body(self, density: str) -> Body:
        """The fused body of "forward", or of those that are told the gradient per sample and which are wanted."""
        tensors = "".join(["p" if has else "e" for has in self.has_planes])
        name, constants = f"{self.name}_{density}", "mb" + "n" * len(self.params)
        if density == "forward":
            return Body(name, tensors + constants, (), 1)
        outputs = [Output(i + 1, i, *how) for i, how in enumerate(zip(tensors, self.in_density, strict=True))]
        return Body(name, f"r{tensors}{constants}w", tuple(outputs), density == "with_gradient", self._fill_rest)

    def _fill_rest(self, args, made) -> None:
        """The gradients that are wanted and that the density does not write, from the reference."""
        *args, wanted = args
        rest = [want and not written for want, written in zip(wanted, self.in_density, strict=True)]
        with torch.no_grad():
            exact = self._reference_backward(*args, rest)
        for i in itertools.compress(range(self.count), rest):
            made[i].copy_(exact[i])

    def __call__(
        self,
        *tensors,
        weight,
        batch_ndim: int,
        params: tuple[float, ...] = (),
        validate: bool = False,
        expected_grad: float | None = None,
    ):
        """Check the arguments and apply the Function: -log p per sample [*batch].

        expected_grad: what the gradient per sample will be in the backward pass. The forward pass then writes the
            gradients of the tensors, and the backward pass has nothing left to do. Where another gradient comes, the
            usual backward runs. On a GPU, where looking at it would wait for the device, and under compile it is not
            used.
        """
        usual = weight is None and _checks.usual(batch_ndim, self._roles, *tensors)
        if not usual:
            tensors, weight = self._checked(tensors, weight, batch_ndim)
        if validate:
            words, holds = self.support
            data = list(itertools.compress(tensors, self.is_data))
            held = holds(*data)
            if not bool((held if weight is None else held | (weight == 0)).all()):
                x = data[0]
                raise _checks.SupportError(
                    f"x must be {words}; at least one value of it is not (min {x.min()}, max {x.max()})"
                )
        if transformed():
            return self._reference_forward(*tensors, weight, batch_ndim, *params)
        if not usual:  # as nothing is where torch.compile traces
            tensors = distinct(*tensors)
        arguments = *tensors, weight, batch_ndim, *params
        if type(expected_grad) is ExpectedLoss and batch_ndim == 1 and expected_grad.fits(tensors):
            return with_loss(self.function, self.whole, expected_grad, *arguments)
        return self.function.apply(hint(expected_grad, tensors), *arguments)

    def _checked(self, tensors, weight, batch_ndim: int):
        """Check the arguments; return tensors and weight in one shape, the parameters in types computed in the same."""
        for name, tensor, is_data in zip(self.names, tensors, self.is_data, strict=True):
            (_checks.data if is_data else _checks.floating)(name, tensor)
        if weight is not None:
            _checks.data("weight", weight)
        named = [*zip(self.names, tensors, strict=True), *([] if weight is None else [("weight", weight)])]
        first = tensors[0]
        shape, device = first.shape, first.device
        for name, tensor in named:
            if tensor.device != device:
                raise ValueError(f"{name} must be on {self.names[0]}'s device {device}, got {tensor.device}")
        if self.planes:
            tensors, weight = self._broadcast_planes(named, weight, batch_ndim)
        elif any([tensor.shape != shape for _, tensor in named]):
            tensors, weight = self._broadcast(named, weight)
        if self._several:  # half types and float32 are read side by side
            parameters = itertools.compress(tensors, map(operator.not_, self.is_data))
            if len({compute_dtype(p.dtype) for p in parameters}) > 1:
                tensors = [t if data else t.double() for t, data in zip(tensors, self.is_data, strict=True)]
        _checks.batch_ndim(batch_ndim, tensors[0].ndim)
        return tensors, weight

    def _broadcast(self, named, weight):
        """x and the parameters to one shape, as views that the walk reads in place; x's shape is the result's."""
        try:
            tensors = torch.broadcast_tensors(*[t for _, t in named])
        except RuntimeError:
            shapes = ", ".join(f"{n} {tuple(t.shape)}" for n, t in named)
            raise ValueError(f"the arguments of {self.name} must broadcast to one shape, got {shapes}") from None
        return tensors[: self.count], None if weight is None else tensors[-1]

    def _broadcast_planes(self, named, weight, batch_ndim: int):
        """The same, each tensor with planes keeping its own number of them, in dimension `batch_ndim`."""
        named = [(name, t, has) for (name, t), has in zip(named, [*self.has_planes, False], strict=False)]
        for name, t, has in named:
            if has and t.ndim == 0:
                raise ValueError(f"{name} must have at least one dimension, got a 0-d tensor")
            if has:
                _checks.batch_ndim(batch_ndim, t.ndim - 1)
            if has and t.shape[batch_ndim] == 0:
                raise ValueError(f"{name} must not be empty in dimension {batch_ndim}, got {tuple(t.shape)}")
        split = [(t.shape[:batch_ndim], t.shape[batch_ndim + has :]) for _, t, has in named]
        try:
            shape = torch.broadcast_shapes(*[(*batch, *event) for batch, event in split])
            batch, event = shape[:batch_ndim], shape[batch_ndim:]
            if any(has and t.ndim != len(shape) + 1 for _, t, has in named):
                raise RuntimeError("planes would change their dimension")
            tensors = [t.expand(*batch, t.shape[batch_ndim], *event) if has else t.expand(shape) for _, t, has in named]
        except RuntimeError:
            shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t, _ in named)
            raise ValueError(
                f"the arguments of {self.name} must broadcast to one shape, apart from the planes in dimension "
                f"{batch_ndim}, got {shapes}"
            ) from None
        return tensors[: self.count], None if weight is None else tensors[-1]
