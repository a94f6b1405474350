"""Linear layers and their activations as one step of autograd, for models of many small ones."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.module import _has_any_global_hook

from vaefast import _extension
from vaefast.ops._define import EagerFunction, transformed, unobserved

aten = torch.ops.aten


class _Activation(NamedTuple):
    """forward(h, *constants) -> y; backward(gradient of y, kept, *constants) -> gradient of h, where kept is h, or y,
    which has overwritten it, in those that are `in_place`. constants: names of the module's attributes."""

    forward: Callable
    backward: Callable
    constants: tuple[str, ...] = ()
    in_place: bool = False

    def of(self, module: nn.Module) -> tuple[_Activation, tuple]:
        """This, and the module's constants as they are now."""
        return self, tuple([getattr(module, name) for name in self.constants])


_SELU = 1.6732632423543772, 1.0507009873554805  # alpha and scale (Klambauer et al. 2017)

_ACTIVATIONS = {
    nn.ReLU: _Activation(torch.relu_, lambda g, y: aten.threshold_backward(g, y, 0), in_place=True),
    nn.Tanh: _Activation(torch.tanh_, aten.tanh_backward, in_place=True),
    nn.Sigmoid: _Activation(torch.sigmoid_, aten.sigmoid_backward, in_place=True),
    nn.LeakyReLU: _Activation(
        functional.leaky_relu, lambda g, h, slope: aten.leaky_relu_backward(g, h, slope, False), ("negative_slope",)
    ),
    nn.SiLU: _Activation(functional.silu, aten.silu_backward),
    nn.GELU: _Activation(
        lambda h, how: functional.gelu(h, approximate=how),
        lambda g, h, how: aten.gelu_backward(g, h, approximate=how),
        ("approximate",),
    ),
    nn.ELU: _Activation(functional.elu, lambda g, h, alpha: aten.elu_backward(g, alpha, 1, 1, False, h), ("alpha",)),
    nn.SELU: _Activation(functional.selu, lambda g, h: aten.elu_backward(g, *_SELU, 1, False, h)),
    nn.Softplus: _Activation(functional.softplus, aten.softplus_backward, ("beta", "threshold")),
    nn.Mish: _Activation(functional.mish, aten.mish_backward),
}

_LARGE = 2**21  # multiplications from which a product is worth a call of oneDNN's, which takes some 15 microseconds


@functools.cache
def _onednn() -> Callable | None:
    """oneDNN's x w^T + bias, where it is faster than what PyTorch calls: MKL keeps to AVX2 on a processor that is not
    Intel's, which halves its speed on one with AVX-512."""
    module = _extension.module()
    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    if module is None or module.intel or "avx512" not in module.instruction_sets or not both:
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def _matrix(t: torch.Tensor) -> bool:
    """Whether it is of float32, and rows or columns are contiguous and lie apart, as BLAS has it."""
    if t.dtype is not torch.float32 or t.layout is not torch.strided:
        return False
    (rows, cols), (down, along) = t.shape, t.stride()
    return (along == 1 and down >= cols) or (down == 1 and along >= rows)


def _onednn_fits(x: torch.Tensor, w: torch.Tensor) -> bool:
    """Whether oneDNN shall compute the product of x and w, or of x and w^T."""
    if x.shape[0] * w.numel() < _LARGE or _onednn() is None or not torch.backends.mkldnn.enabled:
        return False
    return _matrix(x) and _matrix(w)


def _large_linear(x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x w^T + bias of x [B, in], w [out, in] and what broadcasts with [B, out]."""
    if not _onednn_fits(x, w) or x.shape[1] != w.shape[1]:
        return functional.linear(x, w, bias)
    # oneDNN reads a bias as if it lay as usual
    usual = bias is None or (bias.shape == w.shape[:1] and bias.is_contiguous() and bias.dtype is torch.float32)
    return _onednn()(x, w, bias, "none", [], "") if usual else functional.linear(x, w, bias)


def _large_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a b of two matrices."""
    return _onednn()(a, b.t(), None, "none", [], "") if _onednn_fits(a, b) else torch.mm(a, b)


def _applied(activations, x: torch.Tensor, parameters, linear: Callable = functional.linear) -> torch.Tensor:
    """The layers; of PyTorch's own products, which autograd differentiates, or of others."""
    for (kind, constants), weight, bias in zip(activations, parameters[::2], parameters[1::2], strict=True):
        x = linear(x, weight, bias)
        x = x if kind is None else kind.forward(x, *constants)
    return x


def _versions(tensors) -> list[int | None]:
    return [None if t is None or t.is_inference() else t._version for t in tensors]


def _unchanged(tensors, versions) -> None:
    if _versions(tensors) != versions:
        raise RuntimeError("a tensor needed for gradient computation has been modified by an inplace operation")


class _Layers(EagerFunction):
    """Linear layers, each with the activation that follows it: (its row of the table and its constants), or _NONE. No
    more is kept for backward than nn.Sequential keeps, but for the input of them all, which a gradient of a gradient
    begins with."""

    @staticmethod
    def forward(ctx, activations, large, x, *parameters):
        ctx.activations, ctx.large, ctx.tensors = activations, large, (x, *parameters)
        ctx.versions = _versions(ctx.tensors)
        needed = ctx.needs_input_grad[2:]
        so_far = [*itertools.accumulate(needed, operator.or_)]  # whether anything up to here needs a gradient
        inputs, before = [], []  # of each layer, and of its activation, where that does not do with its output
        output = False  # whether the activation before needs its output
        linear = _large_linear if large else functional.linear
        for i, (kind, constants) in enumerate(activations):
            inputs.append(x if output or needed[1 + 2 * i] else None)
            x = linear(x, parameters[2 * i], parameters[2 * i + 1])
            output = kind is not None and kind.in_place and so_far[2 + 2 * i]
            before.append(x if kind is not None and not kind.in_place and so_far[2 + 2 * i] else None)
            if kind is not None:
                x = kind.forward(x, *constants)
        ctx.save_for_backward(*inputs, x if output else None, *before)
        return x

    @staticmethod
    def backward(ctx, gradient):
        activations, tensors, needed = ctx.activations, ctx.tensors, ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():  # create_graph=True
            return None, None, *_differentiable_gradients(ctx, gradient, needed)
        saved, last = ctx.saved_tensors, len(activations) - 1
        grads = [None] * len(needed)
        product = _large_product if ctx.large else torch.mm
        for i in range(last, -1, -1):
            kind, constants = activations[i]
            weight, bias = 1 + 2 * i, 2 + 2 * i
            if kind is not None:
                gradient = kind.backward(gradient, saved[i + 1 if kind.in_place else i + last + 2], *constants)
            if needed[weight]:
                grads[weight] = product(gradient.t(), saved[i])
            if needed[bias]:  # of another shape than the usual one, autograd sums it up
                grads[bias] = gradient.sum(0) if tensors[bias].ndim == 1 else gradient
            if not any(needed[:weight]):
                break
            _unchanged(tensors[weight : weight + 1], ctx.versions[weight : weight + 1])
            gradient = product(gradient, tensors[weight])
        else:
            grads[0] = gradient
        return None, None, *grads


def _differentiable_gradients(ctx, gradient, needed) -> list[torch.Tensor | None]:
    _unchanged(ctx.tensors, ctx.versions)
    # at aliases, each with a gradient of its own, also of a weight that stands twice, and not of what came before
    tensors = [
        t if t is None else t.view_as(t) if t.requires_grad else t.detach().requires_grad_(need)
        for t, need in zip(ctx.tensors, needed, strict=True)
    ]
    y = _applied(ctx.activations, tensors[0], tensors[1:])
    wanted = [t for t, need in zip(tensors, needed, strict=True) if need]
    found = iter(torch.autograd.grad(y, wanted, gradient, create_graph=True))
    return [next(found) if need else None for need in needed]


class _Run:
    """Successive linear layers, each with its activation or None, applied to [B, in]."""

    def __init__(self):
        self.linears: list[nn.Linear] = []
        self.activations: list[nn.Module | None] = []
        self.most = 0  # numbers of the largest weight

    def add(self, linear: nn.Linear) -> None:
        self.linears.append(linear)
        self.activations.append(None)
        self.most = max(self.most, linear.in_features * linear.out_features)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        own = [m._parameters for m in self.linears]  # functional_call puts tensors there, too
        parameters = [p for of in own if "weight" in of and "bias" in of for p in (of["weight"], of["bias"])]
        plain = x.ndim == 2 and x.is_floating_point() and all([type(p) in _TENSORS for p in parameters])
        if not plain or len(parameters) < 2 * len(own):
            for linear, activation in zip(self.linears, self.activations, strict=True):
                x = linear(x)
                x = x if activation is None else activation(x)
            return x
        activations = [_NONE if a is None else _ACTIVATIONS[type(a)].of(a) for a in self.activations]
        large = x.shape[0] * self.most >= _LARGE
        if torch.is_grad_enabled():
            return _Layers.apply(activations, large, x, *parameters)
        return _applied(activations, x, parameters, _large_linear if large else functional.linear)


_NONE = (None, ())
_TENSORS = (nn.Parameter, torch.Tensor, type(None))
_LINEAR_FORWARD = nn.Linear.forward  # which others may replace


class _Plan:
    """How a container's modules are run: its linear layers and activations in runs, all others as they are."""

    def __init__(self, container: nn.Sequential):
        self.modules = (*container._modules.values(),)
        self.inner: list[tuple[nn.Sequential, tuple[nn.Module, ...]]] = []  # containers within, and their modules
        self.steps: list[Callable] = []
        watched = []
        for module in self._flat(self.modules):
            run = self.steps[-1] if self.steps and type(self.steps[-1]) is _Run else None
            if type(module) is nn.Linear and _bare(vars(module)):
                if run is None:
                    self.steps.append(run := _Run())
                run.add(module)
            elif type(module) in _ACTIVATIONS and _bare(vars(module)) and run and run.activations[-1] is None:
                run.activations[-1] = module
            else:
                self.steps.append(module)
                continue
            watched.append(module)
        watched += [container for container, _ in self.inner]
        self.watched = [(m, type(m), vars(m)) for m in watched]

    def _flat(self, modules):
        for module in modules:
            if type(module) in (nn.Sequential, FusedSequential) and _bare(vars(module)):
                self.inner.append((module, (*module._modules.values(),)))
                yield from self._flat(self.inner[-1][1])
            else:
                yield module

    def holds(self, container: nn.Sequential) -> bool:
        """Whether the modules are those of before, and nobody has come to listen at one that is part of a run."""
        return (
            (*container._modules.values(),) == self.modules
            and all([(*c._modules.values(),) == modules for c, modules in self.inner])
            and all([type(m) is kind and _bare(own) for m, kind, own in self.watched])
        )


def _bare(own: dict[str, object]) -> bool:
    """Whether calling the module that has these attributes is calling its class's forward."""
    return not (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
        or own.get("_compiled_call_impl")
    )


class FusedSequential(nn.Sequential):
    """nn.Sequential, with the same arguments, parameters, names and results, in less time on a CPU.

    Successive nn.Linear, each with the activation after it (ReLU, LeakyReLU, SiLU, GELU, ELU, SELU, Tanh, Sigmoid,
    Softplus or Mish), also of nested containers, are one step of autograd where x is [B, in]; and large float32
    products are oneDNN's where it is the faster one (on a processor that is not Intel's and has AVX-512; unless
    `torch.backends.mkldnn.flags(enabled=False)`). All other modules run as they are, and so do these where anything
    listens to or changes them (hooks, parametrisations, a forward of their own), in torch.compile, under autocast, in
    torch.func's transforms and on other devices.

    A step's gradients are made together: one of x alone costs those of the weights too. TorchScript cannot read it.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not (
            unobserved(x)
            and x.is_cpu
            and x.layout is torch.strided
            and not torch.is_autocast_enabled("cpu")
            and not transformed()
            and not _has_any_global_hook()
            and not torch._C._len_torch_function_stack()
            and torch._C._get_tracing_state() is None
            and nn.Linear.forward is _LINEAR_FORWARD
        ):
            return super().forward(x)
        plan = vars(self).get("_plan")
        if plan is None or not plan.holds(self):
            plan = self._plan = _Plan(self)
        for step in plan.steps:
            x = step(x)
        return x

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "_plan"}
