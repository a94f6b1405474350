"""The whole step as one CUDA graph: the host launches once what would be hundreds of kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch

_EAGER_STEPS = 3  # real steps, on a side stream, that let the allocator, cuBLAS and the optimizer set up their state


class CapturedStep:
    """`step` for batches of the first one's shape and type from a graph; for any other it is called as it is.

    Args:
        step: ([batch]) -> tensors; everything that it does must stay on the GPU, and what differs between calls must
            lie in tensors that are filled in place. Its noise comes from the default generator, which replays advance.

    The first steps and the recording's own are part of the training: none is wasted, and none has to be undone.
    """

    def __init__(self, step: Callable):
        self.step = step
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: torch.Tensor | None = None

    def __call__(self, batches: list[torch.Tensor]):
        (batch,) = batches
        if self._batch is None:
            self._batch = batch.clone()
        if batch.shape != self._batch.shape or batch.dtype != self._batch.dtype:
            return self.step(batches)
        self._calls += 1
        if self._calls <= _EAGER_STEPS:
            return self._on_a_side_stream(batches)
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):  # records, and runs nothing
                self._outputs = self.step([self._batch])
        self._batch.copy_(batch)
        self._graph.replay()
        return self._outputs

    def _on_a_side_stream(self, batches: list[torch.Tensor]):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            outputs = self.step(batches)
        torch.cuda.current_stream().wait_stream(stream)
        return outputs
