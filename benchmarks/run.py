"""Measure every case and store the figures with all that explains them.

python -m benchmarks.run [--device cpu|cuda] [--only NAME] [--quick] [--seconds S] [--output FILE]

A whole run is stored as benchmarks/results/<device>-<processor>.json, one file per machine, every row of one commit.
A part (--only) and a quick run (--quick) are printed, and stored only where --output says.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from benchmarks import facts, gaussian, likelihoods, measure, noise, pairs, report, training
from vaefast import _backends, _extension

FAMILIES = (noise, gaussian, likelihoods, pairs, training)
RESULTS = Path(__file__).parent / "results"
_SECONDS = {"cpu": 20.0, "cuda": 3.0}  # per case; a GPU's clock is steadier and its cases are many
_QUICK_SECONDS = 0.2


def unfused(case: measure.Case) -> str | None:
    """Why the figures would be those of the reference path; None where a fused backend runs, or it was asked for."""
    if _backends.asked() or measure.fused_backends(case.op, case.device) != ["reference"]:
        return None
    reasons = {b: _backends.why_not(b, case.op, case.device) for b in _backends._AUTOMATIC[case.device]}
    return "; ".join(f"{backend}: {reason}" for backend, reason in reasons.items())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", metavar="NAME", help="the cases whose name contains NAME")
    parser.add_argument("--quick", action="store_true", help="a few rounds of each: whether it works, not how fast")
    parser.add_argument("--seconds", type=float, help="measuring time per case")
    parser.add_argument("--output", type=Path, help="store here, also a part or a quick run")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no NVIDIA GPU")
    cases = [c for family in FAMILIES for c in family.cases(options.device) if (options.only or "") in c.name]
    bandwidth = options.device == "cuda" and options.only in (None, "bandwidth")
    if not cases and not bandwidth:
        parser.error(f"--only {options.only}: no case has this in its name")
    reason = next(filter(None, map(unfused, cases)), None)
    if reason is not None:
        parser.error(f"no fused backend runs here ({reason}); VAEFAST_BACKEND=reference measures the reference")
    whole = not (options.quick or options.only)
    path = options.output or (RESULTS / f"{facts.slug(options.device)}.json" if whole else None)
    seconds = options.seconds or (_QUICK_SECONDS if options.quick else _SECONDS[options.device])
    results = {
        "device": options.device,
        **facts.measured(options.device),
        "build": _extension.facts(),
        "environment": facts.environment(),
        "seconds_per_case": seconds,
        "quick": options.quick,
        "rows": [],
        "bandwidth": [],
    }

    def store() -> None:  # after each case: a run cut short keeps what it has
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(results, indent=1) + "\n")

    for case in cases:
        print(f"{case.name} {case.dtype}", file=sys.stderr, flush=True)
        try:
            results["rows"] += measure.rows(case, seconds)
        except Exception as error:  # recorded as a row without figures; the others go on and the exit status tells
            print(f"  {error}", file=sys.stderr)
            row = {"name": case.name, "dtype": str(case.dtype).removeprefix("torch.")}
            results["rows"].append(row | {"error": f"{type(error).__name__}: {error}"[:2000]})
        store()
    if bandwidth:
        results["bandwidth"] = [
            gaussian.bandwidth(options.device, dtype, seconds) for dtype in (torch.float32, torch.bfloat16)
        ]
        store()
    print(report.markdown(results))
    print(f"stored {path}" if path is not None else "not stored: a part or a quick run", file=sys.stderr)
    return int(any("error" in row for row in results["rows"]))


if __name__ == "__main__":
    sys.exit(main())
