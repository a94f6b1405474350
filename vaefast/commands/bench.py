"""`vaefast bench`: whether vaefast is right and fast on this machine, in seconds.

The speed table's own figures come from `python -m benchmarks.run` in a checkout, which takes its time over every op.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

import vaefast
from vaefast import _backends
from vaefast.commands import inputs
from vaefast.info import versions
from vaefast.reference import noise

_TURN = 5e-3  # seconds of a contender's turn: long beside the clock, short beside what else the machine does
_TOLERANCE = 1e-5  # of float32 sums, relative to the largest value


class Case(NamedTuple):
    """One workload: the same function of tensors in plain PyTorch and with vaefast, each called with its inputs, the
    noise (eager: `eps`, fused: `seed`; None draws it), and then differentiated."""

    name: str
    op: str
    shape: tuple[int, int]
    eager: Callable
    fused: Callable
    data: tuple[int, int] | None = None


def _eager_latent(mu, logvar, eps):
    eps = torch.randn_like(mu) if eps is None else eps
    kl = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum(1)
    return (mu + torch.exp(0.5 * logvar) * eps).sum() + kl.sum()


def _fused_latent(mu, logvar, seed):
    z, kl = vaefast.rsample_kl(mu, logvar, seed=seed)
    return z.sum() + kl.sum()


def _eager_elbo(mu, logvar, logits, x, eps):
    eps = torch.randn_like(mu) if eps is None else eps
    z = mu + torch.exp(0.5 * logvar) * eps
    nll = torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)
    kl = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum(1)
    return (nll + kl).mean() + z.sum()


def _fused_elbo(mu, logvar, logits, x, seed):
    z, kl = vaefast.rsample_kl(mu, logvar, seed=seed)
    nll = vaefast.bernoulli_nll(logits, x, expected_grad=1 / len(x))
    return vaefast.elbo_loss(nll, kl).loss + z.sum()


CASES = (
    Case("sample and KL, 128 x 20", "rsample_kl_forward", (128, 20), _eager_latent, _fused_latent),
    Case("sample and KL, 4096 x 64", "rsample_kl_forward", (4096, 64), _eager_latent, _fused_latent),
    Case("ELBO of digits, 128 x 784", "bernoulli_nll_forward", (128, 20), _eager_elbo, _fused_elbo, (128, 784)),
    Case("ELBO of digits, 2048 x 784", "bernoulli_nll_forward", (2048, 20), _eager_elbo, _fused_elbo, (2048, 784)),
)


def add(subparsers) -> None:
    parser = subparsers.add_parser(
        "bench",
        help="check that the kernels are right and fast here",
        description="Compare the fused kernels with the same formulas in plain PyTorch, forward and backward: the "
        "results first, then the time. Nothing is timed whose result is wrong.",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where (%(default)s)")
    parser.add_argument(
        "--seconds", type=inputs.positive, default=3.0, metavar="S", help="of measuring per line (%(default)s)"
    )
    parser.set_defaults(command=_bench)


def _bench(device: str, seconds: float) -> int:
    if device == "cuda" and not torch.cuda.is_available():
        raise inputs.CommandError("--device cuda: PyTorch sees no NVIDIA GPU")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    facts = versions()
    print(f"{facts[{'cpu': 'cpu', 'cuda': 'gpu'}[device]]}, torch {facts['torch']}, {torch.get_num_threads()} threads")
    print(f"{'forward and backward':<28}{'backend':>10}{'error':>11}{'PyTorch':>11}{'vaefast':>11}{'faster':>9}")
    right = True
    for case in CASES:
        backend, error = _backends.choose(case.op, device), check(case, device)
        line = f"{case.name:<28}{backend:>10}{error:>11.1e}"
        if not error <= _TOLERANCE:  # NaN too
            right = False
            print(f"{line}   wrong: above {_TOLERANCE:g}, not timed")
            continue
        eager, fused = race(case, device, seconds)
        print(f"{line}{eager * 1e6:>8,.0f} µs{fused * 1e6:>8,.0f} µs{eager / fused:>8.2f}x", flush=True)
    print("float32; medians; error: the largest, relative to the largest value, against float64 with the same noise")
    return int(not right)


def _inputs(case: Case, device: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [case.shape, case.shape, *([case.data] if case.data else [])]
    inputs = [(0.5 * torch.randn(shape, generator=generator)).to(device).requires_grad_() for shape in shapes]
    return inputs + ([torch.rand(case.data, generator=generator).to(device)] if case.data else [])


def check(case: Case, device: str) -> float:
    """The largest error of the result and its gradients, relative to the largest value of each, against float64."""
    ours, seed = _inputs(case, device), vaefast.draw_seed(device)
    truth = [t.detach().double().requires_grad_(t.requires_grad) for t in ours]
    eps = noise.standard_normal(seed, case.shape, torch.float64)
    pairs = [(case.fused(*ours, seed), case.eager(*truth, eps))]
    for result in pairs[0]:
        result.backward()
    pairs += [(a.grad, b.grad) for a, b in zip(ours, truth, strict=True) if a.requires_grad]
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def race(case: Case, device: str, seconds: float) -> tuple[float, float]:
    """Seconds of one call, forward and backward, of (eager, fused): medians of short turns that alternate."""
    tensors = _inputs(case, device)
    turns = [_turns(function, tensors, device) for function in (case.eager, case.fused)]
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 3:
        for found, turn in zip(times, turns, strict=True):
            found.append(next(turn))
    return statistics.median(times[0]), statistics.median(times[1])


def _turns(function: Callable, tensors: list[torch.Tensor], device: str) -> Iterator[float]:
    """Seconds of one call, turn after turn; how many calls make a turn is found first."""
    calls, parameters = 1, [t for t in tensors if t.requires_grad]

    def turn() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            torch.autograd.grad(function(*tensors, None), parameters)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    turn()
    while turn() < _TURN:
        calls *= 2
    while True:
        yield turn() / calls
