"""What codes tell: against plain PyTorch, known answers, and at edges."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from memory import allocations, peak
from torch.distributions import Normal

import vaefast
from vaefast.metrics import aggregate_log_prob, information, mig


def codes(count, dims=3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    mean, logvar = (torch.randn(count, dims, generator=generator, dtype=torch.float64) for _ in range(2))
    return mean.to(dtype), logvar.to(dtype)


def normal(mean, logvar):
    return Normal(mean, torch.exp(0.5 * logvar))


def plain(z, mean, logvar):
    pairs = normal(mean, logvar).log_prob(z[:, None])  # [S, N, D]
    return [torch.logsumexp(p, 1) - math.log(len(mean)) for p in (pairs.sum(2), pairs)]


@given(
    sizes=st.tuples(st.integers(0, 9), st.integers(1, 40), st.integers(0, 5)),
    chunk=st.integers(1, 10),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_aggregate_log_prob(sizes, chunk, dtype):
    count, among, dims = sizes
    z, (mean, logvar) = codes(count, dims, 1, dtype)[0], codes(among, dims, 2, dtype)
    found = aggregate_log_prob(z, mean, logvar, chunk=chunk)
    for a, e in zip(found, plain(*[t.double() for t in (z, mean, logvar)]), strict=True):
        assert a.dtype == torch.float64
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_against_plain_sums(backend):
    """Every figure by its definition, on the same samples."""
    mean, logvar = codes(60)
    factors = torch.stack([torch.arange(60) % 4, torch.arange(60) // 20 - 7], 1)
    with vaefast.use_backend(backend):
        found = information(mean, logvar, factors, samples=25, chunk=4, seed=5)
    chosen = torch.randperm(60, generator=torch.Generator().manual_seed(5))[:25]
    z = vaefast.rsample(mean[chosen], logvar[chosen], seed=5)
    log_q, log_qs = plain(z, mean, logvar)
    gained = normal(mean[chosen], logvar[chosen]).log_prob(z).sum(1) - log_q
    log_ps = Normal(0, 1).log_prob(z)
    expected = {
        "mutual_information": gained.mean(),
        "error": gained.std(correction=0) / 5,
        "total_correlation": (log_q - log_qs.sum(1)).mean(),
        "marginal_kl": (log_q - log_ps.sum(1)).mean(),
        "dimension_kl": (log_qs - log_ps).mean(0),
        "entropy": -log_qs.mean(0),
    }
    told = torch.zeros(2, 3, dtype=torch.float64)
    for k in range(2):
        for i, n in enumerate(chosen):
            same = factors[:, k] == factors[n, k]
            told[k] += (plain(z[i : i + 1], mean[same], logvar[same])[1][0] - log_qs[i]) / 25
    entropy = torch.tensor([math.log(4), math.log(3)], dtype=torch.float64)
    top = told.clamp(min=0).sort(1, descending=True).values
    expected |= {"factor_information": told, "factor_entropy": entropy, "gap": (top[:, 0] - top[:, 1]) / entropy}
    expected["mig"] = expected["gap"].mean()
    for name, value in expected.items():
        torch.testing.assert_close(torch.as_tensor(getattr(found, name), dtype=torch.float64), value, msg=name)
    assert found.marginal_kl == pytest.approx(found.total_correlation + found.dimension_kl.sum().item())


# Known answers


def test_codes_that_are_the_factors():
    """A dimension per factor, far apart: each tells its factor whole and the others nothing; the MIG is 1."""
    factors = torch.cartesian_prod(torch.arange(4), torch.arange(3), torch.arange(5))
    mean = torch.cat([100.0 * factors, torch.zeros(60, 1)], 1)
    found = information(mean, torch.zeros_like(mean), factors, seed=0)
    entropy = torch.tensor([4.0, 3, 5]).double().log()
    torch.testing.assert_close(found.factor_entropy, entropy)
    told = torch.cat([entropy.diag(), torch.zeros(3, 1)], 1)
    torch.testing.assert_close(found.factor_information, told, rtol=1e-5, atol=1e-5)
    assert found.mig == pytest.approx(1, abs=1e-5)
    assert found.mutual_information == pytest.approx(math.log(60), rel=1e-5)  # each code tells its sample
    assert found.total_correlation == pytest.approx(0, abs=1e-4)


def test_a_factor_in_two_dimensions_has_no_gap():
    factors = torch.arange(40)[:, None] % 8
    mean = 50.0 * factors.expand(40, 2)
    found = information(mean, torch.zeros(40, 2), factors, seed=0)
    torch.testing.assert_close(found.factor_information, torch.full((1, 2), math.log(8), dtype=torch.float64))
    assert found.mig == pytest.approx(0, abs=1e-6)
    assert found.total_correlation == pytest.approx(math.log(8), rel=1e-5)
    assert mig(mean, torch.zeros(40, 2), factors, seed=0) == found.mig


def test_posteriors_that_are_the_prior():
    """Collapsed: nothing is told, and q(z) is p(z)."""
    zeros = torch.zeros(30, 2)
    found = information(zeros, zeros, torch.arange(30)[:, None] % 3, seed=1)
    for value in (found.mutual_information, found.total_correlation, found.marginal_kl, found.mig):
        assert value == pytest.approx(0, abs=1e-5)
    torch.testing.assert_close(found.dimension_kl, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-5)


def test_an_aggregate_that_is_a_normal():
    """Means of N(0, s^2) and variances 1: KL(N(0, 1 + s^2) || N(0, 1)), H and I(x; z) are known."""
    s2 = 3.0
    mean = math.sqrt(s2) * vaefast.standard_normal((20_000, 1), seed=4)
    found = information(mean, torch.zeros_like(mean), samples=5000, seed=2)
    assert found.marginal_kl == pytest.approx(0.5 * (s2 - math.log(1 + s2)), abs=0.06)
    assert found.entropy.item() == pytest.approx(0.5 * math.log(2 * math.pi * math.e * (1 + s2)), abs=0.03)
    assert found.mutual_information == pytest.approx(0.5 * math.log(1 + s2), abs=0.05)
    assert found.factor_information is found.mig is None


# Edges


def test_one_posterior_and_far_points():
    one = information(torch.zeros(1, 2), torch.zeros(1, 2), seed=0)
    assert one.mutual_information == pytest.approx(0, abs=1e-6)
    log_q, log_qs = aggregate_log_prob(torch.zeros(2, 2), torch.full((3, 2), 1000.0), torch.zeros(3, 2))
    expected = torch.full((2,), -1e6 - math.log(2 * math.pi), dtype=torch.float64)
    torch.testing.assert_close(log_q, expected, rtol=1e-7, atol=0)
    torch.testing.assert_close(log_qs, log_q[:, None].expand(2, 2) / 2)


def test_same_seed_same_figures():
    mean, logvar = codes(50)
    a, b, c = (information(mean, logvar, samples=20, seed=s).mutual_information for s in (1, 1, 2))
    assert a == b != c


def test_progress(capsys):
    mean, logvar = codes(50)
    information(mean, logvar, torch.arange(50)[:, None] % 2, samples=20, progress=True, seed=0)
    assert "100%" in capsys.readouterr().err
    information(mean, logvar, samples=20, seed=0)
    assert capsys.readouterr().err == ""


def test_no_bar_is_imported_where_none_is_wanted(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    mean, logvar = codes(10)
    information(mean, logvar, seed=0)
    with pytest.raises(ImportError):
        information(mean, logvar, seed=0, progress=True)


def test_memory_grows_as_the_samples_alone():
    """Not as the data: a walk's scratch is that of a chunk."""

    def used(samples, count):
        mean, logvar = codes(count, 4, dtype=torch.float32)
        z = mean[:samples]
        with vaefast.use_backend("cpu"):
            return peak(allocations(lambda: aggregate_log_prob(z, mean, logvar, chunk=512))[1])

    assert used(500, 8000) <= used(500, 2000) + 1000
    assert used(500, 8000) <= 16 * 512 * 4 + 500 * 5 * 8 * 4


def test_sums_over_many_are_as_exact_as_over_few():
    """Chunks are added in float64: 300,000 posteriors in float32 leave an error of a few roundings."""
    mean, logvar = codes(300_000, 2, dtype=torch.float32)
    z = mean[:3]
    for a, e in zip(aggregate_log_prob(z, mean, logvar), plain(*[t.double() for t in (z, mean, logvar)]), strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=4e-6)


def test_errors():
    z = torch.zeros(4, 2)
    factors = torch.arange(4)[:, None]
    for error, words, call in [
        (ValueError, "logvar must have mean's shape", lambda: information(z, z[:2])),
        (ValueError, "mean's length must be at least 1, got 0", lambda: information(z[:0], z[:0])),
        (ValueError, "samples must be at least 1, got 0", lambda: information(z, z, samples=0)),
        (ValueError, "chunk must be at least 1, got 0", lambda: information(z, z, chunk=0)),
        (ValueError, "at least one posterior", lambda: aggregate_log_prob(z, z[:0], z[:0])),
        (ValueError, "mean must have z's event shape", lambda: aggregate_log_prob(z, z[:, :1], z[:, :1])),
        (TypeError, "factors must be a tensor of integers, got torch.float32", lambda: information(z, z, z)),
        (TypeError, "factors must be a tensor of integers, got list", lambda: information(z, z, [1])),
        (ValueError, r"factors must have shape \(4, K\)", lambda: information(z, z, factors[:3])),
        (
            ValueError,
            "at least two values each, column 1 takes one",
            lambda: information(z, z, torch.tensor([[0, 1]] * 3 + [[1, 1]])),
        ),
        (ValueError, "at least two dimensions", lambda: information(z[:, :1], z[:, :1], factors)),
        (TypeError, "mean must be a tensor", lambda: information([0.0], z)),
    ]:
        with pytest.raises(error, match=words):
            call()
