"""The terms of pairs as the batch and the latent grow: fused against eager and torch.compile, to where memory ends.

python -m benchmarks.scaling [--memory GB] [--seconds S] [--quick] [--output FOLDER]

Total correlation, forward and backward, on one CPU thread. Each contender goes on until its next size would take more
than the stated memory, foretold from the last one's peak as its pairs grow, or more than the stated seconds for a call.
What a size was checked against is the plain formula in float64, as long as that fits the memory too. Stored as JSON and
PNG in benchmarks/results/scaling, named after the machine; a quick run is stored only where --output says.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import facts, measure, pairs, report
from benchmarks.run import RESULTS

SWEEPS = {  # (B, D), in growing order
    "B": [(b, 10) for b in (64, 256, 512, 1024, 2048, 4096, 8192, 16384)],
    "D": [(1024, d) for d in (2, 8, 32, 128, 512)],
}
_QUICK = {"B": [(32, 10), (64, 10)], "D": [(32, 2), (32, 8)]}
_CONTENDERS = ("cpu", "compile", "eager")  # "cpu": vaefast


def _case(batch: int, dims: int) -> measure.Case:
    return measure.Case(
        name=f"total_correlation_{batch}x{dims}",
        op="total_correlation_forward",
        device="cpu",
        eager=pairs.total_correlation,
        fused=pairs.fused_total_correlation,
        shapes=((batch, dims),) * 3,
        threads=1,
    )


def _function(name: str, case: measure.Case) -> Callable:
    if name == "compile":
        torch._dynamo.reset()
        return torch.compile(case.eager, fullgraph=True, dynamic=False)
    return case.fused if name == "cpu" else case.eager


def _measured(function: Callable, inputs: list[torch.Tensor], seconds: float) -> dict:
    """The best of three calls or more, and the peak of memory beside the inputs."""
    step = measure.step(function, inputs)
    step()
    for t in inputs:
        t.grad = None
    peak, _ = measure._peak_cpu(step)
    times, begin = [], time.perf_counter()
    while len(times) < 3 or (time.perf_counter() - begin < seconds / 10 and len(times) < 100):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
        if times[-1] > seconds / 3:
            break
    return {"seconds": min(times), "peak_bytes": peak}


def sweep(sizes: list[tuple[int, int]], memory: float, seconds: float) -> list[dict]:
    """A row per size: what each contender took, or what ended it, "memory" or "time", and the figure foretold."""
    rows = []
    for batch, dims in sizes:
        case = _case(batch, dims)
        inputs = case.inputs()
        row = {"B": batch, "D": dims, "contenders": {}}
        for name in _CONTENDERS:
            before = rows[-1]["contenders"][name] if rows else {"seconds": 0.0, "peak_bytes": 0.0}
            if "ended_by" not in before:
                points = batch * dims / (rows[-1]["B"] * rows[-1]["D"]) if rows else 1
                as_pairs = points * (batch / rows[-1]["B"] if rows else 1)
                peak = before["peak_bytes"] * (points if name == "cpu" else as_pairs)
                longer = before["seconds"] * as_pairs
                if peak > memory or longer > seconds:
                    before = {"ended_by": "memory" if peak > memory else "time", "seconds": longer, "peak_bytes": peak}
            row["contenders"][name] = (
                before if "ended_by" in before else _measured(_function(name, case), inputs, seconds)
            )
        eager = row["contenders"]["eager"]
        # the plain formula in float64 takes twice as much
        row["checked"] = "ended_by" not in eager and 2 * eager["peak_bytes"] <= memory
        if row["checked"]:
            measure.check(case)
        print(f"B = {batch}, D = {dims}: {_line(row)}", file=sys.stderr, flush=True)
        rows.append(row)
    return rows


def _line(row: dict) -> str:
    parts = []
    for name, found in row["contenders"].items():
        took = f"{found['seconds']:.2g} s, {found['peak_bytes'] / 1e6:.3g} MB"
        parts.append(f"{name} {'ended by ' + found['ended_by'] if 'ended_by' in found else took}")
    return "; ".join(parts)


def plot(results: dict, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7))
    axes = figure.subplots(2, len(results["sweeps"]), sharex="col", sharey="row", squeeze=False)
    for column, (grows, rows) in zip(axes.T, results["sweeps"].items(), strict=True):
        for axis, figure_of, unit in zip(column, ("seconds", "peak_bytes"), (1, 1e-6), strict=True):
            for name in _CONTENDERS:
                known = [(r[grows], r["contenders"][name]) for r in rows]
                known = [(x, found[figure_of] * unit) for x, found in known if "ended_by" not in found]
                label = "vaefast" if name == "cpu" else name
                axis.loglog(*zip(*known, strict=True), "o-", label=label, color=report._COLOURS.get(name), markersize=4)
            axis.grid(True, which="major", alpha=0.3)
        column[1].axhline(results["memory_limit_bytes"] / 1e6, color="black", linewidth=0.8, linestyle="--")
        column[1].set_xlabel("B, with D = 10" if grows == "B" else f"D, with B = {rows[0]['B']}")
    axes[0][0].set_ylabel("total correlation, forward + backward (s)")
    axes[1][0].set_ylabel("peak beside the inputs (MB; dashed: the limit)")
    axes[0][0].legend(frameon=False)
    report.save(figure, f"{report.processor(results['machine'])}, 1 thread", results, path)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--memory", type=float, default=4.0, help="GB that a call may take (default 4)")
    parser.add_argument("--seconds", type=float, default=6.0, help="seconds that a call may take (default 6)")
    parser.add_argument("--quick", action="store_true", help="small sizes: whether it works, not how fast")
    parser.add_argument("--output", type=Path, help="the folder to store in, also a quick run")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    memory = options.memory * 1e9
    sizes = _QUICK if options.quick else SWEEPS
    results = {
        **facts.measured("cpu"),
        "environment": facts.environment(),
        "quick": options.quick,
        "memory_limit_bytes": memory,
        "seconds_limit": options.seconds,
        "sweeps": {grows: sweep(those, memory, options.seconds) for grows, those in sizes.items()},
    }
    folder = options.output or (None if options.quick else RESULTS / "scaling")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{facts.slug('cpu')}.json"
        path.write_text(json.dumps(results, indent=1) + "\n")
        plot(results, path.with_suffix(".png"))
        print(f"stored {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
