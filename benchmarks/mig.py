"""`mig_eval`: everything `vaefast.metrics.information` says of as many codes as dSprites has, MIG included.

python -m benchmarks.mig [--samples S] [--threads T] [--output FILE]

A whole run, with the workload's S, is stored as benchmarks/results/mig/<device>-<processor>.json. Work: S N (1 + sum of
1 / values over the factors) pairs of 10 dimensions, 18 operations on vectors of 16 lanes a dimension, 12 of them an
exponential, as in `pairs`: 1.3e11 in all. The walk reaches 3.7e9 of them a second on a core with AVX-512: 36 seconds of
one core, 18 of two. What the published code does, 10,000 samples for each of the 113 values, is 6 S N pairs.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import torch

from benchmarks import facts, measure
from benchmarks.run import RESULTS
from benchmarks.workloads import WORKLOADS
from vaefast.metrics import aggregate_log_prob, information

_CHECKED = 4  # samples that are compared with the plain formula


def codes() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(mean, logvar, factors): the first dimensions follow a factor each, as a model's that took them apart."""
    workload = WORKLOADS["mig_eval"]
    factors = torch.cartesian_prod(*map(torch.arange, workload["factors"]))
    mean = 0.3 * torch.randn(workload["N"], workload["D"], generator=torch.Generator().manual_seed(0))
    for k, values in enumerate(workload["factors"]):
        mean[:, k] += 3 * (factors[:, k] / (values - 1) - 0.5)
    return mean, torch.full_like(mean, -3.0), factors


def check(mean: torch.Tensor, logvar: torch.Tensor) -> None:
    """A few samples against the plain formula in float64.

    Raises:
        AssertionError: they differ: there is no speed to report.
    """
    z = mean[:_CHECKED] + 0.1
    found = aggregate_log_prob(z, mean, logvar)
    for i, point in enumerate(z.double()):
        normal = torch.distributions.Normal(mean.double(), torch.exp(0.5 * logvar.double()))
        pairs = normal.log_prob(point)  # [N, D]
        for value, terms in ((found[0][i], pairs.sum(1)), (found[1][i], pairs)):
            expected = torch.logsumexp(terms, 0) - math.log(len(mean))
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mig", description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, help="fewer samples: whether it works, not how fast")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="store here, also a run of fewer samples")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    samples = options.samples or WORKLOADS["mig_eval"]["S"]
    mean, logvar, factors = codes()
    check(mean, logvar)
    few = min(samples, 1000)  # memory does not depend on their number
    peak, _ = measure._peak_cpu(lambda: information(mean, logvar, factors, samples=few, seed=0))
    start = time.perf_counter()
    found = information(mean, logvar, factors, samples=samples, seed=0, progress=True)
    seconds = time.perf_counter() - start
    row = {"samples": samples, "threads": options.threads, "seconds": seconds, "peak_bytes": peak, "checked": True}
    row |= {
        "inputs_bytes": mean.nbytes + logvar.nbytes,
        "mig": found.mig,
        "mutual_information": found.mutual_information,
    }
    path = options.output or (None if options.samples else RESULTS / "mig" / f"{facts.slug('cpu')}.json")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        about = facts.measured("cpu") | {"environment": facts.environment()}
        path.write_text(json.dumps(about | {"row": row}, indent=1) + "\n")
    print(f"{samples} samples of {len(mean)} codes: {seconds:.0f} s on {options.threads} threads,", end=" ")
    print(f"{peak / 1e6:.0f} MB beside the {row['inputs_bytes'] / 1e6:.0f} MB of the codes; MIG {found.mig:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
