"""Other packages on our ops: the same values, and everything as before afterwards."""

from __future__ import annotations

import math
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.distributions import Independent, LogNormal, Normal, kl_divergence, register_kl
from torch.distributions import kl as torch_kl

import vaefast
from vaefast import patch


@pytest.fixture(autouse=True)
def nothing_stays():
    before = Normal.rsample, torch_kl._KL_REGISTRY[Normal, Normal]
    yield
    assert (Normal.rsample, torch_kl._KL_REGISTRY[Normal, Normal]) == before


def normals(*shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [
        tensor.to(dtype).requires_grad_()
        for shape in shapes
        for tensor in (torch.randn(shape, generator=generator), 0.1 + torch.rand(shape, generator=generator))
    ]


# --- torch ---


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shapes", [((4, 3), (4, 3)), ((4, 3), (3,)), ((4, 3), ()), ((), ()), ((2, 1, 3), (4, 1))])
def test_kl_of_normals(shapes, dtype, backend):
    tensors = normals(*shapes, dtype=dtype)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    expected = kl_divergence(Normal(*wide[:2]), Normal(*wide[2:]))
    with vaefast.use_backend(backend), patch("torch"):
        actual = kl_divergence(Normal(*tensors[:2]), Normal(*tensors[2:]))
        grads = torch.autograd.grad(actual.sum(), tensors)
    assert actual.dtype == dtype
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 2 * torch.finfo(dtype).eps)
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)
    for ours, theirs in zip(grads, torch.autograd.grad(expected.sum(), wide), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=4 * tolerance, atol=4 * tolerance * 10)


def test_kl_near_equality_keeps_its_accuracy():
    q, p = Normal(torch.zeros(1), torch.tensor([1.0001])), Normal(torch.zeros(1), torch.ones(1))
    ratio = q.scale.double()
    expected = 0.5 * (ratio * ratio - 1) - ratio.log()
    with patch("torch"):
        torch.testing.assert_close(kl_divergence(q, p).double(), expected, rtol=1e-2, atol=0)


def test_kl_gradcheck():
    def kl(*tensors):
        return kl_divergence(Normal(*tensors[:2]), Normal(*tensors[2:]))

    with patch("torch"):
        assert torch.autograd.gradcheck(kl, normals((3, 2), (3, 2)), check_batched_grad=True, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(kl, normals((3, 2), (3, 2)))


def test_independent_and_subclasses():
    tensors = normals((4, 3), (4, 3))
    q, p = Normal(*tensors[:2]), Normal(*tensors[2:])

    def values():
        return (
            kl_divergence(Independent(q, 1), Independent(p, 1)),
            kl_divergence(LogNormal(*tensors[:2]), LogNormal(*tensors[2:])),
        )

    expected = values()
    with patch("torch"):
        torch.testing.assert_close(values(), expected)


@pytest.mark.parametrize("sample_shape", [(), (5,), (2, 3)])
def test_rsample_is_ours(sample_shape):
    loc, scale = normals((4, 3))
    with patch("torch"):
        torch.manual_seed(3)
        z = Normal(loc, scale).rsample(sample_shape)
        torch.manual_seed(3)
        seed = vaefast.draw_seed()
        eps = vaefast.standard_normal((*sample_shape, 4, 3), seed=seed, dtype=torch.float64)
        torch.testing.assert_close(z, loc + scale * eps)
        weight = torch.randn_like(z)
        grads = torch.autograd.grad((weight * z).sum(), (loc, scale))
    lead = tuple(range(len(sample_shape)))
    expected = (weight.sum(lead), (weight * eps).sum(lead)) if lead else (weight, weight * eps)
    torch.testing.assert_close(grads, expected)


def test_rsample_of_numbers_and_under_transforms():
    with patch("torch"):
        assert Normal(0.0, 1.0).rsample().shape == ()
        assert Normal(0.0, 1.0).rsample((2,)).shape == (2,)
        loc, scale = (t.detach() for t in normals((4, 3)))
        gradient = torch.func.grad(lambda m: Normal(m, scale).rsample().sum())(loc)
        assert torch.equal(gradient, torch.ones_like(loc))
        each = torch.func.vmap(lambda m, s: Normal(m, s).rsample(), randomness="different")(loc, scale)
        assert each.shape == (4, 3)
        assert not torch.equal(each[0] - loc[0], each[1] - loc[1])


def test_rsample_is_distributed_as_it_says():
    with patch("torch"):
        z = Normal(torch.tensor([2.0]), torch.tensor([0.5])).rsample((200_000,))
    assert abs(z.mean().item() - 2) < 5 * 0.5 / math.sqrt(200_000)
    assert abs(z.std().item() / 0.5 - 1) < 5 / math.sqrt(2 * 200_000)


def test_what_the_ops_do_not_take_runs_as_before():
    with patch("torch"):
        one = torch.ones(3, dtype=torch.complex64)
        q = Normal(one, one, validate_args=False)
        assert torch.equal(kl_divergence(q, q), 0 * one)
        assert q.rsample().dtype == torch.complex64


def test_compiled(compiler):
    tensors = normals((4, 3), (4, 3), dtype=torch.float32)

    def function(*tensors):
        q, p = Normal(*tensors[:2], validate_args=False), Normal(*tensors[2:], validate_args=False)
        return q.rsample(), kl_divergence(q, p)

    with patch("torch"):
        compiled = torch.compile(function, fullgraph=True)
        torch.testing.assert_close(compiled(*tensors)[1], function(*tensors)[1])
        grads = [torch.autograd.grad(f(*tensors)[1].sum(), tensors) for f in (compiled, function)]
    torch.testing.assert_close(*grads)


# --- nesting ---


def test_nests_and_reverts():
    original = Normal.rsample
    with patch("torch"):
        inside = Normal.rsample
        assert inside is not original
        with patch("torch"):
            assert Normal.rsample is inside
        assert Normal.rsample is inside
    assert Normal.rsample is original
    first, second = patch("torch"), patch("torch")
    first.undo()
    first.undo()
    assert Normal.rsample is not original
    second.undo()
    assert Normal.rsample is original


def test_one_patch_for_several_blocks():
    original, ours = Normal.rsample, patch("torch")
    for _ in range(2):
        with ours:
            with ours:
                assert Normal.rsample is not original
            assert Normal.rsample is not original
        assert Normal.rsample is original


def test_patches_of_several_threads(monkeypatch):
    original, module = Normal.rsample, sys.modules["vaefast.patch"]
    put = module._put

    def slowly(*target):
        time.sleep(1e-4)  # another thread goes on
        put(*target)

    def often(_):
        for _ in range(20):
            with patch("torch"):
                assert Normal.rsample is not original

    monkeypatch.setattr(module, "_put", slowly)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(often, range(4)))
    assert Normal.rsample is original


def test_reverts_after_an_error():
    original = Normal.rsample
    with pytest.raises(RuntimeError, match="stop"), patch("torch"):
        raise RuntimeError("stop")
    assert Normal.rsample is original


def test_kl_registered_meanwhile_stays():
    class Mine(Normal):
        pass

    with patch("torch"):
        register_kl(Mine, Mine)(lambda p, q: "mine")
    try:
        assert kl_divergence(Mine(0.0, 1.0), Mine(0.0, 1.0)) == "mine"
    finally:
        del torch_kl._KL_REGISTRY[Mine, Mine]
        torch_kl._KL_MEMOIZE.clear()


def test_refuses_what_it_does_not_know(monkeypatch):
    with pytest.raises(ValueError, match="packages must be among 'torch', 'diffusers', 'scvi', got 'pyro'"):
        patch("pyro")
    monkeypatch.setitem(sys.modules, "scvi", None)
    with pytest.raises(ImportError):
        patch("torch", "scvi")


# --- diffusers, the real package ---


@pytest.fixture
def diffusers_class():
    return pytest.importorskip("diffusers.models.autoencoders.vae").DiagonalGaussianDistribution


def _check_diagonal_gaussian(theirs):
    values, others = torch.randn(2, 8, 5, 3), torch.randn(2, 8, 5, 3)
    where = torch.randn(2, 4, 5, 3)

    def results(q, p):
        return q.kl(), q.kl(p), q.nll(where), q.nll(where, dims=[1, 2]), q.mode(), q.std, q.var, q.logvar

    before = theirs(values), theirs(others)
    expected = results(*before)
    with patch():
        inside = theirs(values), theirs(others)
        assert isinstance(inside[0], theirs)
        torch.testing.assert_close(results(*inside), expected)
        torch.testing.assert_close(results(*before), expected)
        torch.manual_seed(1)
        z = inside[0].sample()
        torch.manual_seed(1)
        eps = vaefast.standard_normal(z.shape, seed=vaefast.draw_seed())
        torch.testing.assert_close(z, before[0].mean + before[0].std * eps)
        wide = theirs(torch.full((1, 2, 1, 1), 20.0, dtype=torch.float16))
        assert wide.kl().isfinite()
    assert "_logvar" not in vars(theirs(values))
    torch.testing.assert_close(results(*inside), expected)
    assert inside[0].sample().shape == z.shape


def test_diffusers_diagonal_gaussian(diffusers_class):
    _check_diagonal_gaussian(diffusers_class)


def test_diffusers_gradients(diffusers_class):
    values = torch.randn(2, 8, 5, 3, requires_grad=True)
    weight = torch.randn(2, 4, 5, 3)

    def gradient():
        q = diffusers_class(values)
        return torch.autograd.grad(q.kl().sum() + (weight * q.mode()).sum() + q.nll(weight).sum(), values)[0]

    expected = gradient()
    with patch("diffusers"):
        torch.testing.assert_close(gradient(), expected)


def test_diffusers_autoencoder(diffusers_class, compiler):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(block_out_channels=(8,), latent_channels=2, norm_num_groups=4)
    x = torch.randn(1, 3, 8, 8)
    expected = model.encode(x).latent_dist.kl()
    with patch("diffusers"):
        torch.testing.assert_close(model.encode(x).latent_dist.kl(), expected)

        def function(moments):
            q = diffusers_class(moments)
            return q.sample(), q.kl(), q.std

        moments = torch.randn(2, 4, 3, 3)
        compiled = torch.compile(function, fullgraph=True)(moments)
        torch.testing.assert_close(compiled[1:], function(moments)[1:])


# --- scvi-tools: the real package, or a stand-in with the same names ---


def _log_nb(x, mu, theta, eps=1e-8, log_fn=torch.log, lgamma_fn=torch.lgamma):
    logits = log_fn(mu + eps) - log_fn(theta + eps)
    return torch.distributions.NegativeBinomial(theta, logits=logits, validate_args=False).log_prob(x)


def _log_zinb(x, mu, theta, pi, eps=1e-8, log_fn=torch.log, lgamma_fn=torch.lgamma):
    some = torch.nn.functional.logsigmoid(-pi) + _log_nb(x, mu, theta, eps)
    return torch.where(x == 0, torch.logaddexp(torch.nn.functional.logsigmoid(pi), some), some)


@pytest.fixture(params=["stand-in", "scvi"])
def scvi_module(request, monkeypatch):
    if request.param == "scvi":
        pytest.importorskip("scvi")
        return pytest.importorskip("scvi.distributions._negative_binomial")
    module = types.ModuleType("scvi.distributions._negative_binomial")
    module.log_nb_positive, module.log_zinb_positive = _log_nb, _log_zinb
    for name in ("scvi", "scvi.distributions"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_scvi_log_probabilities(scvi_module):
    generator = torch.Generator().manual_seed(0)
    mu = torch.rand(8, 30, generator=generator).mul(20).requires_grad_()
    theta = torch.rand(30, generator=generator).mul(5).add(0.1).requires_grad_()
    pi = torch.randn(8, 30, generator=generator).requires_grad_()
    x = torch.poisson(torch.rand(8, 30, generator=generator).mul(10), generator=generator)
    before = scvi_module.log_nb_positive, scvi_module.log_zinb_positive

    def results():
        nb, zinb = scvi_module.log_nb_positive(x, mu, theta), scvi_module.log_zinb_positive(x, mu, theta, pi)
        return nb, zinb, *torch.autograd.grad(nb.sum() + zinb.sum(), (mu, theta, pi))

    expected = results()
    with patch("scvi"):
        actual = results()
        assert scvi_module.log_nb_positive is not before[0]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert (scvi_module.log_nb_positive, scvi_module.log_zinb_positive) == before
