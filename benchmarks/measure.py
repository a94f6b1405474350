"""The clock: contenders take short turns in one process, and nothing is timed before its result is checked."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

import vaefast
from vaefast import _backends
from vaefast.reference import noise

_TURN = 5e-3  # seconds that one contender's turn lasts at least
_MIN_ROUNDS, _MAX_ROUNDS = 5, 400
_TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


class WrongResultError(AssertionError):
    """The fused result differs from the plain formula: there is no speed to report."""


@dataclass(frozen=True)
class Case:
    """One workload and its contenders, on one device.

    eager, fused: the same function of the inputs, in plain PyTorch and with vaefast; each returns a tuple of tensors.
        Where there is noise they take `eps=` and `seed=` too, so that both can be given the same.
    op: the density that tells which backends can run it.
    shapes: of the inputs, all of which take a gradient. None: nothing to differentiate.
    prepare: makes the inputs from normals of these shapes times 0.5; None leaves them so.
    data: tensors without gradient that come after the inputs, drawn with a generator on the CPU.
    noise: the shape of the noise, or None.
    exact: the fused result must be the same bits, not only near.
    compiled: whether torch.compile takes part; a function is that contender itself, where eager is not one graph.
    threads: of the CPU; None leaves PyTorch's own number.
    targets: for a rival, how many times faster vaefast shall be.
    peak_memory: whether memory is measured.
    """

    name: str
    op: str
    device: str
    eager: Callable
    fused: Callable
    shapes: tuple[tuple[int, ...], ...] = ()
    prepare: Callable | None = None
    data: Callable[[torch.Generator], tuple[torch.Tensor, ...]] | None = None
    noise: tuple[int, ...] | None = None
    dtype: torch.dtype = torch.float32
    exact: bool = False
    compiled: bool | Callable = True
    threads: int | None = None
    targets: dict[str, float] = field(default_factory=dict)
    peak_memory: bool = False

    def inputs(self) -> list[torch.Tensor]:
        """Those that take a gradient, then the data."""
        generator = torch.Generator(self.device).manual_seed(0)
        draw = {"generator": generator, "device": self.device, "dtype": self.dtype}
        inputs = [0.5 * torch.randn(shape, **draw) for shape in self.shapes]
        inputs = [t.requires_grad_() for t in (inputs if self.prepare is None else self.prepare(*inputs))]
        data = () if self.data is None else self.data(torch.Generator().manual_seed(2))
        return [*inputs, *[t.to(self.device) for t in data]]


@dataclass(frozen=True)
class Contender:
    """What is timed, and the backend of vaefast in force meanwhile."""

    call: Callable[[], object]
    backend: str = "auto"


def fused_backends(op: str, device: str) -> list[str]:
    """The backends of vaefast that can run `op` here, the automatic choice first; a backend asked for by name alone."""
    if _backends.asked():
        return [_backends.choose(op, device)]
    return [b for b in _backends._AUTOMATIC[device] if _backends.why_not(b, op, device) is None] or ["reference"]


# --- correctness ---


def upstream(outputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """Fixed upstream gradients, the same for every contender: 1 for a scalar, which is a loss; else random bfloat16
    numbers, which every dtype holds."""
    generator = torch.Generator(outputs[0].device).manual_seed(1)
    draw = {"generator": generator, "device": outputs[0].device, "dtype": torch.bfloat16}
    return [torch.randn(o.shape, **draw).to(o.dtype) if o.ndim else torch.ones_like(o) for o in outputs]


def check(case: Case) -> None:
    """Compare every output and gradient of each fused backend with the plain formula in float64 and the same noise.

    Raises:
        WrongResultError: names the backend and the output.
    """
    inputs = case.inputs()
    # copies, so that each gradient is its own
    truth = [t.detach().double().requires_grad_(t.requires_grad) if t.is_floating_point() else t for t in inputs]
    ours, theirs = {}, {}
    if case.noise is not None:
        ours["seed"] = vaefast.draw_seed(case.device)
        theirs["eps"] = noise.standard_normal(ours["seed"], case.noise, torch.float64)
    expected = case.eager(*truth, **theirs)
    grads = upstream(expected)
    if case.shapes:
        torch.autograd.backward(expected, grads)
    expected = [*expected, *[t.grad for t in truth if t.requires_grad]]
    for backend in fused_backends(case.op, case.device):
        with vaefast.use_backend(backend):
            outputs = case.fused(*inputs, **ours)
            if case.shapes:
                torch.autograd.backward(outputs, [g.to(o.dtype) for g, o in zip(grads, outputs, strict=True)])
        actual_grads = [t.grad for t in inputs if t.requires_grad]
        for i, (actual, wanted) in enumerate(zip([*outputs, *actual_grads], expected, strict=True)):
            tolerance = 0 if case.exact else _TOLERANCE[actual.dtype]
            try:
                torch.testing.assert_close(actual, wanted.to(actual.dtype), rtol=tolerance, atol=min(tolerance, 1e-5))
            except AssertionError as error:
                what = f"output {i}" if i < len(outputs) else f"gradient {i - len(outputs)}"
                raise WrongResultError(f"{case.name}: {what} of backend {backend!r} is wrong: {error}") from error
        for t in inputs:
            t.grad = None


# --- time ---


def step(function: Callable, inputs: list[torch.Tensor]) -> Callable[[], object]:
    """One forward and backward; without inputs, the forward alone. Returns the outputs."""
    leaves = [t for t in inputs if t.requires_grad]
    if not leaves:
        return function
    grads = upstream(function(*inputs))

    def run():
        for t in leaves:
            t.grad = None
        outputs = function(*inputs)
        torch.autograd.backward(outputs, grads)
        return outputs

    return run


def contenders(case: Case) -> dict[str, Contender]:
    """Every backend of vaefast, eager PyTorch, and torch.compile, each warmed up."""
    inputs = case.inputs()
    found = {}
    for backend in fused_backends(case.op, case.device):
        with vaefast.use_backend(backend):
            found[backend] = Contender(step(case.fused, inputs), backend)
    found["eager"] = Contender(step(case.eager, inputs))
    if case.compiled:
        torch._dynamo.reset()  # or the tenth shape runs dynamic, and later ones eagerly
        compiled = case.compiled
        if compiled is True:
            compiled = torch.compile(case.eager, fullgraph=True, dynamic=False)
        found["compile"] = Contender(step(compiled, inputs))
    for contender in found.values():
        with vaefast.use_backend(contender.backend):
            contender.call()
    return found


def replayed(case: Case, contender: Contender) -> Contender:
    """The contender captured in a CUDA graph; noise must be fresh at each replay."""
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with vaefast.use_backend(contender.backend):
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                contender.call()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            outputs = contender.call()
    if case.noise is not None:
        graph.replay()
        before = [t.detach().clone() for t in outputs]
        graph.replay()
        if all(map(torch.equal, before, outputs)):
            raise WrongResultError(f"{case.name}: a replayed CUDA graph repeats its noise ({contender.backend})")
    return Contender(graph.replay)


def _clock_cpu(call: Callable, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def _clock_cuda(call: Callable, count: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3 / count


def interleave(entrants: dict[str, Contender], device: str, seconds: float) -> dict[str, dict]:
    """Median and interquartile range of each contender's time per call, from rounds in which each has one turn.

    A turn is at least 5 ms of calls; before short ones comes one that is not timed, which meets the caches that others
    left. The order turns with each round, so that drift of the machine hits all alike.
    """
    clock = _clock_cuda if device == "cuda" else _clock_cpu
    names = list(entrants)
    counts = {}

    def turn(name: str) -> float:
        contender = entrants[name]
        with vaefast.use_backend(contender.backend):
            if counts[name] > 1:
                contender.call()
            return clock(contender.call, counts[name])

    spent = {}
    for name in names:
        counts[name] = 3
        counts[name] = max(1, round(_TURN / turn(name)))
        started = time.perf_counter()
        turn(name)
        spent[name] = time.perf_counter() - started
    rounds = min(_MAX_ROUNDS, max(_MIN_ROUNDS, int(seconds / sum(spent.values()))))
    samples = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        for i in range(rounds):
            shift = i % len(names)
            for name in names[shift:] + names[:shift]:
                samples[name].append(turn(name))
    finally:
        gc.enable()
    return {name: _summary(values) | {"calls_per_turn": counts[name]} for name, values in samples.items()}


def _summary(values: list[float]) -> dict:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median_s": median, "iqr_s": high - low, "rounds": len(values)}


# --- memory ---


def _peak_cpu(call: Callable) -> tuple[int, int]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = call()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    del kept
    return peak, live


def _peak_cuda(call: Callable) -> tuple[int, int]:
    def requested(which: str) -> int:
        torch.cuda.synchronize()
        return torch.cuda.memory_stats()[f"requested_bytes.all.{which}"]

    torch.cuda.reset_peak_memory_stats()
    before = requested("current")
    kept = call()
    result = requested("peak") - before, requested("current") - before
    del kept
    return result


def memory(case: Case, entrants: dict[str, Contender]) -> dict[str, dict]:
    """Bytes beyond the inputs: the forward's peak, what is held until the backward, and the peak of both.

    `outputs` and `gradients` are what the user asked for; the seed is 16 bytes more. The peak of both holds them all.
    """
    peak_of = _peak_cuda if case.device == "cuda" else _peak_cpu
    inputs = case.inputs()
    gradients = sum(t.nbytes for t in inputs if t.requires_grad)
    forwards = {name: case.fused for name in fused_backends(case.op, case.device)} | {"eager": case.eager}
    if "compile" in entrants:
        forwards["compile"] = torch.compile(case.eager, fullgraph=True, dynamic=False)
    result = {}
    for name, function in forwards.items():
        with vaefast.use_backend(entrants[name].backend):
            outputs = sum(o.nbytes for o in function(*inputs))  # and a warm-up
            peak, held = peak_of(lambda: function(*inputs))  # noqa: B023 - called at once
            whole = step(function, inputs)
            whole()
            for t in inputs:
                t.grad = None
            both, _ = peak_of(whole)
            for t in inputs:
                t.grad = None
        result[name] = {
            "outputs": outputs,
            "gradients": gradients,
            "forward_peak": peak,
            "held_for_backward": held,
            "step_peak": both,
        }
    return result


# --- a row ---


@contextlib.contextmanager
def threads(case: Case) -> Iterator[None]:
    """The case's number of CPU threads; torch.compile must run inside too, for it writes the number into its code."""
    before = torch.get_num_threads()
    torch.set_num_threads(case.threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def rows(case: Case, seconds: float) -> list[dict]:
    """Check the case, then measure it: one row, and on CUDA a second one for graph replay."""
    with threads(case):
        check(case)
        launched = contenders(case)
        head = {
            "name": case.name,
            "dtype": str(case.dtype).removeprefix("torch."),
            "elements": sum(torch.Size(s).numel() for s in case.shapes or (case.noise,)),
            "threads": torch.get_num_threads(),
            "fused": fused_backends(case.op, case.device),
            "targets": case.targets,
            "checked": True,  # or check() had raised
        }
        result = [head | {"mode": "launched"} | _timed(launched, head["fused"], case.device, seconds)]
        if case.peak_memory:
            result[0]["memory"] = memory(case, launched)
        if case.device == "cuda":
            captured = {name: replayed(case, c) for name, c in launched.items()}
            result.append(head | {"mode": "replayed"} | _timed(captured, head["fused"], case.device, seconds))
        return result


def _timed(entrants: dict[str, Contender], fused: list[str], device: str, seconds: float) -> dict:
    times = interleave(entrants, device, seconds)
    rivals = [name for name in times if name not in fused]
    return {
        "times": times,
        "ratios": {f: {r: times[r]["median_s"] / times[f]["median_s"] for r in rivals} for f in fused},
    }
