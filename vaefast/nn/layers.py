"""Linear layers and their activations as one step of autograd, for models of many small ones."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.module import _has_any_global_hook

from vaefast import _extension
from vaefast.ops._define import _Function, transformed, unobserved

aten = torch.ops.aten


class _Activation(NamedTuple):
    """forward(module, h) -> y; backward(module, gradient of y, kept) -> gradient of h, where kept is h, or y, which has
    overwritten it, in those that are `in_place`."""

    forward: Callable
    backward: Callable
    in_place: bool = False


_SELU = 1.6732632423543772, 1.0507009873554805  # alpha and scale (Klambauer et al. 2017)

_ACTIVATIONS = {
    nn.ReLU: _Activation(lambda m, h: h.relu_(), lambda m, g, y: aten.threshold_backward(g, y, 0), True),
    nn.Tanh: _Activation(lambda m, h: h.tanh_(), lambda m, g, y: aten.tanh_backward(g, y), True),
    nn.Sigmoid: _Activation(lambda m, h: h.sigmoid_(), lambda m, g, y: aten.sigmoid_backward(g, y), True),
    nn.LeakyReLU: _Activation(
        lambda m, h: functional.leaky_relu(h, m.negative_slope),
        lambda m, g, h: aten.leaky_relu_backward(g, h, m.negative_slope, False),
    ),
    nn.SiLU: _Activation(lambda m, h: functional.silu(h), lambda m, g, h: aten.silu_backward(g, h)),
    nn.GELU: _Activation(
        lambda m, h: functional.gelu(h, approximate=m.approximate),
        lambda m, g, h: aten.gelu_backward(g, h, approximate=m.approximate),
    ),
    nn.ELU: _Activation(
        lambda m, h: functional.elu(h, m.alpha), lambda m, g, h: aten.elu_backward(g, m.alpha, 1, 1, False, h)
    ),
    nn.SELU: _Activation(lambda m, h: functional.selu(h), lambda m, g, h: aten.elu_backward(g, *_SELU, 1, False, h)),
    nn.Softplus: _Activation(
        lambda m, h: functional.softplus(h, m.beta, m.threshold),
        lambda m, g, h: aten.softplus_backward(g, h, m.beta, m.threshold),
    ),
    nn.Mish: _Activation(lambda m, h: functional.mish(h), lambda m, g, h: aten.mish_backward(g, h)),
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
    """Whether rows or columns are contiguous and lie apart, as BLAS has it."""
    (rows, cols), (down, along) = t.shape, t.stride()
    return (along == 1 and down >= cols) or (down == 1 and along >= rows)


def _large(x: torch.Tensor, w: torch.Tensor) -> bool:
    """Whether oneDNN shall compute the product of x and w, or of x and w^T."""
    return (
        x.shape[0] * w.numel() >= _LARGE
        and _onednn() is not None
        and torch.backends.mkldnn.enabled
        and x.dtype is w.dtype is torch.float32
        and _matrix(x)
        and _matrix(w)
    )


def _linear(x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x w^T + bias of x [B, in], w [out, in] and bias [out]."""
    return _onednn()(x, w, bias, "none", [], "") if _large(x, w) else functional.linear(x, w, bias)


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a b of two matrices."""
    return _onednn()(a, b.t(), None, "none", [], "") if _large(a, b) else torch.mm(a, b)


def _plain(activations: Sequence[nn.Module | None], x: torch.Tensor, parameters) -> torch.Tensor:
    for activation, weight, bias in zip(activations, parameters[::2], parameters[1::2], strict=True):
        x = functional.linear(x, weight, bias)
        x = x if activation is None else activation(x)
    return x


class _Layers(_Function):
    """Linear layers, each with the activation that follows it, or None."""

    @staticmethod
    def forward(ctx, activations, x, *parameters):
        inputs, kept = [], []
        for activation, weight, bias in zip(activations, parameters[::2], parameters[1::2], strict=True):
            inputs.append(x)
            x = _linear(x, weight, bias)
            kept.append(None if activation is None else x)
            if activation is not None:
                x = _ACTIVATIONS[type(activation)].forward(activation, x)
        ctx.activations = activations
        ctx.save_for_backward(*inputs, *kept, *parameters)
        return x

    @staticmethod
    def backward(ctx, gradient):
        activations, saved, needed = ctx.activations, ctx.saved_tensors, ctx.needs_input_grad[1:]
        count = len(activations)
        inputs, kept, parameters = saved[:count], saved[count : 2 * count], saved[2 * count :]
        if torch.is_grad_enabled():  # create_graph=True
            wanted = [t for t, need in zip((inputs[0], *parameters), needed, strict=True) if need]
            y = _plain(activations, inputs[0], parameters)
            found = iter(torch.autograd.grad(y, wanted, gradient, create_graph=True))
            return None, *[next(found) if need else None for need in needed]
        grads = [None] * len(needed)
        for i in reversed(range(count)):
            if activations[i] is not None:
                gradient = _ACTIVATIONS[type(activations[i])].backward(activations[i], gradient, kept[i])
            if needed[1 + 2 * i]:
                grads[1 + 2 * i] = _product(gradient.t(), inputs[i])
            if needed[2 + 2 * i]:
                grads[2 + 2 * i] = gradient.sum(0)
            if not any(needed[: 1 + 2 * i]):
                break
            gradient = _product(gradient, parameters[2 * i])
        else:
            grads[0] = gradient
        return None, *grads


class _Run:
    """Successive linear layers, each with its activation, applied to [B, in]."""

    def __init__(self, linears: list[nn.Linear], activations: list[nn.Module | None]):
        self.linears, self.activations = linears, activations

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        # as functional_call puts them there too
        parameters = [p for m in self.linears for p in (m._parameters["weight"], m._parameters["bias"])]
        if x.ndim == 2 and x.is_floating_point() and all([type(p) in _TENSORS for p in parameters]):
            return _Layers.apply(self.activations, x, *parameters)
        return _plain(self.activations, x, parameters)


_TENSORS = (nn.Parameter, torch.Tensor, type(None))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class _Plan:
    """How a container's modules are run: its linear layers and activations in runs, all others as they are."""

    def __init__(self, container: nn.Sequential):
        self.containers: list[tuple[nn.Sequential, tuple[nn.Module, ...]]] = []
        self.steps: list[Callable] = []
        watched = [container]
        for module in self._flat(container):
            if not _bare(module) or type(module) not in (nn.Linear, *_ACTIVATIONS):
                self.steps.append(module)
                continue
            run = self.steps[-1] if self.steps and type(self.steps[-1]) is _Run else None
            if type(module) is nn.Linear:
                if run is None:
                    self.steps.append(run := _Run([], []))
                run.linears.append(module), run.activations.append(None)
            elif run is not None and run.activations[-1] is None:
                run.activations[-1] = module
            else:
                self.steps.append(module)
                continue
            watched.append(module)
        watched += [c for c, _ in self.containers[1:]]
        self.watched = watched
        self.types = [type(m) for m in watched]
        self.own = [vars(m) for m in watched]
        self.hooks = [vars(m)[name] for m in watched[1:] for name in _HOOKS]

    def _flat(self, container):
        self.containers.append((container, tuple(container._modules.values())))
        for module in container._modules.values():
            if type(module) in (nn.Sequential, FusedSequential) and _bare(module):
                yield from self._flat(module)
            else:
                yield module

    def holds(self) -> bool:
        """Whether the modules are those of before, and nobody has come to listen at one that is part of a run."""
        return (
            all([tuple(c._modules.values()) == modules for c, modules in self.containers])
            and [type(m) for m in self.watched] == self.types
            and not any(self.hooks)
            and not any(["forward" in own for own in self.own])
        )


def _bare(module: nn.Module) -> bool:
    """Whether calling the module is calling its class's forward."""
    own = vars(module)
    return not (any([own[name] for name in _HOOKS]) or "forward" in own or own.get("_compiled_call_impl"))


class FusedSequential(nn.Sequential):
    """nn.Sequential, with the same arguments, parameters, names and results, in less time on a CPU.

    Successive nn.Linear, each with the activation after it (ReLU, LeakyReLU, SiLU, GELU, ELU, SELU, Tanh, Sigmoid,
    Softplus or Mish), also of nested containers, are one step of autograd where x is [B, in]; and large float32
    products are oneDNN's where it is the faster one (on a processor that is not Intel's and has AVX-512; unless
    `torch.backends.mkldnn.flags(enabled=False)`). All other modules run as they are, and so do these where anything
    listens to or changes them (hooks, parametrisations, a forward of their own), in torch.compile, under autocast, in
    torch.func's transforms and on other devices.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not (
            unobserved(x)
            and x.is_cpu
            and x.layout is torch.strided
            and not torch.is_autocast_enabled("cpu")
            and not transformed()
            and not _has_any_global_hook()
            and torch._C._get_tracing_state() is None
        ):
            return super().forward(x)
        plan = vars(self).get("_plan")
        if plan is None or not plan.holds():
            plan = self._plan = _Plan(self)
        for step in plan.steps:
            x = step(x)
        return x

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "_plan"}
