"""The fused body of an op: what makes its outputs and calls the walk, whichever backend's it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import torch

from vaefast._layout import Argument, halves
from vaefast.reference.gaussian import compute_dtype


def empty_like(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def empty_rows(like: torch.Tensor, batch_ndim: int) -> torch.Tensor:
    """One number per row, in the compute type."""
    return like.new_empty(like.shape[:batch_ndim], dtype=compute_dtype(like.dtype))


def halved(shape: torch.Size, dim: int) -> list[int]:
    return [size // 2 if i == dim else size for i, size in enumerate(shape)]


class Output(NamedTuple):
    """An elementwise output of a Body.

    like: the argument, by its place, whose type and shape it has.
    wanted: its place in the op's `wanted`, or -1: always made. What is not wanted is a tensor of no elements.
    form: e, as it is; p, with planes, as `like` has; h, written as two halves; o, of one half's shape.
    written: by the walk; else by the body's `rest`.
    """

    like: int
    wanted: int = -1
    form: str = "e"
    written: bool = True


@dataclasses.dataclass(frozen=True)
class Body:
    """A fused body that is one call of the `rows` walk; called like a function, with the walk and the op's arguments.

    The compiled module runs the same description in C, since a small op spends most of its time here.

    density: the walk's.
    roles: what each argument is, a letter of:
        e, an elementwise input [*batch, *event]; p, one with planes [*batch, planes, *event]; h, two inputs, the halves
        of a tensor along the dimension d; m, a weight per element, or None; r, one number per row; l, a tensor of which
        only the shape and type are read; s, the noise's seed; b, batch_ndim (1 where there is none); n, a number of the
        density's; w, which outputs are wanted.
    outputs: elementwise.
    sums: how many outputs per row come after those, float32 (float64 for float64 inputs).
    rest: called with (arguments, outputs) where an output is wanted that the walk does not write.
    """

    density: str
    roles: str
    outputs: tuple[Output, ...]
    sums: int
    rest: Callable | None = None

    def __call__(self, walk: Callable, *args):
        given = list(zip(args, self.roles, strict=True))
        of = {role: [a for a, r in given if r == role] for role in "mrsbdnw"}
        (batch_ndim,), (dim,) = of["b"] or [1], of["d"] or [None]

        def arguments(tensor, form: str) -> tuple[Argument, ...]:
            return halves(tensor, dim) if form == "h" else ((tensor, batch_ndim) if form == "p" else tensor,)

        def make(output: Output, wanted: bool) -> torch.Tensor:
            like = args[output.like]
            if not wanted:
                return like.new_empty(0)
            return like.new_empty(halved(like.shape, dim)) if output.form == "o" else empty_like(like)

        wanted = [o.wanted < 0 or of["w"][0][o.wanted] for o in self.outputs]
        made = [make(o, want) for o, want in zip(self.outputs, wanted, strict=True)]
        first = next(a for a, role in given if role in "ephl")
        sums = [empty_rows(first, batch_ndim) for _ in range(self.sums)]
        inputs = [argument for a, role in given if role in "eph" for argument in arguments(a, role)]
        written = [
            argument if want else None
            for o, tensor, want in zip(self.outputs, made, wanted, strict=True)
            if o.written
            for argument in arguments(tensor, o.form)
        ]
        (seed,), (weight,) = of["s"] or [None], of["m"] or [None]
        rows, numbers = tuple(of["r"]), tuple(of["n"])
        walk(self.density, batch_ndim, tuple(inputs), rows, tuple(written), tuple(sums), seed, numbers, weight)
        made += sums
        if any(want and not o.written for o, want in zip(self.outputs, wanted, strict=True)):
            self.rest(args, made)
        return made[0] if len(made) == 1 else tuple(made)

    def in_c(self, module, cuda: bool) -> Callable:
        """The same as a function of the op's arguments, for the compiled module's own walk."""
        return module.body(self.density, self.roles, self.outputs, self.sums, self.rest, cuda)
