"""Likelihoods of counts: what mathematics gives, to 50 digits; extremes, limits, kinds of data, and refusals."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch

import vaefast

INF = math.inf
mpmath.mp.dps = 50
log_gamma = mpmath.loggamma


def _poisson(log_rate, x):
    return mpmath.exp(log_rate) - x * log_rate + log_gamma(x + 1)


def _negative_binomial(mu, x, log_theta):
    theta = mpmath.exp(log_theta)
    nll = theta * mpmath.log1p(mu / theta) - log_gamma(x + theta) + log_gamma(theta) + log_gamma(x + 1)
    return nll - x * mpmath.log(mu / (mu + theta))


def _zero_inflated(mu, x, log_theta, gate_logits):
    nll = _negative_binomial(mu, x, log_theta)
    gate, rest = (1 / (1 + mpmath.exp(v)) for v in (-gate_logits, gate_logits))
    return -mpmath.log(gate + rest * mpmath.exp(-nll)) if x == 0 else nll - mpmath.log(rest)


def _binomial(logits, x, total):
    choose = log_gamma(total + 1) - log_gamma(x + 1) - log_gamma(total - x + 1)
    return total * mpmath.log1p(mpmath.exp(logits)) - x * logits - choose


def _beta_binomial(logits, x, total, log_concentration):
    c, p = mpmath.exp(log_concentration), 1 / (1 + mpmath.exp(-logits))
    choose = log_gamma(total + 1) - log_gamma(x + 1) - log_gamma(total - x + 1)
    ratio = sum(log_gamma(n + a) - log_gamma(a) for n, a in ((x, c * p), (total - x, c * (1 - p))))
    return log_gamma(total + c) - log_gamma(c) - choose - ratio


# the truth, and which of its arguments are differentiated
EXACT = {
    "poisson_nll": (_poisson, (0,)),
    "negative_binomial_nll": (_negative_binomial, (0, 2)),
    "zero_inflated_negative_binomial_nll": (_zero_inflated, (0, 2, 3)),
    "binomial_nll": (_binomial, (0,)),
    "beta_binomial_nll": (_beta_binomial, (0, 3)),
}
COUNTS = (0.0, 1.0, 3.0, 40.0, 1e4, 1e6)
MEANS = (0.02, 0.7, 1.6, 1.003)  # of the count, or of 1 where it is 0
CASES = {
    "poisson_nll": [(math.log(m * max(x, 1)), x) for x in COUNTS for m in MEANS],
    "negative_binomial_nll": [
        (m * max(x, 1), x, math.log(theta)) for x in COUNTS for m in MEANS for theta in (1e-6, 0.03, 1, 20, 1e4, 1e6)
    ],
    "zero_inflated_negative_binomial_nll": [
        (m * max(x, 1), x, math.log(theta), gate)
        for x in (0.0, 2.0, 1e4)
        for m in MEANS
        for theta in (1e-6, 1, 1e6)
        for gate in (-1e4, -90, -3, 0.5, 60)
    ],
    "binomial_nll": [
        (logits, x, n)
        for n in (1.0, 2.0, 30.0, 1e4)
        for x in sorted({0, 1, n // 3, n})
        for logits in (-6, -0.69, 0.1, 4, 200)
    ],
    "beta_binomial_nll": [
        (logits, x, n, math.log(c))
        for n in (1.0, 30.0, 1e4)
        for x in sorted({0, 1, n // 3, n})
        for logits in (-6, -0.69, 4)
        for c in (1e-5, 0.5, 2, 50, 1e6)
    ],
}


def _evaluate(name, columns):
    """nll of each element by itself, and the gradients of its sum."""
    differentiated = EXACT[name][1]
    tensors = [c.clone().requires_grad_(i in differentiated) for i, c in enumerate(columns)]
    nll = getattr(vaefast, name)(*tensors, batch_ndim=1)
    return nll.detach(), torch.autograd.grad(nll.sum(), [tensors[i] for i in differentiated])


def _error(actual, expected, floor):
    """Largest error, relative to the truth or to `floor`, the size of what cancels in it. NaN if one is."""
    errors = [
        float(abs(mpmath.mpf(a) - e) / max(abs(e), f)) for a, e, f in zip(actual.tolist(), expected, floor, strict=True)
    ]
    return torch.tensor(errors, dtype=torch.float64).max()


# in float64 the reference, which adds up ln Γ of counts up to 1e6, is off by 1.1e-8
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 5e-6), (torch.float64, 2e-8)])
@pytest.mark.parametrize("name", EXACT)
def test_against_fifty_digits(backend, name, dtype, most):
    """Values to their own size or 1, gradients to theirs or, where terms cancel, to 1e-3 of the largest that does."""
    exact, differentiated = EXACT[name]
    columns = [torch.tensor(c, dtype=dtype, device=backend.device) for c in zip(*CASES[name], strict=True)]
    cases = [[mpmath.mpf(v) for v in case] for case in zip(*[c.tolist() for c in columns], strict=True)]
    nll, grads = _evaluate(name, columns)
    expected = [exact(*case) for case in cases]
    assert _error(nll, expected, [1] * len(cases)) < most
    for i, grad in zip(differentiated, grads, strict=True):
        with mpmath.workdps(80):
            truth = [
                mpmath.diff(
                    lambda v, case=case, i=i: exact(*case[:i], v, *case[i + 1 :]), case[i], h=mpmath.mpf(10) ** -30
                )
                for case in cases
            ]
        assert _error(grad, truth, [_cancelling(name, i, case) for case in cases]) < most, f"gradient {i}"


def _cancelling(name, i, case):
    """A thousandth of the largest terms whose difference the gradient is."""
    if name == "poisson_nll":
        return case[1] + mpmath.exp(case[0])
    if "negative" in name:
        mu, x, log_theta = case[:3]
        theta = mpmath.exp(log_theta)
        return [1e-3 / mu, 0, 1e-3 * (x + (x - mu) ** 2 / (mu + theta)) / (x + theta), 1e-35][i] + mpmath.mpf(1e-37)
    return case[2] if i == 0 else 1e-3 * case[2] / (case[2] + mpmath.exp(case[3])) + 1e-1


@pytest.mark.parametrize("theta", [1e4, 1e5, 1e6])
def test_gradient_of_large_inverse_dispersion(backend, theta):
    """Where a float32 ln Γ leaves nothing of it: (x - (x - mu)^2) / 2 theta, to a thousandth and better."""
    generator = torch.Generator().manual_seed(0)
    mu = torch.exp(2 * torch.randn(400, generator=generator))
    x = torch.poisson(mu, generator=generator)
    log_theta = torch.full((400,), math.log(theta))
    tensors = [t.to(backend.device)[:, None] for t in (mu, x, log_theta)]
    _, (_, grad) = _evaluate("negative_binomial_nll", tensors)
    with vaefast.use_backend("reference"):
        _, (_, exact) = _evaluate("negative_binomial_nll", [t.double() for t in tensors])
    error = ((grad.double() - exact).abs() / exact.abs()).flatten()
    assert error.median() < 1e-6
    assert error.max() < 1e-3
    # ours is the truth where it is known in closed form
    one = mpmath.diff(lambda v: _negative_binomial(mpmath.mpf(2), mpmath.mpf(5), v), mpmath.log(theta))
    args = [torch.tensor([[v]], device=backend.device) for v in (2.0, 5.0, math.log(theta))]
    assert _evaluate("negative_binomial_nll", args)[1][1].item() == pytest.approx(float(one), rel=1e-4)


# Distributions


def _support(n):
    return torch.arange(n + 1, dtype=torch.float64)[:, None]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("poisson_nll", lambda x: (torch.full_like(x, 1.3), x)),
        ("negative_binomial_nll", lambda x: (torch.full_like(x, 3.0), x, torch.tensor([0.4], dtype=torch.float64))),
        (
            "zero_inflated_negative_binomial_nll",
            lambda x: (torch.full_like(x, 3.0), x, torch.full_like(x, 0.4), torch.full_like(x, -0.8)),
        ),
        ("binomial_nll", lambda x: (torch.full_like(x, 0.3), x, len(x) - 1)),
        ("beta_binomial_nll", lambda x: (torch.full_like(x, 0.3), x, len(x) - 1, torch.full_like(x, -0.2))),
    ],
)
def test_probabilities_sum_to_one(backend, name, arguments):
    tensors = [t.to(backend.device) if isinstance(t, torch.Tensor) else t for t in arguments(_support(300))]
    total = (-getattr(vaefast, name)(*tensors)).exp().sum()
    assert total.item() == pytest.approx(1, rel=1e-12)


def test_known_cases(backend):
    """theta = 1 is geometric, one trial is Bernoulli, alpha = beta = 1 is uniform on 0…total."""
    x = torch.arange(6.0, dtype=torch.float64, device=backend.device)[:, None]
    mu = torch.full_like(x, 2.5)
    geometric = math.log1p(2.5) - x[:, 0] * math.log(2.5 / 3.5)
    torch.testing.assert_close(vaefast.negative_binomial_nll(mu, x, torch.zeros_like(x)), geometric, rtol=1e-13, atol=0)
    uniform = vaefast.beta_binomial_nll(torch.zeros_like(x), x, 5, torch.full_like(x, math.log(2)))
    torch.testing.assert_close(uniform, torch.full_like(uniform, math.log(6)), rtol=1e-13, atol=0)
    logits = torch.linspace(-3, 3, 6, dtype=torch.float64, device=backend.device)[:, None]
    bernoulli = vaefast.bernoulli_nll(logits, x % 2)
    torch.testing.assert_close(vaefast.binomial_nll(logits, x % 2, 1), bernoulli, rtol=1e-13, atol=0)


# Limits and extremes


def _one(name, *values, device="cpu", dtype=torch.float32):
    """nll and gradients at one element."""
    nll, grads = _evaluate(name, [torch.tensor([[float(v)]], device=device, dtype=dtype) for v in values])
    return nll.item(), [g.item() for g in grads]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mean_of_zero(backend, dtype):
    nll, (grad_mu, grad_log_theta) = _one("negative_binomial_nll", 0, 0, 1.5, device=backend.device, dtype=dtype)
    assert (nll, grad_mu, grad_log_theta) == (0, 1, 0)
    nll, (grad_mu, _) = _one("negative_binomial_nll", 0, 3, 1.5, device=backend.device, dtype=dtype)
    assert (nll, grad_mu) == (INF, -INF)


@pytest.mark.parametrize("x", [0, 4])
def test_infinite_inverse_dispersion_is_poisson(backend, x):
    poisson, _ = _one("poisson_nll", math.log(3), x, device=backend.device)
    for log_theta in (50, 1e4, INF):
        nll, (grad_mu, grad_log_theta) = _one("negative_binomial_nll", 3, x, log_theta, device=backend.device)
        assert nll == pytest.approx(poisson, rel=1e-6)
        assert grad_mu == pytest.approx(1 - x / 3, rel=1e-6)
        assert abs(grad_log_theta) < 1e-17


@pytest.mark.parametrize("log_theta", [-60.0, -1e4, -INF])
def test_vanishing_inverse_dispersion(backend, log_theta):
    """All mass at 0: the nll of any count grows as -log_theta."""
    nll, (grad_mu, grad_log_theta) = _one("negative_binomial_nll", 3, 2, log_theta, device=backend.device)
    assert nll == pytest.approx(-log_theta + math.log(2), rel=1e-6)  # -ln(theta Γ(2) / Γ(3))
    assert grad_log_theta == pytest.approx(-1, rel=1e-6)
    assert abs(grad_mu) < 1e-24
    nll, _ = _one("negative_binomial_nll", 3, 0, log_theta, device=backend.device)
    assert 0 <= nll < 1e-20


@pytest.mark.parametrize("x", [0, 4])
@pytest.mark.parametrize("log_theta", [-2, 9])
def test_gates_open_and_shut(backend, x, log_theta):
    """A gate that is shut leaves the negative binomial; one that is open explains every zero and nothing else."""
    arguments = (3, x, log_theta)
    nb, nb_grads = _one("negative_binomial_nll", *arguments, device=backend.device)
    name = "zero_inflated_negative_binomial_nll"
    for gate in (-1e4, -INF):
        nll, grads = _one(name, *arguments, gate, device=backend.device)
        assert nll == pytest.approx(nb, rel=1e-6)
        assert grads == pytest.approx([*nb_grads, 0], rel=1e-6)
    nll, grads = _one(name, *arguments, 1e4, device=backend.device)
    assert nll == (0 if x == 0 else pytest.approx(1e4 + nb, rel=1e-6))
    assert grads == ([0, 0, 0] if x == 0 else pytest.approx([*nb_grads, 1], rel=1e-6))


def test_gate_against_a_zero_as_unlikely(backend):
    """gate = e^-1e4 and NB(0) = e^-1e4: half the blame each, and nothing underflows."""
    mu, log_theta = 1e4, 40.0  # Poisson: -ln NB(0) = mu
    nll, grads = _one("zero_inflated_negative_binomial_nll", mu, 0, log_theta, -1e4, device=backend.device)
    assert nll == pytest.approx(1e4 - math.log(2), rel=1e-6)
    assert grads == pytest.approx([0.5, 0, -0.5], abs=2e-3)  # 1e4 is known to 5e-4


@pytest.mark.parametrize("logits", [1e4, -1e4, INF, -INF])
def test_certain_trials(backend, logits):
    for name, rest in (("binomial_nll", ()), ("beta_binomial_nll", (1.0,))):
        hit, miss = (7, 3) if logits > 0 else (0, 3)
        nll, (grad, *_) = _one(name, logits, hit, 7, *rest, device=backend.device)
        assert nll == pytest.approx(0, abs=1e-6)
        assert grad == pytest.approx(0, abs=1e-6)
        nll, _ = _one(name, logits, miss, 7, *rest, device=backend.device)
        lost = (7 - miss if logits > 0 else miss) if name == "binomial_nll" else 1
        assert nll == pytest.approx(lost * abs(logits), rel=1e-2)


def test_large_concentration_is_binomial(backend):
    for logits, x in ((0.4, 12), (-2.0, 0), (1.0, 30)):
        binomial, (grad,) = _one("binomial_nll", logits, x, 30, device=backend.device)
        nll, grads = _one("beta_binomial_nll", logits, x, 30, 60, device=backend.device)
        assert nll == pytest.approx(binomial, rel=1e-5)
        assert grads == pytest.approx([grad, 0], rel=1e-5, abs=1e-13)


def test_no_trials_cost_nothing(backend):
    assert _one("binomial_nll", -INF, 0, 0, device=backend.device)[0] == 0
    assert _one("beta_binomial_nll", 0.3, 0, 0, -2, device=backend.device)[0] == 0


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("poisson_nll", (0.5, -1)),
        ("negative_binomial_nll", (2, -1, 0)),
        ("zero_inflated_negative_binomial_nll", (2, -1, 0, 0)),
        ("binomial_nll", (0.5, -1, 4)),
        ("binomial_nll", (0.5, 5, 4)),
        ("beta_binomial_nll", (0.5, 5, 4, 0)),
    ],
)
def test_outside_the_support(backend, name, values):
    assert _one(name, *values, device=backend.device)[0] == INF


@pytest.mark.parametrize("name", EXACT)
def test_nan_stays(backend, name):
    case = CASES[name][-1]
    for i in EXACT[name][1]:
        values = [math.nan if i == k else v for k, v in enumerate(case)]
        assert math.isnan(_one(name, *values, device=backend.device)[0]), f"argument {i}"


# Kinds of data


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.bool, torch.float64])
def test_types_of_counts(backend, dtype):
    x = torch.tensor([[0, 1, 1], [1, 0, 1]], device=backend.device)
    mu = torch.full(x.shape, 1.7, device=backend.device, requires_grad=True)
    expected = vaefast.negative_binomial_nll(mu, x.float(), torch.zeros_like(mu))
    actual = vaefast.negative_binomial_nll(mu, x.to(dtype), torch.zeros_like(mu))
    assert torch.equal(actual, expected)
    assert torch.equal(vaefast.binomial_nll(mu, x.to(dtype), 3), vaefast.binomial_nll(mu, x.float(), 3.0))


def test_one_number_per_gene_and_cell(backend):
    generator = torch.Generator().manual_seed(3)
    x = torch.poisson(torch.full((5, 7), 2.0), generator=generator).to(backend.device)
    mu = x + 0.5
    log_theta = torch.linspace(-2, 5, 7, device=backend.device, requires_grad=True)  # [G]
    gate = torch.linspace(-1, 1, 5, device=backend.device)[:, None].requires_grad_()  # [B, 1]
    nll = vaefast.zero_inflated_negative_binomial_nll(mu, x, log_theta, gate)
    full = [t.detach().expand(5, 7).contiguous().requires_grad_() for t in (log_theta, gate)]
    expected = vaefast.zero_inflated_negative_binomial_nll(mu, x, *full)
    assert torch.equal(nll, expected)
    for actual, whole, dim in zip(
        torch.autograd.grad(nll.sum(), (log_theta, gate)),
        torch.autograd.grad(expected.sum(), full),
        (0, 1),
        strict=True,
    ):
        torch.testing.assert_close(actual, whole.sum(dim, keepdim=bool(dim)))


def test_gradient_of_the_data_comes_too(backend):
    """Counts take no gradient from the kernels; who asks gets the formula's."""
    mu, x = (torch.full((2, 3), v, device=backend.device, requires_grad=True) for v in (1.5, 2.0))
    grad_mu, grad_x = torch.autograd.grad(
        vaefast.negative_binomial_nll(mu, x, torch.zeros(3, device=mu.device)).sum(), (mu, x)
    )
    alone = torch.autograd.grad(
        vaefast.negative_binomial_nll(mu, x.detach(), torch.zeros(3, device=mu.device)).sum(), mu
    )
    assert torch.equal(grad_mu, alone[0])
    torch.testing.assert_close(grad_x, torch.full_like(x, -math.log(1.5 / 2.5)))  # theta = 1: geometric


# Refusals


def test_refusals():
    mu = torch.ones(2, 3)
    with pytest.raises(TypeError, match="log_theta must be float32"):
        vaefast.negative_binomial_nll(mu, mu, torch.ones(3, dtype=torch.int64))
    with pytest.raises(TypeError, match="x must be a tensor"):
        vaefast.poisson_nll(mu, 3)
    with pytest.raises(TypeError, match="total must be a tensor, got str"):
        vaefast.binomial_nll(mu, mu, "many")
    with pytest.raises(ValueError, match=r"must broadcast to one shape, got mu \(2, 3\), x \(2, 3\), log_theta \(4,\)"):
        vaefast.negative_binomial_nll(mu, mu, torch.ones(4))


@pytest.mark.parametrize("bad", [-1.0, 0.5, math.nan])
def test_validate(bad):
    mu = torch.ones(2, 3)
    x = torch.tensor([[0, 1, 2], [3, bad, 0]])
    for call in (
        lambda: vaefast.poisson_nll(mu, x, validate=True),
        lambda: vaefast.negative_binomial_nll(mu, x, mu, validate=True),
        lambda: vaefast.binomial_nll(mu, x, 9, validate=True),
    ):
        with pytest.raises(ValueError, match="x must be counts, whole numbers from 0"):
            call()
    with pytest.raises(ValueError, match="x must be counts, whole numbers from 0 to total"):
        vaefast.beta_binomial_nll(mu, torch.full_like(mu, 4), 3, mu, validate=True)
    assert torch.isfinite(vaefast.binomial_nll(mu, x.nan_to_num(1).abs().ceil(), 3, validate=True)).all()
