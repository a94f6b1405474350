"""The mixture of discretised logistics: against PixelCNN++'s formula and mpmath; probabilities that add up to 1; the
layouts that models have; draws."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from samples import DTYPES
from torch.nn.functional import log_softmax, logsigmoid, softplus

import vaefast
from vaefast import _extension, nn
from vaefast.distributions import DiscretizedLogisticMixture

INF, NAN = math.inf, math.nan


def problem(backend, n=10, channels=3, batch=2, event=(5, 7), dtype=torch.float32, scale=-2.0):
    """Parameters as a decoder gives them, and levels."""
    generator = torch.Generator().manual_seed(n + channels)
    each = 10 if channels == 3 else 3
    params = torch.randn(batch, each * n, *event, generator=generator, dtype=torch.float64)
    for c in range(channels):
        params[:, (3 * c + 2) * n : (3 * c + 3) * n] += scale
    x = torch.randint(0, 256, (batch, channels, *event), generator=generator, dtype=torch.uint8)
    x[0, :, 0, 0], x[-1, :, -1, -1] = 0, 255
    return params.to(backend.device, dtype).requires_grad_(), x.to(backend.device)


def as_float(x):
    return 2 * x.double() / 255 - 1


def plain(params, x, n):
    """PixelCNN++'s discretized_mix_logistic_loss for [B, P, H, W] and x in -1…1 [B, C, H, W], per sample; but for its
    fallback on a density where the mass is small, which differs by 0.1 %."""
    channels = x.shape[1]
    logits, rest = params[:, :n], params[:, n:].unflatten(1, (channels, -1, n))  # [B, C, 3, n, H, W]
    means, log_scales = rest[:, :, 0], rest[:, :, 1].clamp(min=-7)
    x = x.unsqueeze(2)
    if channels == 3:
        first, second, third = torch.tanh(rest[:, :, 2]).unbind(1)
        red, green, _ = x.unbind(1)
        shift = torch.stack([torch.zeros_like(first), first * red, second * red + third * green], 1)
        means = means + shift
    centered, inverse = x - means, torch.exp(-log_scales)
    plus, minus = inverse * (centered + 1 / 255), inverse * (centered - 1 / 255)
    mass = torch.sigmoid(plus) - torch.sigmoid(minus)
    upper = torch.sigmoid(-minus) - torch.sigmoid(-plus)  # the same, exact in the upper tail
    inner = torch.log(torch.where(centered > 0, upper, mass))
    log_p = torch.where(x < -0.999, logsigmoid(plus), torch.where(x > 0.999, -softplus(minus), inner))
    return -torch.logsumexp(log_p.sum(1) + log_softmax(logits, 1), 1).flatten(1).sum(1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "channels"), [(10, 3), (5, 3), (1, 3), (10, 1), (3, 1), (1, 1)])
def test_is_pixelcnns_formula(backend, n, channels, dtype):
    """Values and gradients in float64, of bytes and of the floats that they stand for."""
    params, x = problem(backend, n, channels, dtype=dtype)
    wide = params.detach().double().requires_grad_()
    expected = plain(wide, as_float(x), n)
    weight = torch.tensor([0.7, -1.3], dtype=torch.float64, device=x.device)
    expected_grad = torch.autograd.grad(expected, wide, weight)[0]
    for data in (x, x.int()) if dtype != torch.float64 else (x, as_float(x)):
        nll = vaefast.discretized_logistic_mixture_nll(params, data, n)
        assert nll.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(nll.double(), expected, rtol=1e-10 if dtype == torch.float64 else 1e-5, atol=0)
        (grad,) = torch.autograd.grad(nll, params, weight.to(nll.dtype))
        close = {"rtol": 1e-8, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 2e-5}
        close["rtol"] += torch.finfo(dtype).eps / 2 if dtype in (torch.float16, torch.bfloat16) else 0
        torch.testing.assert_close(grad.double(), expected_grad, **close)


def test_gradient_of_x(backend):
    """Between the levels, where the formula is continued."""
    params, x = problem(backend, 3, dtype=torch.float64)
    x = (as_float(x) * 0.97 + 0.001).requires_grad_()
    actual = torch.autograd.grad(vaefast.discretized_logistic_mixture_nll(params, x, 3).sum(), x)[0]
    expected = torch.autograd.grad(plain(params, x, 3).sum(), x)[0]
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-9)


def _probability(params, colours, n, levels):
    """Of each row of `colours` [count, C], which are levels; params [P]."""
    x = colours.int().unsqueeze(2)
    return torch.exp(-vaefast.discretized_logistic_mixture_nll(params[None, :, None], x, n, levels=levels))


@pytest.mark.parametrize("scale", [-9.0, -4.0, 0.0])
@pytest.mark.parametrize("levels", [2, 32, 256])
def test_probabilities_add_up_to_1(backend, levels, scale):
    """Over all levels of one channel; and green and blue, given red, add up to what red's own mixture gives it."""
    n = 3
    params = problem(backend, n, 3, 1, (1, 1), torch.float64, scale)[0].detach().flatten()
    every = torch.arange(levels, device=backend.device)
    red_alone = _probability(params[: 3 * n], every.unsqueeze(1), n, levels)
    assert red_alone.sum().item() == pytest.approx(1, rel=1e-9)
    for red in (0, levels // 3, levels - 1):
        colours = torch.cartesian_prod(every[red : red + 1], every, every)
        total = _probability(params, colours, n, levels).sum().item()
        assert total == pytest.approx(red_alone[red].item(), rel=1e-9)


def _exact(params, x, n):
    """-log p of a pixel of levels x, with digits for every cancellation."""
    with mpmath.workprec(400):
        half, params = mpmath.mpf(1) / 255, [mpmath.mpf(v) for v in params]
        values = [2 * half * level - 1 for level in x]

        def sigmoid(z):
            return 1 / (1 + mpmath.exp(-z))

        def part(c, i, k):
            return params[n + 3 * n * c + i * n + k]

        total, weights = mpmath.mpf(0), sum(mpmath.exp(t) for t in params[:n])
        for k in range(n):
            p = mpmath.exp(params[k]) / weights
            for c in range(len(x)):
                mean = part(c, 0, k)
                if c == 1:
                    mean += mpmath.tanh(part(0, 2, k)) * values[0]
                elif c == 2:
                    mean += mpmath.tanh(part(1, 2, k)) * values[0] + mpmath.tanh(part(2, 2, k)) * values[1]
                scale = mpmath.exp(max(part(c, 1, k), mpmath.mpf(-7)))
                upper, lower = (values[c] - mean + half) / scale, (values[c] - mean - half) / scale
                if x[c] == 0:
                    p *= sigmoid(upper)
                elif x[c] == 255:
                    p *= sigmoid(-lower)
                else:  # of the two tails the one whose sigmoids are small
                    p *= sigmoid(upper) - sigmoid(lower) if upper < 0 else sigmoid(-lower) - sigmoid(-upper)
            total += p
        return float(-mpmath.log(total))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 3])
def test_against_mpmath(backend, channels, dtype):
    """Log-scales from below the floor to a flat density, means far beyond the range, logits and coefficients of ±1e4:
    where a difference of sigmoids, and the density that stands in for it, are 0."""
    n, generator = 2, torch.Generator().manual_seed(0)
    sizes = {"logit": (0.0, 1e4, -1e4, 50.0), "mean": (0.0, 0.3, -1.0, 1.003, 40.0, -300.0)}
    sizes |= {"scale": (-100.0, -7.0, -6.0, -2.0, 1.0, 20.0, 40.0), "coefficient": (0.0, 0.2, -1.0, 1e4, -1e4, 1e-4)}
    kinds = ["logit"] * n + (["mean"] * n + ["scale"] * n + ["coefficient"] * n * (channels == 3)) * channels

    def draw(kind):
        return sizes[kind][torch.randint(len(sizes[kind]), (), generator=generator)]

    params = torch.tensor([[draw(kind) for kind in kinds] for _ in range(300)], dtype=dtype)
    x = torch.tensor([0, 255, 1, 254, 128, 77])[torch.randint(6, (300, channels), generator=generator)]
    nll = vaefast.discretized_logistic_mixture_nll(
        params.unsqueeze(2).to(backend.device), x.int().unsqueeze(2).to(backend.device), n
    )
    exact = [_exact(p, c, n) for p, c in zip(params.tolist(), x.tolist(), strict=True)]
    expected = torch.tensor(exact, dtype=torch.float64)
    # a rounding of a mean or of a logit is as large as the number that is rounded, times 1 / scale
    rounding = torch.finfo(dtype).eps
    assert ((nll.double().cpu() - expected).abs() <= 4 * rounding * (expected.abs() + 1e4 + math.exp(7) * 2)).all()


def test_below_the_floor(backend):
    """Log-scales below -7 count as -7, without gradient; at -7 there is one."""
    params, x = problem(backend, 2, dtype=torch.float32)
    is_scale = torch.tensor(([0, 0] + [0, 0, 1, 1, 0, 0] * 3), device=x.device).bool()[None, :, None, None]
    results = []
    for log_scale in (-100.0, -7.0):
        p = torch.where(is_scale, log_scale, params.detach()).requires_grad_()
        nll = vaefast.discretized_logistic_mixture_nll(p, x, 2)
        results.append((nll, *torch.autograd.grad(nll.sum(), p)))
    below, at = results
    assert torch.equal(below[0], at[0])
    assert torch.equal(torch.where(is_scale, 0, below[1]), torch.where(is_scale, 0, at[1]))
    assert not (below[1] * is_scale).any()
    assert (at[1] * is_scale).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_logit_of_minus_infinity(backend, dtype):
    """A component without weight is as none: the value and the gradients of the mixture without it, itself without."""
    params, x = problem(backend, 3, dtype=dtype)
    names = torch.arange(30, device=x.device) % 3  # components in turn: logits, then kinds
    with torch.no_grad():
        params[:, 1] = -INF
    nll = vaefast.discretized_logistic_mixture_nll(params, x, 3)
    (grad,) = torch.autograd.grad(nll.sum(), params)
    rest = params.detach()[:, names != 1].requires_grad_()
    expected = vaefast.discretized_logistic_mixture_nll(rest, x, 2)
    torch.testing.assert_close(nll, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad[:, names != 1], torch.autograd.grad(expected.sum(), rest)[0], rtol=1e-5, atol=1e-5)
    assert not grad[:, names == 1].any()


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_not_finite(backend, value):
    """Never a wrong finite number, and nothing leaks into the other sample."""
    for plane in range(20):
        params, x = problem(backend, 2)
        clean = vaefast.discretized_logistic_mixture_nll(params, x, 2)
        with torch.no_grad():
            params[0, plane, 3, 3] = value
        nll = vaefast.discretized_logistic_mixture_nll(params, x, 2)
        assert nll[1] == clean[1]
        (grad,) = torch.autograd.grad(nll.sum(), params)
        assert grad[1].isfinite().all()
        if math.isnan(value):
            assert nll[0].isnan()
        else:
            wide = params.detach().double()
            expected = vaefast.reference.logistic_mixture.discretized_logistic_mixture_nll(
                wide.movedim(1, 0), x.movedim(1, 0).double(), 2 / 255, 0.0, -1.0, 1 / 255, -7.0
            )
            torch.testing.assert_close(nll[0].double(), expected[0].sum(), rtol=1e-5, atol=0, equal_nan=True)


@pytest.mark.parametrize("channels", [1, 3])
def test_layouts(backend, channels):
    """As PixelCNN++ and VDVAE have them, channels last; transposed; one sample's parameters, or one pixel's, for all:
    the value and gradient of copies."""
    params, x = problem(backend, 3, channels, 4, (6, 5))
    for view in (
        lambda t: t.detach().movedim(1, -1).contiguous(),
        lambda t: t.detach().transpose(0, 3).contiguous().transpose(0, 3).movedim(1, -1),
        lambda t: t.detach()[:1].expand(4, -1, -1, -1).movedim(1, -1),
        lambda t: t.detach()[..., :1].expand(-1, -1, -1, 5).movedim(1, -1),
    ):
        strided = view(params).requires_grad_()  # [B, H, W, P]
        copy = strided.detach().movedim(-1, 1).contiguous().requires_grad_()
        for data in (x, x.movedim(1, -1).contiguous().movedim(-1, 1)):
            actual = vaefast.discretized_logistic_mixture_nll(strided.movedim(-1, 1), data, 3)
            expected = vaefast.discretized_logistic_mixture_nll(copy, data, 3)
            torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)
            (grad,), (e,) = (torch.autograd.grad(n.sum(), t) for n, t in ((actual, strided), (expected, copy)))
            torch.testing.assert_close(grad.movedim(-1, 1), e, rtol=1e-5, atol=1e-5)


def test_several_samples_of_one_image(backend):
    """Data [B, 1, …] stands for K samples, and is read where it lies."""
    params, x = problem(backend, 2, 3, 6, (4, 4))
    several = params.unflatten(0, (2, 3))
    nll = vaefast.discretized_logistic_mixture_nll(several, x[:2].unsqueeze(1), 2, batch_ndim=2)
    expected = vaefast.discretized_logistic_mixture_nll(params, x[:2].repeat_interleave(3, 0), 2)
    assert torch.equal(nll.flatten(), expected)
    (grad,), (e,) = (torch.autograd.grad(n.sum(), params) for n in (nll, expected))
    assert torch.equal(grad, e)


def test_every_instruction_set_agrees():
    """To rounding: sums are added in another order. Tiles, cut rows and unaligned ends are alike."""
    if _extension.module() is None:
        pytest.skip(_extension.reason())
    results = []
    try:
        for name in _extension.module().instruction_sets:
            _extension.module().use_instruction_set(name)
            with vaefast.use_backend("cpu"):
                results.append([])
                for event in ((1, 1), (3, 5), (32, 33)):
                    params, x = problem(_CPU, 10, 3, 2, event)
                    nll = vaefast.discretized_logistic_mixture_nll(params, x, 10)
                    results[-1] += [nll.detach(), *torch.autograd.grad(nll.sum(), params)]
    finally:
        _extension.module().use_instruction_set(_extension.instruction_set())
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


class _CPU:
    device = "cpu"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f, p, x: f([1.0], x, 2), TypeError, "params must be a tensor, got list"),
        (lambda f, p, x: f(p.int(), x, 2), TypeError, "params must be float32, .* got torch.int32"),
        (lambda f, p, x: f(p[0, 0, 0, 0], x, 2), ValueError, "params must have at least one dimension"),
        (lambda f, p, x: f(p, 3, 2), TypeError, "x must be a tensor, got int"),
        (lambda f, p, x: f(p, x.to(torch.complex64), 2), TypeError, "x must be .*complex64"),
        (
            lambda f, p, x: f(p, x[:, :2], 2),
            ValueError,
            r"x must have 1 or 3 channels in dimension 1, got shape \(2, 2,",
        ),
        (lambda f, p, x: f(p, x, 3), ValueError, "params must have 10 n_mixtures = 30 planes in dimension 1"),
        (lambda f, p, x: f(p, x[:, :1], 2), ValueError, "params must have 3 n_mixtures = 6 planes in dimension 1"),
        (lambda f, p, x: f(p, x, 2.0), TypeError, "n_mixtures must be an int, got float"),
        (lambda f, p, x: f(p, x, 0), ValueError, "n_mixtures must be at least 1, got 0"),
        (lambda f, p, x: f(p, x[..., :3], 2), ValueError, r"must broadcast to one shape.*params \(2, 20, 5, 7\), x"),
        (lambda f, p, x: f(p, x, 2, levels=1), ValueError, "levels must be at least 2, got 1"),
        (lambda f, p, x: f(p, x, 2, levels=128, validate=True), ValueError, "x must be less than levels = 128"),
        (lambda f, p, x: f(p, x.float(), 2, validate=True), ValueError, r"x must be in \[-1, 1\]"),
        (lambda f, p, x: f(p, x, 2, weight=[1]), TypeError, "weight must be a tensor, got list"),
        (lambda f, p, x: f(p, x, 2, weight=x), ValueError, r"weight \(2, 3, 5, 7\)"),
        (lambda f, p, x: f(p, x, 2, batch_ndim=4), ValueError, "batch_ndim must be from 0 to the number of dim.* 3"),
    ],
)
def test_refusals_name_the_argument(backend, call, error, message):
    params, x = problem(backend, 2)
    with pytest.raises(error, match=message):
        call(vaefast.discretized_logistic_mixture_nll, params.detach(), x)


def test_module_and_elbo_loss(backend):
    params, x = problem(backend, 4)
    mu = torch.randn(2, 6, device=backend.device)
    likelihood = nn.DiscretizedLogisticMixture(n_mixtures=4)
    loss = nn.ELBOLoss(likelihood, beta=0.5)(params, x, mu=mu, logvar=mu / 2)
    expected = vaefast.discretized_logistic_mixture_nll(params, x, 4)
    torch.testing.assert_close(loss.nll, expected, rtol=1e-6, atol=0)
    (grad,) = torch.autograd.grad(loss.loss, params)
    torch.testing.assert_close(grad, torch.autograd.grad(expected.mean(), params)[0])
    assert torch.equal(likelihood.mean(params), DiscretizedLogisticMixture(params, 4).mean)
    assert repr(likelihood) == "DiscretizedLogisticMixture(n_mixtures=4)"


@pytest.mark.parametrize("channels", [1, 3])
def test_distribution(channels):
    params, x = problem(_CPU, 4, channels)
    ours = DiscretizedLogisticMixture(params, 4, validate_args=True)
    assert (ours.batch_shape, ours.event_shape) == ((2,), (channels, 5, 7))
    expected = -vaefast.discretized_logistic_mixture_nll(params, x, 4)
    assert torch.equal(ours.log_prob(x), expected)
    torch.testing.assert_close(ours.log_prob(as_float(x).float()), expected, rtol=1e-5, atol=0)
    for shape in ((), (3,), (3, 2)):
        draws = ours.sample(shape)
        assert draws.shape == (*shape, 2, channels, 5, 7)
        levels = (draws + 1) * 127.5
        torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
        torch.testing.assert_close(ours.log_prob(draws), ours.log_prob(levels.round().byte()), rtol=1e-4, atol=0)
    with pytest.raises(ValueError, match="params must have 3 or 10 times 3 planes at 1, got"):
        DiscretizedLogisticMixture(params, 3)
    with pytest.raises(ValueError, match=r"x must be in \[-1, 1\]"):
        ours.log_prob(draws + 3)


def test_distribution_draws_by_probability():
    """Every colour of 5 levels as often as its probability says."""
    torch.manual_seed(0)
    levels, n, count = 5, 2, 400_000
    params = problem(_CPU, n, 3, 1, (1, 1), torch.float64, -1.0)[0].detach()
    draws = DiscretizedLogisticMixture(params, n, levels=levels).sample((count,)).flatten(1)
    every = torch.arange(levels)
    colours = torch.cartesian_prod(every, every, every)
    p = _probability(params.flatten(), colours, n, levels)
    index = ((draws + 1) * (levels - 1) / 2).round().long() @ torch.tensor([levels**2, levels, 1])
    share = torch.bincount(index, minlength=levels**3) / count
    assert ((share - p).abs() <= 5 * (p * (1 - p) / count).sqrt() + 1 / count).all()


def test_mean_is_that_of_draws():
    """Of narrow logistics well within the range, where bins move a mean by nothing."""
    torch.manual_seed(0)
    params = problem(_CPU, 2, 3, 1, (1, 1), torch.float64, 0.0)[0].detach()
    params = 0.3 * params
    params[:, [4, 5, 10, 11, 16, 17]] -= 3
    ours = DiscretizedLogisticMixture(params, 2, levels=4096)
    draws = ours.sample((200_000,))
    error = draws.std(0) / math.sqrt(200_000)
    assert ((draws.mean(0) - ours.mean).abs() <= 5 * error + 1e-4).all()
