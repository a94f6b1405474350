"""How an op is defined: one schema, one reference, one fused body that serves every compiled backend and the fake."""

from __future__ import annotations

import dataclasses
import functools
import operator
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

from vaefast import _backends, _extension
from vaefast.ops._body import Body, Output
from vaefast.reference.gaussian import compute_dtype
from vaefast.reference.noise import standard_normal

_library = torch.library.Library("vaefast", "DEF")

# by one name each: in a step that has emptied the caches, every lookup on the way waits for the memory; and
# is_dynamo_compiling, since is_compiling asks a function more, and other tracers bring tensors or modes of their own
_dispatch_modes = torch._C._len_torch_dispatch_stack
_interpreter = torch._C._functorch.peek_interpreter_stack
_requires_grad = operator.attrgetter("requires_grad")
_is_legacy_batched = torch._C._functorch.is_legacy_batchedtensor


def unobserved(tensor: torch.Tensor) -> bool:
    """Whether this is a plain tensor in eager mode, and nobody listens at the dispatcher."""
    return not is_dynamo_compiling() and type(tensor) is torch.Tensor and not _dispatch_modes()


@dataclasses.dataclass(eq=False)
class Op:
    """A row of the op table; called like a function.

    name: that of torch.ops.vaefast.<name>.
    density: what a backend's walk must know to run it.
    walk: the walk's name, "rows" or "pairs".
    call: the op itself, torch.ops.vaefast.<name>.default.
    run: what it calls, the chosen backend.
    eager: what an eager caller calls: the body that is ready, past the dispatcher where nobody listens, which saves a
        fifth of the time of a small op. In C where the compiled module is loaded.
    reference(*args): the mathematics in pure PyTorch.
    fused(walk, *args): allocates the outputs and calls `walk(density, ...)`, which a backend provides; a Body where
        that is all. With a walk that does nothing it is the op's fake implementation, so shapes and dtypes are said
        once.
    """

    name: str
    density: str
    walk: str
    reference: Callable
    fused: Callable
    call: Callable
    run: Callable
    eager: Callable

    def __call__(self, *args):
        return self.call(*args) if is_dynamo_compiling() else self.eager(*args)

    def for_grads(self, *grads) -> Callable:
        """How a backward op is called for these output gradients."""
        if is_dynamo_compiling():
            return self.call
        if torch.is_grad_enabled():  # create_graph=True: the reference, which is plain PyTorch, is differentiated on
            return self.reference
        # batched by autograd's own vmap (is_grads_batched), which hides in a plain tensor: the dispatcher knows it
        return self.call if any(map(_is_legacy_batched, grads)) else self.eager

    @property
    def outputs(self) -> int:
        return len(self.call._schema.returns)


TABLE: dict[str, Op] = {}


def _no_walk(*args, **kwargs) -> None:
    pass


def define(schema: str, *, reference: Callable, fused: Callable, density: str | None = None, walk: str = "rows") -> Op:
    """Register `vaefast::<schema>`; it exists whether or not any compiled backend does."""
    name = schema[: schema.index("(")]
    density = name if density is None else density
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))

    def of_reference(*args):
        with torch.no_grad():  # the op's result has no graph; create_graph=True calls the reference itself
            result = reference(*args)
        # it follows its inputs' strides, while fused bodies and the fake are contiguous
        if isinstance(result, torch.Tensor):
            return result.contiguous()
        return type(result)([t.contiguous() for t in result])

    def prepare(device_type):
        backend = _backends.choose(density, device_type)
        if backend == "reference":
            found = of_reference
        else:
            module = _backends.module(backend)
            in_c = getattr(module, "body", None) if isinstance(fused, Body) else None
            found = in_c(fused) if in_c else functools.partial(fused, getattr(module, walk))
        if op.eager is general:
            op.eager = _extension.entry(general, ready, (name, "cpu"), (name, "cuda"))
        return ready.setdefault((name, device_type), found)

    ready = _backends.ready

    def run(*args):
        first = args[0]  # every op's is a tensor
        device_type = "cpu" if first.is_cpu else first.device.type  # the latter takes a quarter of a microsecond
        return (ready.get((name, device_type)) or prepare(device_type))(*args)

    def general(*args):
        return run(*args) if unobserved(args[0]) else call(*args)

    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"vaefast::{name}", lambda *args: fused(_no_walk, *args), lib=_library)
    call = getattr(torch.ops.vaefast, name).default
    op = TABLE[name] = Op(name, density, walk, reference, fused, call, run, general)
    return op


_ROLES = {"row": "r", "shape": "l", "seed": "s"}


def define_rows(
    name: str,
    tensors: str,
    *,
    like: str = "",
    row_outputs: int = 0,
    params: tuple[str, ...] = (),
    wanted: bool = False,
    reference: Callable,
) -> Op:
    """Define an op that is one density on the `rows` walk.

    Args:
        tensors: the tensor arguments in order, separated by blanks. `row:x` is one number per row (the shape of the
            batch), `shape:x` has only its shape and type read, `seed` is the noise's seed, any other an elementwise
            input [*batch, *event].
        like: for each elementwise output, the input whose shape and dtype it has.
        row_outputs: how many per-row sums come after them, float32 (float64 for float64 inputs).
        params: floats that come after the tensors and, where there is anything per row, after `int batch_ndim`.
        wanted: the op takes `bool[] wanted` last, and an elementwise output that is not is a tensor of no elements.
        reference: called with the op's arguments but `wanted`, `seed` replaced by the noise itself.
    """
    roles = "".join([_ROLES.get(t.split(":")[0], "e") for t in tensors.split()])
    names = [t.split(":")[-1] for t in tensors.split()]
    first, seed = re.search("[el]", roles).start(), roles.find("s")
    outputs = [Output(names.index(n), i if wanted else -1) for i, n in enumerate(like.split())]
    by_row = "r" in roles or row_outputs
    body = Body(name, roles + "b" * bool(by_row) + "n" * len(params) + "w" * wanted, tuple(outputs), row_outputs)

    def of_arguments(*args):
        if wanted:
            *args, want = args
            want = [*want, *[True] * row_outputs]
            return tuple([out if w else out.new_empty(0) for out, w in zip(reference(*args), want, strict=True)])
        if seed < 0:
            return reference(*args)
        eps = standard_normal(args[seed], args[first].shape, compute_dtype(args[first].dtype))
        return reference(*args[:seed], eps, *args[seed + 1 :])

    arguments = [f"Tensor {n}" for n in names] + ["int batch_ndim"] * bool(by_row) + [f"float {p}" for p in params]
    arguments += ["bool[] wanted"] * wanted
    returns = ", ".join(["Tensor"] * (len(outputs) + row_outputs))
    returns = f"({returns})" if "," in returns else returns
    return define(f"{name}({', '.join(arguments)}) -> {returns}", reference=of_arguments, fused=body)


class Made(NamedTuple):
    """In the place of `expected_grad`: what forward returns was made already."""

    value: torch.Tensor


class EagerFunction(torch.autograd.Function):
    """One that is applied outside torch.func's transforms, since `transformed()` is asked before: Function.apply would
    look for them once more. What an ended transform left behind is unwrapped, as there."""

    @classmethod
    def apply(cls, *args):
        if not _extension.alive(args):
            args = [_unwrapped(a) if type(a) is torch.Tensor else a for a in args]
        return super(torch.autograd.Function, cls).apply(*args)


_unwrapped = torch._C._functorch.unwrap_if_dead


def differentiable(
    name: str, forward: Op, backward: Op, saved: int, *, results: bool = False, with_gradient: Op | None = None
) -> type[torch.autograd.Function]:
    """The autograd.Function of an op.

    Args:
        backward: called with (*output grads, *saved arguments, *constants); returns the gradients of the leading
            arguments of `forward`, whose tensors come before its constants. A backward that is itself to be
            differentiated (create_graph=True) runs the backward op's reference, which is plain PyTorch. Where its last
            argument is `wanted`, it is told which gradients are, and the Function has an argument more, in front:
            `expected_grad`, as `hint` gives it.
        saved: how many of the leading arguments, tensors all (or None), the backward needs.
        results: it needs what forward returned, after those.
        with_gradient: called as backward with a gradient that is expected; returns (*gradients, forward's result).
    """
    arguments = forward.call._schema.arguments
    tensors = sum("Tensor" in str(a.type) for a in arguments)
    several, past = backward.outputs > 1, 1 + backward.outputs
    nones = [None] * (len(arguments) - backward.outputs)

    class Function(EagerFunction):
        @staticmethod
        def forward(ctx, *args):
            ctx.constants = args[tensors:]
            result = forward(*args)
            if results:
                ctx.save_for_backward(*args[:saved], *(result if isinstance(result, tuple) else (result,)))
            else:
                ctx.save_for_backward(*args[:saved])
            return result

        @staticmethod
        def backward(ctx, *grads):
            result = backward.for_grads(*grads)(*grads, *ctx.saved_tensors, *ctx.constants)
            return (*result, *nones) if several else (result, *nones)

    class Hinted(EagerFunction):
        @staticmethod
        def forward(ctx, expected_grad, *args):
            ctx.constants = args[tensors:]
            if expected_grad is None or type(expected_grad) is Made:
                ctx.save_for_backward(*args[:saved])
                return forward(*args) if expected_grad is None else expected_grad.value
            expected = constant(args[0].shape[: ctx.constants[0]], compute_dtype(args[0].dtype), expected_grad)
            *grads, result = with_gradient(expected, *args, list(ctx.needs_input_grad[1:past]))
            ctx.save_for_backward(*args[:saved], expected, *grads)
            return result

        @staticmethod
        def backward(ctx, grad, kept=None):
            kept = ctx.saved_tensors if kept is None else kept  # a checkpoint gives them once
            inputs, written = kept[:saved], kept[saved:]
            run = backward.for_grads(grad)
            if written and run is backward.eager and unobserved(grad) and torch.equal(grad, written[0]):
                grads = given_out(ctx, written[1:])
            else:
                grads = run(grad, *inputs, *ctx.constants, list(ctx.needs_input_grad[1:past]))
            return None, *grads, *nones  # what is not wanted, a tensor of no elements, goes nowhere

    hinted = backward.call._schema.arguments[-1].name == "wanted"
    function = named(name, Hinted if hinted else Function)
    in_python = function.apply, function.forward, function.backward

    def in_c(_C):
        def base_apply(forward_, backward_):
            twin = named(name, type(name, (function,), {"forward": staticmethod(forward_)}))
            twin._backward_cls.apply = backward_
            return super(torch.autograd.Function, twin).apply

        numbers = tensors, saved, backward.outputs, len(arguments) + hinted
        function.apply = _C.function(forward, backward, *in_python, *numbers, results, hinted, base_apply)

    _extension.when_loaded(in_c)
    return function


def named(name: str, function: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
    """The Function under the name that its users shall see, in a grad_fn and in the profiler too."""
    function.__name__ = function.__qualname__ = name
    function._backward_cls.__name__ = f"{name}Backward"
    function._backward_cls.apply = function.backward  # what that of PyTorch finds after a search
    return function


def constant(shape: torch.Size, dtype: torch.dtype, value: float) -> torch.Tensor:
    """A gradient per sample that is expected; a hierarchy's divergences all have the same."""
    return (_constant.__wrapped__ if _dispatch_modes() else _constant)(shape, dtype, value)  # a mode's may be fake


@functools.lru_cache(4)
def _constant(shape: torch.Size, dtype: torch.dtype, value: float) -> torch.Tensor:
    with torch.inference_mode(False):
        return torch.full(shape, value, dtype=dtype, device="cpu")  # also where another device is the default


def given_out(ctx, written: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """Gradients that forward wrote and saved: a leaf takes them uncopied, but with retain_graph, which wants them once
    more, whatever is done to these."""
    ctx.maybe_clear_saved_tensors()
    return [g.clone() for g in written] if torch._C._autograd._get_current_graph_task_keep_graph() else written


WORTH = 32768  # elements below which a second pass costs less than what it takes to write a gradient in the first


def hint(expected_grad: float | None, tensors) -> float | None:
    """`expected_grad` where the forward pass shall write the gradients that it makes, else None: the backward pass must
    look whether that gradient came after all, which would wait for a GPU, and which compilers do not see."""
    if expected_grad is None or is_dynamo_compiling():
        return None
    if not isinstance(expected_grad, (int, float)) or isinstance(expected_grad, bool):
        raise TypeError(f"expected_grad must be None or a number, got {type(expected_grad).__name__}")
    return float(expected_grad) if tensors[0].numel() >= WORTH and writes_gradients(tensors) else None


def writes_gradients(tensors) -> bool:
    """Whether a forward pass of these may write gradients. Who listens at the dispatcher does not count: a checkpoint
    must save the same tensors each time."""
    first = tensors[0]
    plain = type(first) is torch.Tensor and first.is_cpu
    return plain and torch.is_grad_enabled() and any(map(_requires_grad, tensors))


def transformed() -> bool:
    """Whether a torch.func transform or forward-mode AD is at work: then the differentiable reference runs, which
    every transform understands, since a Function that serves them all costs twice as much on the everyday path."""
    return _interpreter() is not None or forward_ad._current_level >= 0


# asked while torch.compile traces, which enters the transforms that it meets; torch.compiler.assume_constant_result
# would import the compiler with vaefast
transformed._dynamo_marked_constant = True


def distinct(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors, none of them twice where torch.compile traces, whose Functions take each once."""
    if not is_dynamo_compiling():
        return tensors
    return tuple([t.view_as(t) if any([t is s for s in tensors[:i]]) else t for i, t in enumerate(tensors)])
