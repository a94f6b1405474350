"""The Gaussian latent and likelihood: values that mathematics gives, extremes, bounds, moments, and refusals."""

from __future__ import annotations

import math

import pytest
import torch
from samples import DTYPES, cotangents, gradients, seed_tensor

import vaefast

INF, NAN = math.inf, math.nan


def _pair(backend, mu, logvar, dtype=torch.float32):
    """mu and logvar of one sample, as leaves."""
    return [torch.tensor([v], device=backend.device, dtype=dtype, requires_grad=True) for v in (mu, logvar)]


def _excess(x: float) -> float:
    """exp(x) - 1 - x without cancellation."""
    return sum(x**k / math.factorial(k) for k in range(2, 25)) if abs(x) < 1 else math.expm1(x) - x


# Values


@pytest.mark.parametrize(
    ("mu", "logvar", "kl"),
    [
        ([0.0, 0.0], [0.0, 0.0], 0.0),  # the prior itself
        ([1.0, 2.0], [0.0, 0.0], 2.5),  # mu^2 / 2
        ([0.0], [math.log(4)], 1.5 - math.log(2)),  # (4 - 1 - log 4) / 2
        ([0.0], [-math.log(4)], math.log(2) - 0.375),
        ([3.0, 0.0], [math.log(2), math.log(2)], 5.5 - math.log(2)),
    ],
)
def test_kl_standard_normal_values(backend, mu, logvar, kl):
    mu, logvar = _pair(backend, mu, logvar)
    for actual in (vaefast.kl_standard_normal(mu, logvar), vaefast.rsample_kl(mu, logvar, seed=0)[1]):
        assert actual.shape == (1,)
        assert actual.item() == pytest.approx(kl, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    ("q", "p", "kl"),
    [
        ((1.0, 0.5), (1.0, 0.5), 0.0),  # equal distributions
        ((1.0, 0.0), (0.0, 0.0), 0.5),
        ((3.0, 0.0), (1.0, math.log(4)), (0.25 - 1 + math.log(4) + 1) / 2),
        ((0.0, math.log(2)), (0.0, math.log(4)), (0.5 - 1 + math.log(2)) / 2),
    ],
)
def test_kl_normal_values(backend, q, p, kl):
    tensors = [torch.tensor([[v]], device=backend.device) for v in (*q, *p)]
    assert vaefast.kl_normal(*tensors).item() == pytest.approx(kl, rel=1e-6, abs=1e-9)


def test_kl_normal_against_the_prior_is_kl_standard_normal(backend):
    dtype = torch.float64
    mu, logvar = (torch.randn(4, 9, dtype=dtype, device=backend.device) for _ in range(2))
    zero = torch.zeros(9, dtype=dtype, device=backend.device)
    expected = vaefast.kl_standard_normal(mu, logvar)
    torch.testing.assert_close(vaefast.kl_normal(mu, logvar, zero, zero), expected, rtol=1e-13, atol=0)


def test_kl_is_the_mean_log_ratio(backend):
    """KL = E_q[log q(z) - log p(z)]: sampling and divergence agree about what q is. 5 standard errors."""
    mu, logvar = (torch.tensor([v], device=backend.device, dtype=torch.float64) for v in (0.7, -0.9))
    n = 400_000
    z, kl = vaefast.rsample_kl(mu.expand(n).contiguous(), logvar.expand(n).contiguous(), seed=1)
    q, p = torch.distributions.Normal(mu, (logvar / 2).exp()), torch.distributions.Normal(0.0, 1.0)
    ratio = q.log_prob(z) - p.log_prob(z)
    assert abs(ratio.mean() - kl[0]) < 5 * ratio.std() / math.sqrt(n)


def test_gradients_by_hand(backend):
    """mu = 2, logvar = log 4, z = mu + 2 eps: dz = (1, eps), dKL = (2, 1.5)."""
    seed = seed_tensor(42, 0, backend.device)
    eps = vaefast.standard_normal((1, 1), seed=seed).item()
    mu, logvar = _pair(backend, [2.0], [math.log(4)])
    z, kl = vaefast.rsample_kl(mu, logvar, seed=seed)
    assert z.item() == pytest.approx(2 + 2 * eps, rel=1e-6)
    (3 * z.sum() + 10 * kl.sum()).backward()
    assert mu.grad.item() == pytest.approx(3 + 10 * 2, rel=1e-6)
    assert logvar.grad.item() == pytest.approx(3 * eps + 10 * 1.5, rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_pass_is_the_two_ops(backend, dtype):
    """rsample_kl is rsample and kl_standard_normal, and rsample_kl_moments is rsample_kl of the halves."""
    moments = torch.randn(5, 6, 4, 3, device=backend.device, dtype=dtype, requires_grad=True)
    mu, logvar = moments.chunk(2, 1)
    z, kl = vaefast.rsample_kl_moments(moments, 1, seed=3)
    assert torch.equal(z, vaefast.rsample(mu, logvar, seed=3))
    torch.testing.assert_close(kl, vaefast.kl_standard_normal(mu, logvar), rtol=1e-6, atol=0)
    halves = vaefast.rsample_kl(mu, logvar, seed=3)
    assert torch.equal(halves[0], z)
    torch.testing.assert_close(halves[1], kl, rtol=1e-6, atol=0)
    grads = cotangents((z, kl))
    assert torch.equal(*gradients((z, kl), [moments], grads), *gradients(halves, [moments], grads))


@pytest.mark.parametrize("batch_ndim", [0, 1, 2])
@pytest.mark.parametrize("dim", [2, 3, -1, -2])
def test_moments_in_any_dim_of_the_event(backend, batch_ndim, dim):
    moments = torch.randn(3, 4, 6, 8, device=backend.device, requires_grad=True)
    outputs = vaefast.rsample_kl_moments(moments, dim, seed=3, batch_ndim=batch_ndim)
    mu, logvar = moments.detach().chunk(2, dim)
    pair = [t.contiguous().requires_grad_() for t in (mu, logvar)]
    expected = vaefast.rsample_kl(*pair, seed=3, batch_ndim=batch_ndim)
    assert outputs[1].shape == (3, 4, 6, 8)[:batch_ndim]
    torch.testing.assert_close(outputs, expected, rtol=1e-6, atol=0)
    (actual,) = gradients(outputs, [moments])
    torch.testing.assert_close(actual, torch.cat(gradients(expected, pair), dim), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_kl_normal_of_numbers(backend, dtype):
    mu, logvar = torch.randn(2, 5, 4, device=backend.device, dtype=dtype).unbind()
    scalar = torch.tensor(0.3, device=backend.device, dtype=dtype, requires_grad=True)
    full = torch.full_like(mu, 0.3).requires_grad_()
    found, expected = vaefast.kl_normal(mu, logvar, scalar, -1.0), vaefast.kl_normal(mu, logvar, full, -1.0)
    assert torch.equal(found, expected)
    assert torch.equal(expected, vaefast.kl_normal(mu, logvar, full, torch.full_like(mu, -1.0)))
    torch.testing.assert_close(gradients([found], [scalar])[0], gradients([expected], [full])[0].sum())
    torch.testing.assert_close(vaefast.kl_normal(mu, logvar, 0, 0), vaefast.kl_standard_normal(mu, logvar))


def test_kl_normal_broadcasts_the_prior(backend):
    """A prior [D], or one number, against a batch [B, D]; its gradient is summed."""
    q = [torch.randn(5, 4, device=backend.device, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    for shape in ((4,), (1, 4), (5, 1), (1,)):
        p = [torch.randn(shape, device=backend.device, dtype=torch.float64, requires_grad=True) for _ in range(2)]
        kl = vaefast.kl_normal(*q, *p)
        full = [t.detach().expand(5, 4).contiguous().requires_grad_() for t in p]
        expected = vaefast.kl_normal(*q, *full)
        torch.testing.assert_close(kl, expected, rtol=1e-13, atol=0)
        sums = [g.sum_to_size(shape) for g in gradients([expected], full)]
        torch.testing.assert_close(list(gradients([kl], p)), sums, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("a", "b", "common"),
    [
        (torch.float16, torch.float32, torch.float32),
        (torch.float16, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float64, torch.float64),
    ],
)
def test_two_types_are_promoted(backend, a, b, common):
    mu, logvar = (torch.randn(3, 5, device=backend.device, dtype=d, requires_grad=True) for d in (a, b))
    z, kl = vaefast.rsample_kl(mu, logvar, seed=0)
    assert (z.dtype, kl.dtype) == (common, common)
    grads = gradients((z, kl), (mu, logvar))
    assert [g.dtype for g in grads] == [a, b]
    expected = vaefast.rsample_kl(mu.to(common), logvar.to(common), seed=0)
    assert torch.equal(z, expected[0])
    assert vaefast.kl_normal(mu, mu, logvar, logvar).dtype == common


# Near the prior, where the plain formula loses every digit


@pytest.mark.parametrize("scale", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
@pytest.mark.parametrize("signs", [(1, 1), (0, 1), (0, -1)])
def test_kl_near_the_prior(backend, scale, signs):
    mu, logvar = _pair(backend, *([sign * scale] * 64 for sign in signs))
    m, v = mu.detach()[0, 0].double().item(), logvar.detach()[0, 0].double().item()
    expected = 64 * 0.5 * (m * m + _excess(v))
    for kl in (vaefast.kl_standard_normal(mu, logvar), vaefast.rsample_kl(mu, logvar, seed=0)[1]):
        assert kl.item() == pytest.approx(expected, rel=1e-5, abs=0)
    grad_mu, grad_logvar = gradients([kl], (mu, logvar), [torch.ones_like(kl)])
    assert grad_mu[0, 0].item() == pytest.approx(m, rel=1e-5, abs=0)
    assert grad_logvar[0, 0].item() == pytest.approx(0.5 * math.expm1(v), rel=1e-5, abs=0)


@pytest.mark.parametrize("scale", [1e-1, 1e-2, 1e-3, 1e-4])
def test_kl_between_near_distributions(backend, scale):
    q, p = _pair(backend, [2.0 + scale], [-1.0 + scale]), _pair(backend, [2.0], [-1.0])
    (mq, vq), (mp, vp) = ([t.detach().double().item() for t in pair] for pair in (q, p))
    expected = 0.5 * ((mq - mp) ** 2 * math.exp(-vp) + _excess(vq - vp))
    assert vaefast.kl_normal(*q, *p).item() == pytest.approx(expected, rel=1e-5, abs=0)


# Extremes: what mathematics gives, or inf where the type ends; never a wrong finite number


@pytest.mark.parametrize(
    ("mu", "logvar", "kl"),
    [
        (0.0, 100.0, INF),  # exp(100) is past float32
        (0.0, 88.0, 0.5 * (math.exp(88.0) - 89.0)),
        (0.0, -100.0, 49.5),
        (2.0, -100.0, 51.5),
        (0.0, -1e30, 5e29),
        (0.0, INF, INF),
        (0.0, -INF, INF),
        (1e30, 0.0, INF),  # mu^2 is past float32
        (-1e30, -100.0, INF),
        (1e18, 0.0, 5e35),
        (INF, 0.0, INF),
        (-INF, INF, INF),
        (NAN, 0.0, NAN),
        (0.0, NAN, NAN),
        (INF, NAN, NAN),
    ],
)
@pytest.mark.parametrize("neighbours", [0, 40])
def test_kl_extremes(backend, mu, logvar, kl, neighbours):
    """Also among ordinary elements: no inf - inf on the way through the sum."""
    pair = _pair(backend, [mu] + [0.0] * neighbours, [logvar] + [0.0] * neighbours)
    for actual in (vaefast.kl_standard_normal(*pair), vaefast.rsample_kl(*pair, seed=0)[1]):
        assert actual.item() == pytest.approx(kl, rel=1e-5, nan_ok=True)


@pytest.mark.parametrize(
    ("q", "p", "kl"),
    [
        ((0.0, 0.0), (0.0, 100.0), 49.5),
        ((0.0, 0.0), (0.0, -100.0), INF),
        ((3.0, 0.0), (3.0, INF), INF),
        ((3.0, -INF), (3.0, 0.0), INF),
        ((1e30, 0.0), (1e30, 0.0), 0.0),
        ((1e30, 0.0), (-1e30, 0.0), INF),
        ((1e10, 100.0), (0.0, 100.0), 0.5 * 1e20 * math.exp(-100)),
        ((0.0, NAN), (0.0, 0.0), NAN),
        ((0.0, 0.0), (NAN, 0.0), NAN),
        ((0.0, 0.0), (0.0, NAN), NAN),
    ],
)
def test_kl_normal_extremes(backend, q, p, kl):
    tensors = [torch.tensor([[v]], device=backend.device) for v in (*q, *p)]
    assert vaefast.kl_normal(*tensors).item() == pytest.approx(kl, rel=1e-5, abs=0, nan_ok=True)


@pytest.mark.parametrize(
    ("mu", "logvar", "sigma"),
    [
        (0.0, 100.0, math.exp(50.0)),
        (1.0, -100.0, math.exp(-50.0)),
        (0.0, -170.0, math.exp(-85.0)),
        (0.0, 170.0, math.exp(85.0)),
        (0.0, 200.0, INF),
        (0.0, -400.0, 0.0),
        (5.0, -INF, 0.0),
        (5.0, INF, INF),
        (1e30, 0.0, 1.0),
        (INF, 0.0, 1.0),
        (NAN, 0.0, 1.0),
        (0.0, NAN, NAN),
    ],
)
def test_rsample_extremes(backend, mu, logvar, sigma):
    seed = seed_tensor(1, 0, backend.device)
    eps = vaefast.standard_normal((1, 16), seed=seed).double()
    pair = _pair(backend, [mu] * 16, [logvar] * 16)
    expected = mu + sigma * eps
    z = vaefast.rsample(*pair, seed=seed)
    torch.testing.assert_close(z.double(), expected, rtol=1e-5, atol=0, equal_nan=True)
    assert torch.equal(vaefast.rsample_kl(*pair, seed=seed)[0].nan_to_num(), z.nan_to_num())
    (grad,) = gradients([z], pair[1:], [torch.ones_like(z)])
    torch.testing.assert_close(grad.double(), 0.5 * sigma * eps, rtol=1e-5, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_in_is_nan_out(backend, dtype):
    """A NaN reaches z, kl and both gradients of its element, and no other element."""
    mu = torch.zeros(3, 40, device=backend.device, dtype=dtype)
    logvar = torch.zeros_like(mu)
    logvar[1, 7] = NAN
    mu.requires_grad_(), logvar.requires_grad_()
    z, kl = vaefast.rsample_kl(mu, logvar, seed=0)
    nan = torch.isnan(logvar.detach())
    assert torch.equal(torch.isnan(z), nan)
    assert torch.equal(torch.isnan(kl), nan.any(1))
    grad_mu, grad_logvar = gradients((z, kl), (mu, logvar))
    assert torch.isfinite(grad_mu).all()  # grad_z + grad_kl * mu does not see logvar
    assert torch.equal(torch.isnan(grad_logvar), nan)


def test_fp16_kl_does_not_overflow(backend):
    """exp(20) and mu^2 are past fp16; the sum is float32 all the way."""
    mu, logvar = _pair(backend, [300.0] * 8, [20.0] * 8, torch.float16)
    kl = vaefast.kl_standard_normal(mu, logvar)
    assert kl.dtype == torch.float32
    assert kl.item() == pytest.approx(8 * 0.5 * (300.0**2 + math.exp(20.0) - 21.0), rel=1e-5)


# Bounds


@pytest.mark.parametrize("dtype", DTYPES)
def test_bounds_tame_the_extremes(backend, dtype):
    """Finite z, kl and gradients for every finite mu and any logvar but NaN; no gradient outside the bounds."""
    values = [-INF, -1e4, -30.5, -30.0, -1.0, 0.0, 1.0, 5.0, 5.5, 1e4, INF]
    mu, logvar = _pair(backend, [1.0] * len(values), values, dtype)
    z, kl = vaefast.rsample_kl(mu, logvar, seed=2, logvar_bounds=(-30.0, 5.0))
    clamped = vaefast.rsample_kl(mu, logvar.detach().clamp(-30, 5), seed=2)
    torch.testing.assert_close((z, kl), clamped, rtol=1e-6, atol=0)
    _, grad_logvar = grads = gradients((z, kl), (mu, logvar))
    assert all(torch.isfinite(t).all() for t in (z, kl, *grads))
    outside = [not -30 <= v <= 5 for v in values]
    assert [g == 0 for g in grad_logvar[0].tolist()] == outside


def test_bounds_of_kl_normal_hold_for_both(backend):
    q, p = _pair(backend, [0.5], [9.0]), _pair(backend, [0.0], [-9.0])
    kl = vaefast.kl_normal(*q, *p, logvar_bounds=(-2.0, 3.0))
    clamped = [torch.tensor([[v]], device=backend.device) for v in (0.5, 3.0, 0.0, -2.0)]
    torch.testing.assert_close(kl, vaefast.kl_normal(*clamped), rtol=1e-6, atol=0)
    grads = gradients([kl], (*q, *p))
    assert [g.item() == 0 for g in grads] == [False, True, False, True]


def test_one_sided_bounds(backend):
    mu, logvar = _pair(backend, [0.0, 0.0], [-50.0, 50.0])
    for bounds, expected in (((-INF, 2.0), [-50.0, 2.0]), ((-2.0, INF), [-2.0, 50.0])):
        z = vaefast.rsample(mu, logvar, seed=0, logvar_bounds=bounds)
        assert torch.equal(z, vaefast.rsample(mu, torch.tensor([expected], device=backend.device), seed=0))


# Refusals


def _zeros(*shape, **options):
    return torch.zeros(*shape, **options)


_PAIR_OPS = [vaefast.rsample, vaefast.rsample_kl, vaefast.kl_standard_normal]


@pytest.mark.parametrize("function", _PAIR_OPS, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("mu", "logvar", "error", "message"),
    [
        (1.0, _zeros(2), TypeError, "mu must be a tensor, got float"),
        (_zeros(2), None, TypeError, "logvar must be a tensor, got NoneType"),
        (_zeros(2, dtype=torch.int64), _zeros(2), TypeError, "mu must be float32, .* got torch.int64"),
        (_zeros(2), _zeros(2, dtype=torch.complex64), TypeError, "logvar must be float32, .* got torch.complex64"),
        (_zeros(2), _zeros(2, dtype=torch.bool), TypeError, "logvar must be float32, .* got torch.bool"),
        (_zeros(()), _zeros(()), ValueError, "mu must have at least one dimension"),
        (_zeros(2, 3), _zeros(2, 4), ValueError, r"logvar must have mu's shape \(2, 3\), got \(2, 4\)"),
        (_zeros(2, 3), _zeros(3), ValueError, r"logvar must have mu's shape \(2, 3\), got \(3,\)"),
        (_zeros(2), _zeros(2, device="meta"), ValueError, "logvar must be on mu's device cpu, got meta"),
    ],
)
def test_pair_errors(function, mu, logvar, error, message):
    with pytest.raises(error, match=message):
        function(mu, logvar)


def _options(row):
    """What each argument refuses, of those that the op takes."""
    refusals = [
        ("seed", 1.0, TypeError, "seed must be an int, an int64 tensor .* got float"),
        ("seed", "7", TypeError, "seed must be an int, .* got str"),
        ("seed", False, TypeError, "seed must be an int, .* got bool"),
        ("seed", -(2**63) - 1, ValueError, "seed must fit in 64 bits"),
        ("seed", _zeros(2, dtype=torch.int32), TypeError, "seed must be .* got torch.int32"),
        ("seed", _zeros((), dtype=torch.int64), ValueError, r"seed must be .* got shape \(\)"),
        ("seed", _zeros(2, dtype=torch.int64, device="meta"), ValueError, "seed must be on cpu, got meta"),
        ("batch_ndim", -1, ValueError, "batch_ndim must be from 0 to .* 2, got -1"),
        ("batch_ndim", 3, ValueError, "batch_ndim must be from 0 to .* 2, got 3"),
        ("batch_ndim", 1.0, TypeError, "batch_ndim must be an int, got float"),
        ("batch_ndim", True, TypeError, "batch_ndim must be an int, got bool"),
        ("logvar_bounds", (1.0, -1.0), ValueError, r"logvar_bounds must be .* lo <= hi, got \(1.0, -1.0\)"),
        ("logvar_bounds", (NAN, 1.0), ValueError, "logvar_bounds must be .* lo <= hi"),
        ("logvar_bounds", 3.0, TypeError, "logvar_bounds must be None or a pair"),
        ("logvar_bounds", (1.0,), TypeError, "logvar_bounds must be None or a pair"),
        ("logvar_bounds", ("a", "b"), TypeError, "logvar_bounds must be None or a pair"),
    ]
    return [refusal for refusal in refusals if row.takes(refusal[0])]


def test_option_errors(row):
    function, arguments = getattr(vaefast, row.name), row.arguments(row.inputs((4, 6)))
    for argument, value, error, message in _options(row):
        with pytest.raises(error, match=message):
            function(*arguments, **{argument: value})


@pytest.mark.parametrize(
    ("moments", "options", "error", "message"),
    [
        ([1.0], {}, TypeError, "moments must be a tensor, got list"),
        (_zeros(()), {}, ValueError, "moments must have at least one dimension"),
        (_zeros(4, dtype=torch.uint8), {}, TypeError, "moments must be float32, .* got torch.uint8"),
        (_zeros(4, 5), {}, ValueError, r"moments must have an even size at dim 1, got shape \(4, 5\)"),
        (_zeros(4, 6), {"dim": 0}, ValueError, "dim must be a dimension of the event"),
        (_zeros(4, 6), {"dim": -2}, ValueError, "dim must be a dimension of the event"),
        (_zeros(4, 6), {"dim": 2}, ValueError, "dim must be a dimension of the event"),
        (_zeros(4), {}, ValueError, "dim must be a dimension of the event"),
        (_zeros(4, 6), {"dim": 1.0}, TypeError, "dim must be an int, got float"),
        (_zeros(4, 6, 2), {"dim": 1, "batch_ndim": 2}, ValueError, "dim must be a dimension of the event"),
    ],
)
def test_moments_errors(moments, options, error, message):
    with pytest.raises(error, match=message):
        vaefast.rsample_kl_moments(moments, **options)


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        ((_zeros(2, 3), _zeros(2, 3), _zeros(4), _zeros(4)), ValueError, r"must broadcast.*mu_p \(4,\)"),
        ((0.0, _zeros(2), _zeros(2), _zeros(2)), TypeError, "mu_q must be a tensor, got float"),
        ((_zeros(2), _zeros(2), "0", _zeros(2)), TypeError, "mu_p must be a tensor, got str"),
        ((_zeros(2), _zeros(2), _zeros(2), _zeros(2, dtype=torch.int8)), TypeError, "logvar_p must be float32"),
        ((_zeros(()), _zeros(2), _zeros(2), _zeros(2)), ValueError, "mu_q must have at least one dimension"),
        (
            (_zeros(2), _zeros(2), _zeros(2, device="meta"), _zeros(2, device="meta")),
            ValueError,
            "mu_p must be on mu_q's",
        ),
    ],
)
def test_kl_normal_errors(tensors, error, message):
    with pytest.raises(error, match=message):
        vaefast.kl_normal(*tensors)


# The likelihood


def _likelihood(backend, x, logvar, dtype=torch.float32):
    """nll of x under mean 0, and its gradients by mu and logvar."""
    mu, x, logvar = (
        torch.tensor([[v]], dtype=dtype, device=backend.device, requires_grad=True) for v in (0.0, x, logvar)
    )
    nll = vaefast.gaussian_nll(mu, x, logvar)
    return nll.item(), *[g.item() for g in torch.autograd.grad(nll.sum(), (mu, logvar))]


HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)


@pytest.mark.parametrize(
    ("x", "logvar", "nll", "grad_mu", "grad_logvar"),
    [
        (0.0, 0.0, HALF_LOG_2_PI, 0.0, 0.5),
        (2.0, math.log(4), 0.5 + math.log(2) + HALF_LOG_2_PI, -0.5, 0.0),
        (0.0, -400.0, -200 + HALF_LOG_2_PI, 0.0, 0.5),  # a hit costs nothing however small the variance
        (0.0, -INF, -INF, 0.0, 0.5),
        (1.0, -400.0, INF, -INF, -INF),
        (1.0, -INF, INF, -INF, -INF),
        (1.0, 400.0, 200 + HALF_LOG_2_PI, 0.0, 0.5),
        (1e25, 0.0, INF, -1e25, -INF),
        (1e25, 80.0, 0.5e50 * math.exp(-80) + 40 + HALF_LOG_2_PI, -1e25 * math.exp(-80), -0.5e50 * math.exp(-80)),
    ],
)
def test_gaussian_nll_values(backend, x, logvar, nll, grad_mu, grad_logvar):
    assert _likelihood(backend, x, logvar) == pytest.approx((nll, grad_mu, grad_logvar), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("logvar", [0, -3.7, 11.0, -400.0])
def test_a_number_is_a_variance_for_all(backend, logvar, dtype):
    """A number, a 0-d tensor, one per sample and one per element: the same value and gradient."""
    mu = torch.randn(4, 30, dtype=dtype, device=backend.device, requires_grad=True)
    x = torch.where(torch.rand(4, 30, device=backend.device) < 0.5, mu.detach(), 0.1).requires_grad_()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    nll = vaefast.gaussian_nll(mu, x, logvar)
    grads = torch.autograd.grad(nll.sum(), (mu, x))
    for shape in ((), (4, 1), (4, 30)):
        tensor = torch.full(shape, float(logvar), dtype=wide, device=backend.device, requires_grad=True)
        expected = vaefast.gaussian_nll(mu, x, tensor)
        torch.testing.assert_close(nll, expected, rtol=1e-6, atol=0)
        *expected_grads, by_logvar = torch.autograd.grad(expected.sum(), (mu, x, tensor))
        assert by_logvar.shape == shape
        torch.testing.assert_close(grads, tuple(expected_grads))


def test_a_number_under_compile_may_change(backend, compiler):
    compiled = torch.compile(vaefast.gaussian_nll, fullgraph=True)
    mu, x = (torch.randn(4, 6, device=backend.device, requires_grad=True) for _ in range(2))
    for logvar in (0.0, -1.5, 2.25):
        torch.testing.assert_close(compiled(mu, x, logvar), vaefast.gaussian_nll(mu, x, logvar))


def test_logvar_errors(backend):
    mu = torch.zeros(2, 3, device=backend.device)
    for wrong, error in ((None, "NoneType"), ("0", "str"), (True, "bool")):
        with pytest.raises(TypeError, match=f"logvar must be a tensor, got {error}"):
            vaefast.gaussian_nll(mu, mu, wrong)


# The optimal variance


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_optimal_sigma_is_the_gaussian_at_its_sigma(backend, per_sample, weighted):
    """Value and gradient of gaussian_nll whose sigma is the root mean squared error plus exp(-6)."""
    generator = torch.Generator().manual_seed(0)
    mu, x = (torch.randn(5, 3, 7, generator=generator, dtype=torch.float64).to(backend.device) for _ in range(2))
    mu.requires_grad_(), x.requires_grad_()
    weight = (torch.rand(3, 7, generator=generator) * 2).double().to(backend.device) if weighted else None
    nll = vaefast.optimal_sigma_nll(mu, x, per_sample=per_sample, weight=weight)
    w = torch.ones_like(mu) if weight is None else weight.expand(mu.shape)
    error, dims = w * (x - mu).square(), (1, 2) if per_sample else (0, 1, 2)
    sigma = (error.sum(dims, keepdim=True) / w.sum(dims, keepdim=True)).sqrt() + math.exp(-6)
    expected = vaefast.gaussian_nll(mu, x, 2 * sigma.log(), weight=weight)
    torch.testing.assert_close(nll, expected, rtol=1e-12, atol=0)
    grads = cotangents([nll])
    torch.testing.assert_close(
        gradients([nll], (mu, x), grads), gradients([expected], (mu, x), grads), rtol=1e-10, atol=0
    )


def test_optimal_sigma_is_optimal(backend):
    """With no floor, no other variance is better, and the gradient through sigma vanishes."""
    mu, x = (torch.randn(6, 40, dtype=torch.float64, device=backend.device, requires_grad=True) for _ in range(2))
    best = vaefast.optimal_sigma_nll(mu, x, log_sigma_min=-INF).sum()
    mse = (x - mu).square().mean().item()
    (grad,) = torch.autograd.grad(best, mu)
    torch.testing.assert_close(grad, (mu - x) / mse, rtol=1e-10, atol=1e-12)
    for factor in (0.9, 0.999, 1.0, 1.001, 1.1):
        other = vaefast.gaussian_nll(mu, x, math.log(mse * factor)).sum().item()
        assert best.item() <= other + 1e-9
        assert (best.item() == pytest.approx(other, abs=1e-9)) == (factor == 1.0)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_optimal_sigma_without_error(backend, per_sample, dtype):
    """A perfect reconstruction stands at the floor, and nothing pulls; nor does a sample of which nothing counts."""
    x = torch.randn(3, 8, dtype=dtype, device=backend.device)
    mu = x.clone().requires_grad_()
    nll = vaefast.optimal_sigma_nll(mu, x, per_sample=per_sample)
    torch.testing.assert_close(nll, torch.full_like(nll, 8 * (HALF_LOG_2_PI - 6)), rtol=1e-6, atol=0)
    assert not torch.autograd.grad(nll.sum(), mu)[0].any()
    weight = torch.tensor([[1.0], [0.0], [1.0]], device=backend.device)
    nll = vaefast.optimal_sigma_nll(mu + 1, x, per_sample=per_sample, weight=weight)
    assert nll[1] == 0
    grad = torch.autograd.grad(nll.sum(), mu)[0]
    assert grad.isfinite().all()
    assert not grad[1].any()


def test_optimal_sigma_of_numbers_with_weights(backend):
    """No event: each number is a sample."""
    mu, x = torch.zeros(3, device=backend.device), torch.ones(3, device=backend.device)
    nll = vaefast.optimal_sigma_nll(mu, x, weight=torch.ones_like(x))
    torch.testing.assert_close(nll, vaefast.optimal_sigma_nll(mu, x))


@pytest.mark.parametrize("x", [0.0, 1.0])
def test_a_variance_of_0_as_a_number_and_as_a_tensor(backend, x):
    mu, x = (torch.full((1, 1), v, device=backend.device) for v in (0.0, x))
    tensor = torch.full((), -INF, device=backend.device)
    assert torch.equal(vaefast.gaussian_nll(mu, x, -INF), vaefast.gaussian_nll(mu, x, tensor))


def test_optimal_sigma_of_bytes(backend):
    mu = torch.rand(4, 20, device=backend.device)
    x = torch.randint(0, 256, (4, 20), dtype=torch.uint8, device=backend.device)
    expected = vaefast.optimal_sigma_nll(mu, x.float() / 255)
    torch.testing.assert_close(vaefast.optimal_sigma_nll(mu, x), expected, rtol=1e-6, atol=0)
