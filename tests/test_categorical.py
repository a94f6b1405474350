"""The categorical likelihood: against torch's cross_entropy and exact values, classes of any integer type, extremes."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from samples import DTYPES, assert_accurate
from torch.nn.functional import cross_entropy

import vaefast
from vaefast import nn
from vaefast.distributions import Categorical

INF, NAN = math.inf, math.nan
INTEGERS = (torch.uint8, torch.int32, torch.int64)


def problem(backend, classes=256, batch=3, event=(4, 5), dtype=torch.float32, spread=3.0):
    generator = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(batch, classes, *event, generator=generator, dtype=torch.float64)
    x = torch.randint(0, classes, (batch, *event), generator=generator)
    return logits.to(backend.device, dtype).requires_grad_(), x.to(backend.device)


@pytest.mark.parametrize("x_dtype", INTEGERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 2, 7, 8, 9, 17, 256])
def test_is_cross_entropy(backend, classes, dtype, x_dtype):
    logits, x = problem(backend, classes, dtype=dtype)
    nll = vaefast.categorical_nll(logits, x.to(x_dtype), validate=True)
    wide = logits.detach().double().requires_grad_()
    expected = cross_entropy(wide, x, reduction="none").flatten(1).sum(1)
    weight = torch.linspace(-1, 2, 3, device=x.device)
    assert nll.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_accurate(nll, expected.detach(), sums=classes > 1)
    (grad,) = torch.autograd.grad(nll, logits, weight.to(nll.dtype))
    assert_accurate(grad, torch.autograd.grad(expected, wide, weight.double())[0])


def test_bool_classes(backend):
    logits, x = problem(backend, 2)
    assert torch.equal(vaefast.categorical_nll(logits, x.bool()), vaefast.categorical_nll(logits, x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_mpmath(backend, dtype):
    """Logits of every size, up to ±1e4, where one class has all the probability but for a rest that is told exactly."""
    rows = [[0.0, -1.0, -20.0], [1e4, -1e4, 0.0], [-1e4, -1e4 - 30, -1e4 - 90], [88.0, 87.5, 1e-8], [5e3, 5e3, 5e3]]
    logits = torch.tensor([r for r in rows for _ in r], dtype=dtype, device=backend.device, requires_grad=True)
    x = torch.arange(3, device=backend.device).repeat(len(rows))
    nll = vaefast.categorical_nll(logits, x)
    (grad,) = torch.autograd.grad(nll.sum(), logits)
    with mpmath.workprec(200):
        for i, k in enumerate(x.tolist()):
            values = [mpmath.mpf(v) for v in logits[i].tolist()]
            total = sum(map(mpmath.exp, values))
            # log(total) has a rounding of its own: the logits' size
            size = max(map(abs, values)) + 1
            assert abs(nll[i].item() - (mpmath.log(total) - values[k])) <= torch.finfo(dtype).eps * size
            for j in range(3):
                expected = mpmath.exp(values[j]) / total - (j == k)
                assert abs(grad[i, j].item() - expected) <= 2 * torch.finfo(dtype).eps * size


def test_probabilities_add_up_to_1(backend):
    logits = problem(backend, 256, 1, (1,), torch.float64)[0].detach().expand(256, 256, 1)
    nll = vaefast.categorical_nll(logits, torch.arange(256, device=backend.device).unsqueeze(1))
    assert torch.exp(-nll).sum().item() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extremes(backend, dtype):
    """A class of logit -inf has no probability and no gradient, unless it is x's; what is not defined is NaN."""
    logits = [[0.0, -INF, 0.0], [0.0, -INF, 0.0], [INF, 0.0, 0.0], [NAN, 0.0, 0.0], [-INF, -INF, -INF]]
    logits = torch.tensor(logits, dtype=dtype, device=backend.device, requires_grad=True)
    nll = vaefast.categorical_nll(logits, torch.tensor([0, 1, 1, 1, 1], device=backend.device))
    assert nll.tolist() == pytest.approx([math.log(2), INF, INF, NAN, NAN], rel=1e-6, nan_ok=True)
    (grad,) = torch.autograd.grad(nll[0], logits)
    assert grad[0].tolist() == pytest.approx([-0.5, 0, 0.5], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("end", ["min", "max"])
def test_logits_at_the_end_of_the_range(backend, dtype, end):
    """Equal logits, however far out: ln 3, which the rounding of their size swallows, and no gradient beyond 1."""
    size = getattr(torch.finfo(dtype), end)
    logits = torch.full((3, 3), size, dtype=dtype, device=backend.device, requires_grad=True)
    x = torch.arange(3, device=backend.device)
    nll = vaefast.categorical_nll(logits, x)
    assert nll.tolist() == [0, 0, 0]
    (grad,) = torch.autograd.grad(nll.sum(), logits)
    assert (grad.abs() <= 1).all()


@pytest.mark.parametrize("x", [-1, 5, 255])
def test_what_is_no_class(backend, x):
    """NaN for the sample, no gradient to its logits, and nothing for the others; refused where `validate` is asked."""
    logits, classes = problem(backend, 5)
    classes[1, 2, 3] = x
    nll = vaefast.categorical_nll(logits, classes)
    (grad,) = torch.autograd.grad(nll.sum(), logits)
    assert nll.isnan().tolist() == [False, True, False]
    assert not grad[1, :, 2, 3].any()
    assert grad.flatten(1).abs().sum(1).isfinite().all()
    assert grad[1, :, 0, 0].all()
    keep = torch.ones(4, 5, device=backend.device)
    keep[2, 3] = 0
    assert vaefast.categorical_nll(logits, classes, weight=keep).isfinite().all()
    message = "x must be a class, from 0" if x < 0 else "x must be less than the number of classes 5"
    with pytest.raises(ValueError, match=message):
        vaefast.categorical_nll(logits, classes, validate=True)


def test_layouts(backend):
    """Classes last in memory, transposed, and one sample's logits for all: the value and gradient of copies."""
    logits, x = problem(backend, 21, 3, (4, 5))
    for view in (
        lambda t: t.detach().movedim(1, -1).contiguous().requires_grad_().movedim(-1, 1),
        lambda t: t.detach().transpose(0, 3).contiguous().requires_grad_().transpose(0, 3),
        lambda t: t.detach()[:1].requires_grad_().expand(3, -1, -1, -1),
        lambda t: t.detach()[..., :1].requires_grad_().expand(-1, -1, -1, 5),
    ):
        strided = view(logits)
        copy = strided.detach().contiguous().requires_grad_()
        actual, expected = (vaefast.categorical_nll(t, x) for t in (strided, copy))
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)
        (grad,), (e,) = (torch.autograd.grad(n.sum(), t) for n, t in ((actual, strided), (expected, copy)))
        torch.testing.assert_close(grad, e, rtol=1e-6, atol=1e-6)


def test_every_argument_broadcasts(backend):
    logits, x = problem(backend, 6, 3, (4, 5))
    for small, classes in ((logits[:1], x), (logits[:, :, :1], x), (logits, x[0]), (logits[:, :, :, :1], x[1:2, :1])):
        actual = vaefast.categorical_nll(small, classes)
        expected = vaefast.categorical_nll(small.expand(3, 6, 4, 5).contiguous(), classes.expand(3, 4, 5).contiguous())
        assert torch.equal(actual, expected)
        (grad,), (e,) = (torch.autograd.grad(n.sum(), logits) for n in (actual, expected))
        torch.testing.assert_close(grad, e)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t, x: vaefast.categorical_nll([1.0], x), TypeError, "logits must be a tensor, got list"),
        (lambda t, x: vaefast.categorical_nll(t.int(), x), TypeError, "logits must be float32, .* got torch.int32"),
        (lambda t, x: vaefast.categorical_nll(t[0, 0, 0, 0], x), ValueError, "logits must have at least one dim"),
        (lambda t, x: vaefast.categorical_nll(t, x.float()), TypeError, "x must hold classes, .* got torch.float32"),
        (lambda t, x: vaefast.categorical_nll(t, 3), TypeError, "x must be a tensor, got int"),
        (lambda t, x: vaefast.categorical_nll(t, x[:2]), ValueError, r"must broadcast to one shape.* x \(2, 4, 5\)"),
        (
            lambda t, x: vaefast.categorical_nll(t, t.int()),
            ValueError,
            r"apart from the planes in dimension 1, got logi",
        ),
        (lambda t, x: vaefast.categorical_nll(t[:, :0], x), ValueError, "logits must not be empty in dimension 1"),
        (lambda t, x: vaefast.categorical_nll(t, x, weight=0.5), TypeError, "weight must be a tensor, got float"),
        (lambda t, x: vaefast.categorical_nll(t, x, weight=x[:, :3]), ValueError, r"weight \(3, 3, 5\)"),
        (lambda t, x: vaefast.categorical_nll(t, x, batch_ndim=4), ValueError, "batch_ndim must be from 0 to .* 3"),
        (lambda t, x: vaefast.categorical_nll(t, x, batch_ndim=1.0), TypeError, "batch_ndim must be an int"),
    ],
)
def test_refusals_name_the_argument(backend, call, error, message):
    logits, x = problem(backend, 5)
    with pytest.raises(error, match=message):
        call(logits.detach(), x)


def test_module_and_elbo_loss(backend):
    logits, x = problem(backend, 7)
    mu = torch.randn(3, 6, device=backend.device)
    loss = nn.ELBOLoss(nn.Categorical())(logits, x, mu=mu, logvar=mu / 2)
    expected = vaefast.categorical_nll(logits, x)
    torch.testing.assert_close(loss.nll, expected, rtol=1e-6, atol=0)
    (grad,) = torch.autograd.grad(loss.loss, logits)
    torch.testing.assert_close(grad, torch.autograd.grad(expected.mean(), logits)[0])
    with pytest.raises(TypeError, match="Categorical has no mean"):
        nn.Categorical().mean(logits)


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_distribution(shape):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 5, 6, generator=generator, dtype=torch.float64)
    ours = Categorical(logits, validate_args=True)
    theirs = torch.distributions.Independent(torch.distributions.Categorical(logits=logits.movedim(1, -1)), 1)
    assert (ours.batch_shape, ours.event_shape) == (theirs.batch_shape, theirs.event_shape)
    draws = ours.sample(shape)
    assert draws.shape == (*shape, 4, 6)
    torch.testing.assert_close(ours.log_prob(draws), theirs.log_prob(draws))
    with pytest.raises(ValueError, match="x must be less than the number of classes 5"):
        ours.log_prob(torch.full((4, 6), 5))
    several = Categorical(logits[None].expand(3, 4, 5, 6), batch_ndim=2)
    assert several.log_prob(
        draws.expand(3, 4, 6) if not shape else draws[..., None, :, :].expand(*shape, 3, 4, 6)
    ).shape


def test_distribution_draws_by_probability():
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, -INF, 2.0]).view(1, 4, 1)
    count = 200_000
    share = torch.bincount(Categorical(logits).sample((count,)).flatten(), minlength=4) / count
    p = torch.softmax(logits.flatten(), 0)
    assert ((share - p).abs() <= 5 * (p * (1 - p) / count).sqrt()).all()
