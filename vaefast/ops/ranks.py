"""What other processes hold, in a computation that is differentiated across them.

One rule: what flows back to a rank is the gradient of the sum of all ranks' losses. DistributedDataParallel averages
the ranks' gradients, and so makes it that of the mean of their losses: the loss of one process with the whole batch,
where the ranks' batches are equal in size. Where they differ, a mean over a rank's own b of B rows in R processes must
be weighed by R b / B, as always under DistributedDataParallel; a value of the whole batch, as of `mmd`, need not.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist

from vaefast.ops import _checks


class Layout(NamedTuple):
    """How the rows lie in the ranks of a group, one after the other."""

    group: dist.ProcessGroup
    sizes: list[int]

    @property
    def first(self) -> int:
        """The index of this rank's first row."""
        return sum(self.sizes[: self.group.rank()])


def layout(tensor: torch.Tensor, group: dist.ProcessGroup) -> Layout:
    """How many rows each rank has; one small message. Raises as `checked` does."""
    checked(group)
    size = torch.tensor([len(tensor)], device=tensor.device)
    sizes = [torch.empty_like(size) for _ in range(group.size())]
    dist.all_gather(sizes, size, group=group)
    return Layout(group, torch.cat(sizes).tolist())


def _padded(part: torch.Tensor, where: Layout) -> torch.Tensor:
    """As many rows as the rank that has most: messages are of one size."""
    return torch.cat([part, part.new_zeros(max(where.sizes) - len(part), *part.shape[1:])])


class Gather(torch.autograd.Function):
    """[b, ...] of each rank -> [B, ...] of all, in the order of the ranks; backward is OwnSum."""

    @staticmethod
    def forward(ctx, tensor, where):
        ctx.where = where
        padded = _padded(tensor, where)
        parts = [torch.empty_like(padded) for _ in where.sizes]
        dist.all_gather(parts, padded, group=where.group)
        return torch.cat([part[:size] for part, size in zip(parts, where.sizes, strict=True)])

    @staticmethod
    def backward(ctx, grad):
        return OwnSum.apply(grad, ctx.where), None


class OwnSum(torch.autograd.Function):
    """[B, ...] on each rank -> this rank's rows [b, ...] of the sum over the ranks; backward is Gather."""

    @staticmethod
    def forward(ctx, tensor, where):
        ctx.where = where
        parts = [_padded(part, where) for part in tensor.split(where.sizes)]
        total = torch.empty_like(parts[0])
        dist.reduce_scatter(total, parts, group=where.group)
        return total[: where.sizes[where.group.rank()]].clone()

    @staticmethod
    def backward(ctx, grad):
        return Gather.apply(grad, ctx.where), None


def all_gather(tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """The rows of all ranks, in the order of the ranks, differentiably.

    Args:
        tensor: [b, *event]; b may differ from rank to rank, the event and the type may not.
        group: such as `torch.distributed.group.WORLD`.

    Returns:
        [B, *event], B being the sum of b: the same on every rank.

    Gradient: each rank's rows get the sum of what all ranks' losses send them; twice differentiable. As with every
    collective, all ranks call it, and all take part in its backward.

    Raises:
        TypeError, ValueError: for arguments that do not fit, named in the message.
    """
    _checks.floating("tensor", tensor)
    return Gather.apply(tensor, layout(tensor, group))


def total(tensor: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """The sum over the ranks of a tensor that has one shape on all of them, differentiable as `all_gather` is; the
    tensor itself where group is None."""
    if group is None:
        return tensor
    return Gather.apply(tensor[None], Layout(group, [1] * checked(group).size())).sum(0)


def mean(sums: torch.Tensor, rows: int, group: dist.ProcessGroup | None) -> torch.Tensor:
    """The mean over the rows of all ranks, of which one may have none, from the sum over this rank's."""
    if group is None:
        return sums / rows
    found = total(torch.cat([sums.reshape(-1), sums.new_tensor([rows])]), group)
    return (found[:-1] / found[-1]).view_as(sums)


def checked(group: object) -> dist.ProcessGroup:
    """A process group that this process is in.

    Raises:
        TypeError: for anything else, None included: what `torch.distributed.group.WORLD` is before
            `init_process_group`.
    """
    if not isinstance(group, dist.ProcessGroup):
        what = "GroupMember.NON_GROUP_MEMBER" if group == dist.GroupMember.NON_GROUP_MEMBER else repr(group)
        raise TypeError(f"group must be a process group that this process is a member of, got {what}")
    return group


def shared_seed(seed: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """The seed of the group's first rank."""
    seed = seed.clone()
    dist.broadcast(seed, group=group, group_src=0)
    return seed
