"""The fused body of an op: what makes its outputs and calls the walk, whichever backend's it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import torch

from vaefast.reference.gaussian import compute_dtype


def empty_like(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def empty_rows(like: torch.Tensor, batch_ndim: int) -> torch.Tensor:
    """One number per row, in the compute type."""
    return like.new_empty(like.shape[:batch_ndim], dtype=compute_dtype(like.dtype))


class Output(NamedTuple):
    """An elementwise output of a Body.

    like: the argument, by its place, whose shape and type it has.
    wanted: its place in the op's `wanted`, or -1: always made. What is not wanted is a tensor of no elements.
    planes: it has planes, as `like` has.
    written: by the walk; else by the body's `rest`.
    """

    like: int
    wanted: int = -1
    planes: bool = False
    written: bool = True


@dataclasses.dataclass(frozen=True)
class Body:
    """A fused body that is one call of the `rows` walk; called like a function, with the walk and the op's arguments.

    The compiled module runs the same description in C, since a small op spends most of its time here.

    density: the walk's.
    roles: what each argument is, a letter of:
        e, an elementwise input [*batch, *event]; p, one with planes [*batch, planes, *event]; m, a weight per element,
        or None; r, one number per row; l, a tensor of which only the shape and type are read; s, the noise's seed; b,
        batch_ndim (1 where there is none); n, a number of the density's; w, which outputs are wanted.
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
        of = {role: [a for a, r in zip(args, self.roles, strict=True) if r == role] for role in "mrsbnw"}
        (batch_ndim,) = of["b"] or [1]
        given = [(a, r == "p") for a, r in zip(args, self.roles, strict=True) if r in "epl"]
        inputs = tuple([(a, batch_ndim) if r == "p" else a for a, r in zip(args, self.roles, strict=True) if r in "ep"])
        wanted = [o.wanted < 0 or of["w"][0][o.wanted] for o in self.outputs]
        made = [
            empty_like(args[o.like]) if want else args[o.like].new_empty(0)
            for o, want in zip(self.outputs, wanted, strict=True)
        ]
        written = tuple(
            [
                None if not want else (tensor, batch_ndim) if o.planes else tensor
                for o, tensor, want in zip(self.outputs, made, wanted, strict=True)
                if o.written
            ]
        )
        sums = [empty_rows(given[0][0], batch_ndim) for _ in range(self.sums)]
        (seed,), (weight,) = of["s"] or [None], of["m"] or [None]
        walk(self.density, batch_ndim, inputs, tuple(of["r"]), written, tuple(sums), seed, tuple(of["n"]), weight)
        made += sums
        if any(want and not o.written for o, want in zip(self.outputs, wanted, strict=True)):
            self.rest(args, made)
        return made[0] if len(made) == 1 else tuple(made)

    def in_c(self, module, cuda: bool) -> Callable:
        """The same as a function of the op's arguments, for the compiled module's own walk."""
        return module.body(self.density, self.roles, self.outputs, self.sums, self.rest, cuda)
