"""Importance-weighted bounds: values, the gradients of each estimator, and what K samples take of memory."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from memory import allocations, peak
from samples import seed_tensor
from torch.func import grad, vmap
from torch.utils.checkpoint import checkpoint

import vaefast
from vaefast import _backends, _extension
from vaefast.ops._define import TABLE
from vaefast.reference.noise import standard_normal

B, K, D, N = 4, 5, 3, 7
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(params=["cpu", "reference"])
def backend(request):
    with vaefast.use_backend(request.param):
        yield request.param


def moments(*event, dtype=torch.float64, seed=0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, *event, generator=generator).to(dtype).requires_grad_() for _ in range(2)]


def plain(mu, logvar, samples, seed, stop=False):
    """z and log p(z) - log q(z | x) by torch.distributions, with q's own parameters stopped on request."""
    shape = (B, *samples, *mu.shape[1:])
    ones = (1,) * len(samples)
    eps = standard_normal(seed_tensor(seed), shape, mu.dtype)
    mu, logvar = (t.reshape(B, *ones, *t.shape[1:]).expand(shape) for t in (mu, logvar))
    z = mu + torch.exp(0.5 * logvar) * eps
    q = torch.distributions.Normal(mu, torch.exp(0.5 * logvar))
    if stop:
        q = torch.distributions.Normal(mu.detach(), torch.exp(0.5 * logvar.detach()))
    p = torch.distributions.Normal(torch.zeros_like(z), torch.ones_like(z))
    return z, (p.log_prob(z) - q.log_prob(z)).flatten(1 + len(samples)).sum(-1)


def gradients(outputs, tensors, cotangents):
    return torch.autograd.grad(outputs, tensors, cotangents)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize(("samples", "event"), [(K, (D,)), ((2, K), (D,)), (K, (2, 3, 2)), (1, (1,)), (301, (33,))])
def test_samples_and_log_ratio(samples, event, stop, dtype, backend):
    tensors = moments(*event, dtype=dtype)
    z, ratio = vaefast.rsample_log_ratio(*tensors, samples, estimator="stl" if stop else "iwae", seed=seed_tensor(3))
    wide = [t.detach().double().requires_grad_() for t in tensors]
    samples = (samples,) if isinstance(samples, int) else samples
    expected = plain(*wide, samples, 3, stop)
    assert z.dtype == dtype
    assert ratio.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(z, expected[0].to(dtype))
    # absolute: the terms of a row cancel, each of at most about 10 in size
    rounding = {"rtol": 1e-5, "atol": 1e-6 * math.prod(event)} if dtype != torch.float64 else {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(ratio.double(), expected[1], **rounding)
    cotangents = [torch.randn(o.shape, dtype=torch.float64) for o in expected]
    actual = gradients((z, ratio), tensors, [c.to(o.dtype) for c, o in zip(cotangents, (z, ratio), strict=True)])
    cotangents[0] = cotangents[0].to(dtype).double()
    truth = gradients(expected, wide, cotangents)
    for ours, theirs in zip(actual, truth, strict=True):
        size = theirs.abs().max().item()
        # half types: each of the K gradients is rounded before autograd adds them up
        eps = torch.finfo(dtype).eps * (1 if dtype == torch.float64 else 4)
        assert (ours.double() - theirs).abs().max().item() <= 8 * eps * max(size, math.prod(samples) ** 0.5)


def test_moments_are_read_in_place(monkeypatch):
    """Neither mu, nor logvar, nor the data is copied K times."""
    seen = []

    def watched(name):
        body = _extension.cpu.body(TABLE[name].fused)
        return lambda *args: (seen.extend(args[:2]), body(*args))[1]

    for name in ("rsample_log_ratio_forward", "bernoulli_nll_forward"):
        monkeypatch.setitem(_backends.ready, (name, "cpu"), watched(name))
    mu, logvar = moments(D)
    vaefast.rsample_log_ratio(mu, logvar, K)
    x = torch.rand(B, N).double()
    vaefast.bernoulli_nll(torch.randn(B, K, N).double(), x[:, None], batch_ndim=2)
    for tensor, source in ((seen[0], mu), (seen[1], logvar), (seen[3], x)):
        assert tensor.data_ptr() == source.data_ptr()
        assert tensor.stride(1) == 0
        _, layout = vaefast._layout.readable(tensor, 2, tensor.shape[-1])
        assert layout.row_segment == K


def test_gradcheck(backend):
    seed = seed_tensor(2)

    def function(mu, logvar):
        return vaefast.rsample_log_ratio(mu, logvar, 2, seed=seed, logvar_bounds=(-1, 1))

    assert torch.autograd.gradcheck(function, moments(D), check_batched_grad=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, moments(D))


def test_log_ratio_averages_to_minus_kl():
    mu, logvar = (t.detach() for t in moments(D))
    _, ratio = vaefast.rsample_log_ratio(mu, logvar, 200_000, seed=1)
    error = ratio.std(1) / math.sqrt(200_000)
    assert ((ratio.mean(1) + vaefast.kl_standard_normal(mu, logvar)).abs() < 5 * error).all()


def test_certain_latents():
    """sigma = 0 gives z = mu, and log q = inf."""
    mu, logvar = torch.ones(1, 2, requires_grad=True), torch.full((1, 2), -math.inf, requires_grad=True)
    z, ratio = vaefast.rsample_log_ratio(mu, logvar, 3, seed=1)
    assert torch.equal(z, torch.ones(1, 3, 2))
    assert ratio.tolist() == [[-math.inf] * 3]
    z.sum().backward()
    assert mu.grad.tolist() == [[3.0, 3.0]]
    assert logvar.grad.tolist() == [[0.0, 0.0]]


def test_opcheck():
    mu, logvar = (t.detach()[:, None].expand(B, K, D) for t in moments(D))
    rest = (seed_tensor(1), 2, -1.0, 1.0, 1.0)
    torch.library.opcheck(TABLE["rsample_log_ratio_forward"].call, (mu, logvar, *rest))
    grads = torch.ones(B, K, D).double(), torch.ones(B, K).double()
    torch.library.opcheck(TABLE["rsample_log_ratio_backward"].call, (*grads, mu, logvar, *rest))


# --- bounds ---


def test_bounds_are_their_formulas():
    log_w = 3 * torch.randn(B, 4, K, dtype=torch.float64)
    w = log_w.exp()
    torch.testing.assert_close(vaefast.iwae_bound(log_w[:, 0]), w[:, 0].mean(1).log())
    torch.testing.assert_close(vaefast.iwae_bound(log_w), w.mean(2).log())
    torch.testing.assert_close(vaefast.miwae_bound(log_w), w.mean(2).log().mean(1))
    torch.testing.assert_close(
        vaefast.ciwae_bound(log_w[:, 0], 0.3), 0.3 * log_w[:, 0].mean(1) + 0.7 * w[:, 0].mean(1).log()
    )
    inference, generative = vaefast.piwae_bounds(log_w)
    torch.testing.assert_close(inference, w.mean(2).log().mean(1))
    torch.testing.assert_close(generative, w.mean((1, 2)).log())


def test_bounds_at_the_extremes():
    log_w = torch.tensor([[-1e4, -2e4], [1e4, 0.0], [-math.inf, 0.0]], requires_grad=True)
    bound = vaefast.iwae_bound(log_w)
    torch.testing.assert_close(bound, torch.tensor([-1e4, 1e4, 0.0]) - math.log(2))
    bound.sum().backward()
    assert log_w.grad.tolist() == [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    half = torch.full((1, 3), 1.0 / 3, dtype=torch.float16)
    assert vaefast.iwae_bound(half).dtype == torch.float32


def test_negligible_weights_have_no_gradient_and_leave_the_value():
    """Theirs would be denormal numbers, or become such in the layers below."""
    generator = torch.Generator().manual_seed(0)
    log_w = (100 * torch.randn(1000, 16, generator=generator)).requires_grad_()
    bound = vaefast.iwae_bound(log_w)
    assert torch.equal(bound, torch.logsumexp(log_w, 1) - math.log(16))
    (found,) = torch.autograd.grad(bound.sum(), log_w)
    exact = log_w.detach().double().softmax(1)
    small, large = exact < math.exp(-43), exact > math.exp(-39)  # the largest weight is at least exp(-ln 16)
    assert (small & (exact > 1e-45)).any()
    assert (found[small] == 0).all()
    torch.testing.assert_close(found[large].double(), exact[large], rtol=1e-4, atol=0.0)


def test_iwae_bound_grows_with_k():
    """E[L_1] < E[L_5] < E[L_50] < log p(x), all known here: x = z + noise (Burda et al. 2016, theorem 1)."""
    mu, logvar = torch.zeros(20_000, 1), torch.zeros(20_000, 1)  # q is the prior
    z, ratio = vaefast.rsample_log_ratio(mu, logvar, 50, seed=1)
    log_w = ratio + torch.distributions.Normal(z[..., 0], 1).log_prob(torch.tensor(1.5))
    truth = torch.distributions.Normal(0, math.sqrt(2)).log_prob(torch.tensor(1.5))
    bounds = [vaefast.iwae_bound(log_w[:, :k]).mean() for k in (1, 5, 50)] + [truth]
    assert all(a < b for a, b in itertools.pairwise(bounds))
    assert bounds[3] - bounds[2] < 0.02


# --- estimators ---


def _model(seed=0):
    """A decoder of one matrix, data, and moments in float64."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(D, N, generator=generator, dtype=torch.float64).requires_grad_()
    x = torch.rand(B, N, generator=generator, dtype=torch.float64)
    return weight, x, moments(D, seed=seed + 1)


def _log_w(weight, x, mu, logvar, samples, estimator):
    z, ratio = vaefast.rsample_log_ratio(mu, logvar, samples, estimator=estimator, seed=seed_tensor(9))
    x = x.reshape(B, *(1,) * (z.ndim - 2), N)
    return ratio - vaefast.bernoulli_nll(z @ weight, x, batch_ndim=z.ndim - 1)


def _plain_log_w(weight, x, mu, logvar, samples, stop=False):
    z, ratio = plain(mu, logvar, samples, 9, stop)
    x = x.reshape(B, *(1,) * len(samples), N)
    p = torch.distributions.Bernoulli(logits=z @ weight, validate_args=False)
    return ratio + p.log_prob(x).sum(-1)


@pytest.mark.parametrize("bound", [vaefast.iwae_bound, lambda w: vaefast.ciwae_bound(w, 0.2)], ids=["iwae", "ciwae"])
def test_plain_gradients(bound, backend):
    weight, x, (mu, logvar) = _model()
    ours = bound(_log_w(weight, x, mu, logvar, K, "iwae")).mean()
    theirs = bound(_plain_log_w(weight, x, mu, logvar, (K,))).mean()
    torch.testing.assert_close(ours, theirs)
    tensors = weight, mu, logvar
    torch.testing.assert_close(gradients(ours, tensors, None), gradients(theirs, tensors, None))


@pytest.mark.parametrize("samples", [(K,), (3, K)], ids=["iwae", "miwae"])
def test_doubly_reparameterised_gradient(samples, backend):
    """Tucker et al. 2019, equation 8: sum_k w_k^2 dlog w_k/dz dz/dphi for the encoder, the usual for the decoder."""
    weight, x, (mu, logvar) = _model()
    bound = vaefast.iwae_bound if len(samples) == 1 else vaefast.miwae_bound
    log_w = _log_w(weight, x, mu, logvar, samples, "dreg")
    scale = torch.linspace(1, 2, B, dtype=torch.float64)  # any upstream gradient, sample by sample
    actual = gradients(bound(log_w), (weight, mu, logvar), scale)

    stopped = _plain_log_w(weight, x, mu, logvar, samples, stop=True)
    w = torch.softmax(stopped.detach(), -1)
    share = scale.reshape(B, *(1,) * len(samples)) / math.prod(samples[:-1])
    encoder = gradients(stopped, (mu, logvar), w * w * share.expand_as(w))
    usual = _plain_log_w(weight, x, mu, logvar, samples)
    decoder = gradients(usual, (weight,), w * share.expand_as(w))
    torch.testing.assert_close(actual, decoder + encoder)


def test_doubly_reparameterised_gradient_has_the_same_mean_and_less_variance():
    weight, x, (mu, logvar) = _model()
    weight, mu, logvar = weight.detach(), mu.detach(), logvar.detach().fill_(-1.0)

    def estimate(estimator, seed):
        leaf = mu.clone().requires_grad_()
        z, ratio = vaefast.rsample_log_ratio(leaf, logvar, 64, estimator=estimator, seed=seed)
        log_w = ratio - vaefast.bernoulli_nll(z @ weight, x[:, None], batch_ndim=2)
        return torch.autograd.grad(vaefast.iwae_bound(log_w).sum(), leaf)[0]

    draws = {e: torch.stack([estimate(e, i) for i in range(400)]) for e in ("iwae", "dreg")}
    means, variances = ({e: f(d, 0) for e, d in draws.items()} for f in (torch.mean, torch.var))
    error = ((variances["iwae"] + variances["dreg"]) / 400).sqrt()
    assert ((means["iwae"] - means["dreg"]).abs() < 5 * error).all()
    assert variances["dreg"].mean() < 0.5 * variances["iwae"].mean()


def test_piwae_trains_each_part_by_its_own_bound():
    weight, x, (mu, logvar) = _model()
    inference, generative = vaefast.piwae_bounds(_log_w(weight, x, mu, logvar, (2, K), "iwae"))
    (-inference.mean()).backward(inputs=[mu, logvar], retain_graph=True)
    (-generative.mean()).backward(inputs=[weight])
    log_w = _plain_log_w(weight, x, mu, logvar, (2, K))
    expected = gradients(-vaefast.miwae_bound(log_w).mean(), (mu, logvar), None)
    log_w = _plain_log_w(weight, x, mu, logvar, (2, K))
    expected += gradients(-vaefast.iwae_bound(log_w.flatten(1)).mean(), (weight,), None)
    torch.testing.assert_close((mu.grad, logvar.grad, weight.grad), expected)


# --- composition ---


def _step(weight, x, mu, logvar, estimator="dreg"):
    return -vaefast.iwae_bound(_log_w(weight, x, mu, logvar, K, estimator)).mean()


@pytest.mark.parametrize("estimator", ["iwae", "stl", "dreg"])
def test_compiled(estimator, compiler):
    weight, x, (mu, logvar) = _model()
    compiled = torch.compile(_step, fullgraph=True)(weight, x, mu, logvar, estimator)
    eager = _step(weight, x, mu, logvar, estimator)
    torch.testing.assert_close(compiled, eager)
    tensors = weight, mu, logvar
    torch.testing.assert_close(gradients(compiled, tensors, None), gradients(eager, tensors, None))


@pytest.mark.parametrize("estimator", ["iwae", "stl", "dreg"])
def test_func_grad_and_checkpoint(estimator):
    weight, x, (mu, logvar) = _model()
    tensors = weight, mu, logvar
    expected = gradients(_step(weight, x, mu, logvar, estimator), tensors, None)
    detached = [t.detach() for t in tensors]
    actual = grad(lambda w, m, v: _step(w, x, m, v, estimator), (0, 1, 2))(*detached)
    torch.testing.assert_close(actual, expected)
    again = checkpoint(_step, weight, x, mu, logvar, estimator, use_reentrant=False)
    torch.testing.assert_close(gradients(again, tensors, None), expected)


@pytest.mark.parametrize("estimator", ["iwae", "dreg"])
def test_vmap_over_models(estimator):
    weight, x, (mu, logvar) = _model()
    weights = torch.stack([weight.detach(), 2 * weight.detach()])

    def of_model(w):
        return grad(lambda m: _step(w, x, m, logvar.detach(), estimator))(mu.detach())

    torch.testing.assert_close(vmap(of_model)(weights), torch.stack([of_model(w) for w in weights]))


def test_autocast():
    weight, x, (mu, logvar) = _model()
    weight, x, mu, logvar = (t.detach().float().requires_grad_(t.requires_grad) for t in (weight, x, mu, logvar))
    with torch.autocast("cpu", torch.bfloat16):
        loss = _step(weight, x, mu, logvar)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, _step(weight, x, mu, logvar), rtol=2e-2, atol=0)
    loss.backward()
    assert weight.grad.isfinite().all()


# --- memory ---


def test_memory_of_iwae_mnist():
    """B=20, K=50, D=50, N=784: what the path takes beside the decoder's output and its gradient."""
    batch, count, latent, pixels = 20, 50, 50, 784
    mu, logvar = (torch.randn(batch, latent, requires_grad=True) for _ in range(2))
    logits = torch.randn(batch, count, pixels, requires_grad=True)
    x = torch.rand(batch, pixels)

    def fused():
        z, ratio = vaefast.rsample_log_ratio(mu, logvar, count, seed=1)
        return z, vaefast.iwae_bound(ratio - vaefast.bernoulli_nll(logits, x[:, None], batch_ndim=2))

    def eager():
        m, v = (t[:, None].repeat(1, count, 1) for t in (mu, logvar))
        z = m + torch.exp(0.5 * v) * torch.randn_like(m)
        log_q = (-0.5 * (v + (z - m) ** 2 / v.exp())).sum(-1)
        log_p = (-0.5 * z**2).sum(-1)
        repeated = x[:, None].repeat(1, count, 1)
        nll = torch.nn.functional.binary_cross_entropy_with_logits(logits, repeated, reduction="none").sum(-1)
        return z, torch.logsumexp(log_p - log_q - nll, 1) - math.log(count)

    fused()
    (ours, held), (theirs, theirs_held) = [(peak(c), sum(c)) for c in (allocations(fused)[1], allocations(eager)[1])]
    assert ours <= theirs / 10
    assert held <= theirs_held / 10


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda t: vaefast.rsample_log_ratio(t, t, 0), ValueError, "samples must be a positive int"),
        (lambda t: vaefast.rsample_log_ratio(t, t, (2, True)), ValueError, "samples must be a positive int"),
        (lambda t: vaefast.rsample_log_ratio(t, t, 2, estimator="rws"), ValueError, "estimator must be 'iwae'"),
        (lambda t: vaefast.iwae_bound(t[:, :0]), ValueError, r"log_w must have shape \[\*batch, K\]"),
        (lambda t: vaefast.miwae_bound(t[0]), ValueError, r"log_w must have shape \[\*batch, M, K\]"),
        (lambda t: vaefast.iwae_bound(t.long()), TypeError, "log_w must be float32"),
        (lambda t: vaefast.ciwae_bound(t, 1.5), ValueError, "beta must be from 0 to 1"),
        (lambda t: vaefast.ciwae_bound(t, None), TypeError, "beta must be a number, got NoneType"),
    ],
)
def test_refuses(function, error, message):
    with pytest.raises(error, match=message):
        function(torch.zeros(2, 3))
