"""The whole loss, KL by dimension, and gradients that a likelihood writes in its forward pass."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import pickle
import warnings
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import ROWS
from strategies import shapes, strided
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, vmap
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.checkpoint import checkpoint

import vaefast
from vaefast import _extension, nn
from vaefast.ops import _define
from vaefast.ops._define import TABLE
from vaefast.ops._whole import ExpectedLoss
from vaefast.reference.gaussian import compute_dtype

B, EVENT = 6, (3, 2, 2)


@pytest.fixture
def moments() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(B, *EVENT, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))


@pytest.fixture
def nll() -> torch.Tensor:
    return torch.rand(B, generator=torch.Generator().manual_seed(1), dtype=torch.float64).mul(50).requires_grad_()


def terms(mu, logvar):
    return 0.5 * (mu**2 + logvar.exp() - 1 - logvar)


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True)


# --- kl_by_dimension ---


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "chunk", "channels_last"])
def test_kl_by_dimension(layout, per_channel, dtype, backend):
    x = torch.randn(B, 6, 4, 2, generator=torch.Generator().manual_seed(2)).to(dtype)
    x = {
        "contiguous": x,
        "transposed": x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        "chunk": x,
        "channels_last": x.to(memory_format=torch.channels_last),
    }[layout]
    mu, logvar = x.chunk(2, 1) if layout == "chunk" else (x, x.flip(1))
    mu, logvar = mu.detach().requires_grad_(), logvar.detach().requires_grad_()
    with vaefast.use_backend(backend):
        kl, mean = vaefast.kl_by_dimension(mu, logvar, per_channel=per_channel)
        weights = torch.randn(kl.shape, dtype=kl.dtype), torch.randn(mean.shape, dtype=kl.dtype)
        grads = gradients((weights[0] * kl).sum() + (weights[1] * mean).sum(), mu, logvar)
    wide = [t.detach().double().requires_grad_() for t in (mu, logvar)]
    each = terms(*wide)
    expected = each.sum((1, 2, 3)), each.mean(0).sum((1, 2)) if per_channel else each.mean(0)
    plain = gradients(sum((w.double() * e).sum() for w, e in zip(weights, expected, strict=True)), *wide)
    tolerance = {"rtol": 1e-12 if dtype == torch.float64 else 1e-5, "atol": 1e-12 if dtype == torch.float64 else 1e-5}
    for ours, theirs in zip((kl, mean), expected, strict=True):
        assert ours.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(ours.double(), theirs, **tolerance)
    for ours, theirs in zip(grads, plain, strict=True):
        torch.testing.assert_close(ours, theirs.to(dtype))


def test_kl_by_dimension_gradcheck(moments):
    assert torch.autograd.gradcheck(vaefast.kl_by_dimension, moments, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(vaefast.kl_by_dimension, moments)


def test_kl_by_dimension_keeps_its_accuracy_near_the_prior():
    mu, logvar = torch.zeros(4, 3), torch.full((4, 3), 1e-4)
    kl, mean = vaefast.kl_by_dimension(mu, logvar)
    torch.testing.assert_close(mean, torch.full((3,), 2.5000833e-9), rtol=1e-5, atol=0)
    torch.testing.assert_close(kl, torch.full((4,), 3 * 2.5000833e-9), rtol=1e-5, atol=0)


def test_kl_by_dimension_of_nothing():
    kl, mean = vaefast.kl_by_dimension(torch.zeros(0, 3), torch.zeros(0, 3))
    assert kl.shape == (0,)
    assert mean.tolist() == [0, 0, 0]


def test_opcheck(moments):
    mu, logvar = (t.detach() for t in moments)
    inf = float("inf")
    grads = torch.ones(B).double(), torch.ones(EVENT).double()
    torch.library.opcheck(TABLE["kl_by_dimension_forward"].call, (mu, logvar, False, -inf, inf))
    torch.library.opcheck(TABLE["kl_by_dimension_backward"].call, (*grads, mu, logvar, False, -1.0, 1.0))
    torch.library.opcheck(TABLE["elbo_forward"].call, (mu, logvar, 0, 2.0, 0.5))
    torch.library.opcheck(TABLE["elbo_backward"].call, (torch.ones(()).double(), mu, logvar, 0, 2.0, 0.5))
    logits, x = mu.flatten(1), torch.rand(B, 12).double()
    args = (torch.ones(B).double(), logits, x, None, 1, 1.0, [True, False])
    torch.library.opcheck(TABLE["bernoulli_nll_with_gradient"].call, args)


# --- elbo_loss ---


@pytest.mark.parametrize("beta", [1.0, 4, torch.tensor(0.25), torch.linspace(0, 1, B)], ids=["1", "4", "[]", "[B]"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_loss_is_nll_and_beta_kl(moments, nll, beta, reduction):
    result = vaefast.elbo_loss(nll, mu=moments[0], logvar=moments[1], beta=beta, reduction=reduction)
    kl = terms(*moments).sum((1, 2, 3))
    expected = nll + beta * kl
    expected = expected if reduction == "none" else getattr(expected, reduction)()
    torch.testing.assert_close(result.loss, expected)
    assert result.nll is nll
    torch.testing.assert_close(result.kl, kl)
    torch.testing.assert_close(result.kl_per_dimension, terms(*moments).mean(0))
    actual, plain = (gradients(loss.sum(), nll, *moments) for loss in (result.loss, expected))
    torch.testing.assert_close(actual, plain)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("batch", [1, 7, 5000])
def test_reduced_loss(backend, dtype, reduction, batch):
    generator = torch.Generator().manual_seed(5)
    nll, kl = (torch.rand(batch, 2, generator=generator).to(dtype)[:, i].requires_grad_() for i in range(2))
    with vaefast.use_backend(backend):
        loss = vaefast.elbo_loss(nll, kl, beta=0.5, reduction=reduction).loss
        grads = torch.autograd.grad(-3 * loss, (nll, kl))
    wide = [t.detach().double().requires_grad_() for t in (nll, kl)]
    expected = getattr(wide[0] + 0.5 * wide[1], reduction)()
    rtol = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(loss.double(), expected, rtol=min(rtol, 1e-5), atol=0)
    for actual, plain in zip(grads, torch.autograd.grad(-3 * expected, wide), strict=True):
        assert actual.dtype == dtype
        torch.testing.assert_close(actual.double(), plain, rtol=rtol, atol=0)


def test_reduced_loss_is_differentiated_twice(nll):
    kl = torch.rand(B).double().requires_grad_()

    def function(nll, kl):
        return vaefast.elbo_loss(nll, kl, beta=2.0).loss

    assert torch.autograd.gradcheck(function, (nll, kl), check_batched_grad=True)
    assert torch.autograd.gradgradcheck(lambda *t: function(*t).square(), (nll, kl))


def test_reduced_loss_of_nothing():
    assert vaefast.elbo_loss(torch.zeros(0), torch.zeros(0)).loss.isnan()
    assert vaefast.elbo_loss(torch.zeros(0), torch.zeros(0), reduction="sum").loss == 0


class Computed(torch.utils._python_dispatch.TorchDispatchMode):
    """The ops that compute something, in order."""

    FREE = ("detach", "empty_like", "new_empty", "empty")

    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[1]
        if name not in self.FREE:
            self.ops.append(name)
        return function(*args, **(kwargs or {}))


def test_the_whole_loss_is_three_launches_each_way():
    mu, logvar = (torch.randn(4, 3).requires_grad_() for _ in range(2))
    logits, x = _bernoulli((4, 9))
    seed, grads = vaefast.draw_seed(), [torch.ones(()), torch.ones(4, 3)]
    with Computed() as mode:
        z, kl = vaefast.rsample_kl(mu, logvar, seed=seed)
        loss = vaefast.elbo_loss(vaefast.bernoulli_nll(logits, x), kl, beta=0.5).loss
        assert mode.ops == ["rsample_kl_forward", "bernoulli_nll_forward", "elbo_forward"]
        mode.ops.clear()
        torch.autograd.backward([loss, z], grads)
        assert mode.ops == ["elbo_backward", "bernoulli_nll_backward", "rsample_kl_backward"]
        mode.ops.clear()
        nn.ELBOLoss(nn.Bernoulli(), beta=0.5)(logits, x, kl)
        # full: the gradient that is expected, which is made once where no mode looks
        assert mode.ops == ["full", "bernoulli_nll_with_gradient", "elbo_forward"]


# --- the whole loss, which a likelihood makes with its values ---


def _whole(shape=(5, 70), dtype=torch.float32, **options):
    """(nn.ELBOLoss of Bernoulli, its arguments that take a gradient, x)."""
    logits, x = _bernoulli(shape, dtype)
    kl = torch.rand(shape[0], dtype=compute_dtype(dtype)).requires_grad_()
    return nn.ELBOLoss(nn.Bernoulli(), **options), (logits, kl), x


def _in_parts(module, logits, x, kl, **options):
    """The same from its parts, each a step of autograd."""
    nll = vaefast.bernoulli_nll(logits, x, **options)
    return vaefast.elbo_loss(nll, kl, beta=module.beta, reduction=module.reduction)


def is_whole(loss: torch.Tensor) -> bool:
    return type(loss.grad_fn).__name__ == "bernoulli_nll_lossBackward"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("upstream", [1.0, -3.0, 0.0, float("nan")])
def test_whole_loss_is_its_parts(dtype, reduction, weighted, upstream, backward_calls):
    module, leaves, x = _whole(dtype=dtype, beta=4, reduction=reduction)
    weight = torch.rand(5, 70).gt(0.3) if weighted else None
    results = []
    for call in (module, functools.partial(_in_parts, module)):
        result = call(leaves[0], x, leaves[1], weight=weight)
        grads = torch.autograd.grad(result.loss, leaves, torch.tensor(upstream).to(result.loss))
        results.append((result.loss.detach(), result.nll.detach(), *grads))
        assert is_whole(result.loss) == (call is module)
        assert result.kl is leaves[1]
    torch.testing.assert_close(*results, rtol=0, atol=0, equal_nan=True)
    assert len(backward_calls) == (1 if upstream == 1 else 2)  # where it is as expected, it was written before


@given(data=st.data(), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_whole_loss_of_any_shape_and_strides(backend, data, dtype):
    """Against the plain formula in float64."""
    shape = data.draw(shapes())
    values = torch.randn(shape, dtype=dtype, device=backend.device, generator=torch.Generator(backend.device))
    logits, x = (data.draw(strided(t)).detach() for t in (3 * values, torch.sigmoid(values.flip(0))))
    logits.requires_grad_()
    kl = torch.rand(shape[0], dtype=dtype, device=backend.device).requires_grad_()
    loss = nn.ELBOLoss(nn.Bernoulli(), beta=0.5, reduction="sum")(logits, x, kl).loss
    wide = [t.detach().double().requires_grad_() for t in (logits, kl)]
    plain = binary_cross_entropy_with_logits(wide[0], x.double(), reduction="sum") + 0.5 * wide[1].sum()
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(loss.double(), plain, **tolerance)
    grads = gradients(loss, logits, kl)
    torch.testing.assert_close([g.double() for g in grads], list(gradients(plain, *wide)), **tolerance)


def test_whole_loss_and_its_likelihood_both_carry_gradients():
    module, (logits, kl), x = _whole(beta=0.5)
    for use in (lambda r: r.nll.square().sum(), lambda r: r.loss + r.nll.square().sum(), lambda r: r.loss - r.loss):
        ours, parts = (use(f(logits, x, kl)) for f in (module, functools.partial(_in_parts, module)))
        grads = [gradients(loss, logits, kl) for loss in (ours, parts)]
        torch.testing.assert_close(*grads)


def test_whole_loss_is_kept_and_accumulates(backward_calls):
    module, (logits, kl), x = _whole()
    loss = module(logits, x, kl).loss
    first = [g.clone() for g in torch.autograd.grad(loss, (logits, kl), retain_graph=True)]
    loss.backward(retain_graph=True)
    logits.grad.mul_(2)  # what was kept is not what was given
    kl.grad.mul_(2)
    loss.backward()
    torch.testing.assert_close([logits.grad, kl.grad], [3 * g for g in first])
    assert not backward_calls
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_whole_loss_gives_the_gradient_that_it_wrote():
    module, (logits, kl), x = _whole()
    pointers = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: pointers.append(t.data_ptr()) or t, lambda t: t):
        loss = module(logits, x, kl).loss
    loss.backward()
    assert logits.grad.data_ptr() in pointers


def test_whole_loss_double_backward():
    module, leaves, x = _whole((3, 4), torch.float64, beta=2.0)

    def function(logits, kl):
        result = module(logits, x, kl)
        return result.loss, result.nll

    assert is_whole(function(*leaves)[0])
    assert torch.autograd.gradcheck(function, leaves, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(lambda *t: function(*t)[0].square() + function(*t)[1].sum(), leaves)


def test_whole_loss_of_leaves_apart():
    module, (logits, kl), x = _whole()
    (alone,) = torch.autograd.grad(module(logits, x, kl.detach()).loss, logits)
    torch.testing.assert_close(alone, torch.autograd.grad(module(logits, x, kl).loss, logits)[0], rtol=0, atol=0)
    loss = module(logits.detach(), x, kl).loss
    assert not is_whole(loss)
    torch.testing.assert_close(torch.autograd.grad(loss, kl)[0], torch.full((5,), 0.2))
    with torch.no_grad():
        torch.testing.assert_close(module(logits, x, kl).loss, loss.detach())


@pytest.mark.parametrize("shape", [(1, 70), (70,), (5, 1), ()], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_whole_loss_of_data_that_broadcasts(shape, reduction):
    module, (logits, kl), _ = _whole(reduction=reduction, beta=0.5)
    x = torch.rand(shape)
    loss = module(logits, x, kl).loss
    assert is_whole(loss)
    expected = _in_parts(module, logits, x, kl).loss
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)
    grads = (torch.autograd.grad(one, (logits, kl)) for one in (loss, expected))
    torch.testing.assert_close(*grads, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["Categorical", "DiscretizedLogisticMixture"])
def test_whole_loss_of_planes(name):
    row = next(row for row in ROWS if row.planes and row.name == getattr(nn, name).row.function)
    tensors, kl = row.inputs((5, 7)), torch.rand(5).requires_grad_()
    arguments = row.arguments(tensors)
    parameters, x = arguments[:2]
    options = {"n_mixtures": arguments[2]} if len(arguments) > 2 else {}
    module = nn.ELBOLoss(getattr(nn, name)(**options))
    loss = module(parameters, x.detach(), kl).loss
    assert type(loss.grad_fn).__name__ == f"{row.name}_lossBackward"
    nll = getattr(vaefast, row.name)(parameters, x.detach(), *arguments[2:])
    leaves = parameters, kl
    torch.testing.assert_close(gradients(loss, *leaves), gradients((nll + kl).mean(), *leaves))


def test_whole_loss_is_made_in_parts_where_something_was_changed_or_asked():
    module, (logits, kl), x = _whole()
    expected = _in_parts(module, logits, x, kl).loss

    class Halved(nn.Bernoulli):
        def forward(self, *args, **options):
            return 0.5 * super().forward(*args, **options)

    halved = nn.ELBOLoss(Halved())(logits, x, kl).loss
    torch.testing.assert_close(halved, (0.5 * vaefast.bernoulli_nll(logits, x) + kl).mean())
    handle = module.likelihood.register_forward_hook(lambda module, args, nll: nll + 1)
    torch.testing.assert_close(module(logits, x, kl).loss, expected + 1)
    handle.remove()
    torch.testing.assert_close(module(logits, x, kl.double()).loss, expected.double())
    torch.testing.assert_close(nn.ELBOLoss(nn.Bernoulli(), beta=torch.tensor(1.0))(logits, x, kl).loss, expected)
    with pytest.raises(ValueError, match="kl"):
        module(logits, x, kl[:3])
    with pytest.raises(TypeError, match="kl"):
        module(logits, x, 3.0)


class Penalised(nn.Bernoulli):
    """Changes its values in place."""

    def forward(self, parameters, *args, **options):
        nll = super().forward(parameters, *args, **options)
        nll += parameters.square().sum(1)
        return nll


def test_whole_loss_is_made_in_parts_where_its_values_change_in_place():
    module, (logits, kl), x = _whole()
    loss = nn.ELBOLoss(Penalised())(logits, x, kl).loss
    expected = _in_parts(module, logits, x, kl).loss + logits.square().sum(1).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(one, (logits, kl)) for one in (loss, expected)))


@pytest.mark.parametrize("look", [lambda nll: nll.register_hook(lambda g: 2 * g), lambda nll: nll.retain_grad()])
def test_whole_loss_is_made_in_parts_where_somebody_looks_at_its_gradient(look):
    module, (logits, kl), x = _whole()
    module.likelihood.register_forward_hook(lambda module, args, nll: look(nll) and None)
    result = module(logits, x, kl)
    assert not is_whole(result.loss)
    result.loss.backward()
    assert logits.grad.any()


def test_whole_loss_leaves_kl_out_of_the_likelihood():
    module, (logits, mu), x = _whole()
    result = module(logits, x, mu.square())
    assert torch.autograd.grad(result.nll.sum(), mu, allow_unused=True) == (None,)
    result.nll.sum().backward()
    result.kl.sum().backward()  # each has a graph of its own
    torch.testing.assert_close(mu.grad, 2 * mu.detach())


class Checkpointed(nn.Bernoulli):
    """Keeps its arguments with its graph."""

    def forward(self, *args, **options):
        return checkpoint(super().forward, *args, use_reentrant=False, **options)


@pytest.mark.parametrize("likelihood", [nn.Bernoulli, Checkpointed])
@pytest.mark.parametrize("backward", [True, False])
def test_whole_loss_lets_go_of_all(likelihood, backward):
    """Nothing that was made for a step outlives it, the hint and what hangs from it among them."""
    _, (logits, kl), x = _whole((64, 70))
    module, alive = nn.ELBOLoss(likelihood()), []
    for _ in range(3):
        result = module(logits, x, kl * 1.0)
        alive += [weakref.ref(result.loss), weakref.ref(result.nll), weakref.ref(result.kl)]
        if backward:
            result.loss.backward()
        del result
    gc.collect()
    assert not any(ref() is not None for ref in alive)


@contextlib.contextmanager
def inference_with_gradients():
    with torch.inference_mode(), torch.enable_grad():
        yield


@pytest.mark.parametrize("function", [lambda m, *t: m(*t).loss, lambda m, *t: _in_parts(m, *t, expected_grad=0.2).loss])
@pytest.mark.parametrize("forward_too", [True, False])
@pytest.mark.parametrize("backward_too", [True, False])
def test_written_gradients_in_a_checkpoint_below_a_mode(function, forward_too, backward_too):
    """A mode that listens in one of the passes alone: both must save the same."""
    module, (logits, kl), x = _whole()
    expected = torch.autograd.grad(function(module, logits, x, kl), (logits, kl))
    with Computed() if forward_too else contextlib.nullcontext():
        loss = checkpoint(lambda a, b: function(module, a, x, b), logits, kl, use_reentrant=False)
    with Computed() if backward_too else contextlib.nullcontext():
        actual = torch.autograd.grad(loss, (logits, kl))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("inside", [lambda: FakeTensorMode(allow_non_fake_inputs=True), inference_with_gradients])
def test_what_is_kept_between_calls_is_a_plain_tensor(inside):
    """Also where the first call was below a mode whose tensors are fake, or in inference mode."""
    _define._constant.cache_clear()
    module, (logits, kl), x = _whole()
    expected = torch.autograd.grad(_in_parts(module, logits, x, kl).loss, (logits, kl))
    with inside(), contextlib.suppress(RuntimeError, TypeError):
        module(logits, x, kl)
        vaefast.bernoulli_nll(logits, x, expected_grad=0.2)
    for loss in (module(logits, x, kl).loss, _in_parts(module, logits, x, kl, expected_grad=0.2).loss):
        torch.testing.assert_close(torch.autograd.grad(loss, (logits, kl)), expected)


def test_whole_loss_of_no_samples():
    module, (logits, kl), x = _whole((0, 4))
    assert module(logits, x, kl).loss.isnan()
    assert nn.ELBOLoss(nn.Bernoulli(), reduction="sum")(logits, x, kl).loss == 0


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_whole_loss_of_what_a_transform_left_behind(backend):
    module, (logits, kl), x = _whole()
    left = []
    grad(lambda t: left.append(t * 1.0) or t.sum())(logits)
    with vaefast.use_backend(backend):
        loss = module(left[0], x, kl).loss
        torch.testing.assert_close(loss, _in_parts(module, logits, x, kl).loss)
        torch.testing.assert_close(torch.autograd.grad(loss, kl), (torch.full((5,), 0.2),))


def test_whole_loss_is_traced():
    if _extension.module() is None:
        pytest.skip("PyTorch's tracer does not follow the reference's gradient")
    module, (logits, kl), x = _whole((4, 9))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(lambda a, b, c: module(a, b, c).loss, (logits, x, kl), check_trace=False)
    other = torch.randn(4, 9)
    torch.testing.assert_close(traced(other, x, kl), module(other, x, kl).loss)


def test_hint_is_copied():
    hint = ExpectedLoss(0.5, 2.0, torch.ones(3))
    for twin in (copy.copy(hint), copy.deepcopy(hint)):
        assert twin == 0.5
        assert twin.terms[:2] == hint.terms[:2]
        torch.testing.assert_close(twin.terms[2], hint.terms[2])


def test_whole_loss_through_a_checkpoint_and_a_compiler():
    module, (logits, kl), x = _whole((4, 9))
    expected = torch.autograd.grad(module(logits, x, kl).loss, (logits, kl))
    for reentrant in (False, True):
        logits.grad = kl.grad = None
        checkpoint(lambda a, b: module(a, x, b).loss, logits, kl, use_reentrant=reentrant).backward()
        torch.testing.assert_close((logits.grad, kl.grad), expected)
    compiled = torch.compile(lambda a, b: module(a, x, b).loss, fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(logits, kl), (logits, kl)), expected)
    torch.testing.assert_close(grad(lambda a: module(a, x, kl).loss)(logits), expected[0])


def test_given_kl_carries_the_gradient_and_the_moments_do_not(moments, nll):
    kl = torch.rand(B).double().requires_grad_()
    result = vaefast.elbo_loss(nll, kl, *moments, beta=3.0)
    assert result.kl is kl
    grads = gradients(result.loss, nll, kl, *moments)
    torch.testing.assert_close(grads[0], torch.full((B,), 1 / B).double())
    torch.testing.assert_close(grads[1], torch.full((B,), 3 / B).double())
    assert not grads[2].any()
    assert not grads[3].any()
    alone = vaefast.elbo_loss(nll, kl, beta=3.0)
    torch.testing.assert_close(alone.loss, result.loss)
    assert alone.kl_per_dimension is None
    assert alone.active_units is None


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_free_bits(moments, nll, per_channel, reduction):
    """sum_j max(lambda, KL_j) of batch means: those below lambda have no gradient."""
    by = terms(*moments).mean(0)
    by = by.sum((1, 2)) if per_channel else by
    free_bits = by.flatten().sort().values[1:3].mean().item()  # between two of them
    result = vaefast.elbo_loss(
        nll, None, *moments, beta=2.0, free_bits=free_bits, per_channel=per_channel, reduction=reduction
    )
    expected = nll.mean() + 2.0 * torch.where(by > free_bits, by, free_bits).sum()
    expected = expected * B if reduction == "sum" else expected
    torch.testing.assert_close(result.loss, expected)
    torch.testing.assert_close(result.kl, terms(*moments).sum((1, 2, 3)))
    actual, plain = (gradients(loss, nll, *moments) for loss in (result.loss, expected))
    torch.testing.assert_close(actual, plain)
    assert ((actual[1] == 0).flatten(1).sum(1) == 2 * (4 if per_channel else 1)).all()


@pytest.mark.parametrize("capacity", [0.5, torch.tensor(1e3)])
def test_capacity(moments, nll, capacity):
    """beta |KL - C|: below the capacity the gradient raises KL."""
    result = vaefast.elbo_loss(nll, mu=moments[0], logvar=moments[1], beta=100.0, capacity=capacity)
    kl = terms(*moments).sum((1, 2, 3)).mean()
    expected = nll.mean() + 100.0 * (kl - capacity).abs()
    torch.testing.assert_close(result.loss, expected)
    torch.testing.assert_close(gradients(result.loss, *moments), gradients(expected, *moments))


def test_active_units_are_those_whose_mean_varies():
    mu = torch.zeros(1000, 4)
    mu[:, 0] = torch.randn(1000)
    mu[:, 1] = 1e4 + 0.11 * torch.tensor([-1.0, 1.0]).repeat(500)  # a variance of 0.0121 far from 0
    mu[:, 2] = 0.09 * torch.tensor([-1.0, 1.0]).repeat(500)
    result = vaefast.elbo_loss(torch.zeros(1000), mu=mu, logvar=torch.zeros(1000, 4))
    assert result.active_units.item() == 2
    assert vaefast.elbo_loss(torch.zeros(1), mu=mu[:1], logvar=mu[:1]).active_units.item() == 0


def test_half_precision_kl_does_not_overflow():
    mu = torch.full((2, 3), 20.0, dtype=torch.float16).requires_grad_()
    result = vaefast.elbo_loss(torch.zeros(2), mu=mu, logvar=mu, free_bits=0.1)
    torch.testing.assert_close(result.loss, torch.tensor(1.5 * (400 + 4.85165195e8 - 21)), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"nll": torch.zeros(2, 3)}, ValueError, r"nll must have one number per sample"),
        ({"nll": torch.zeros(2, dtype=torch.int64)}, TypeError, "nll must be float32"),
        ({"kl": torch.zeros(3)}, ValueError, r"kl must have nll's shape"),
        ({"kl": None}, ValueError, "mu and logvar must be given without kl"),
        ({"free_bits": 0.1}, ValueError, "mu and logvar must be given with free_bits"),
        ({"mu": torch.zeros(2, 3)}, ValueError, "mu and logvar must be given together"),
        ({"beta": torch.zeros(2, 1)}, ValueError, r"beta must be a number or a tensor of shape \(\) or \(2,\), got"),
        ({"beta": "1"}, TypeError, "beta must be a number or a tensor, got str"),
        ({"capacity": torch.zeros(2)}, ValueError, r"capacity must be a number or a tensor of shape \(\), got"),
        (
            {"free_bits": "1", "mu": torch.zeros(2, 1), "logvar": torch.zeros(2, 1)},
            TypeError,
            "free_bits must be a num",
        ),
        ({"mu": torch.zeros(3, 1), "logvar": torch.zeros(3, 1)}, ValueError, "mu must have nll's 2 samples, got shape"),
        ({"reduction": "batch"}, ValueError, "reduction must be 'mean', 'sum' or 'none'"),
        ({"reduction": "none", "capacity": 1.0}, ValueError, "reduction must be 'mean' or 'sum' with"),
    ],
)
def test_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        vaefast.elbo_loss(**{"nll": torch.zeros(2), "kl": torch.zeros(2), **arguments})


# --- gradients written in the forward pass ---


def _bernoulli(shape=(5, 70), dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(shape, generator=generator).to(dtype).requires_grad_()
    return logits, torch.rand(shape, generator=generator).to(dtype)


@pytest.fixture(autouse=True)
def small_tensors_too(monkeypatch):
    monkeypatch.setattr(_define, "WORTH", 0)


@pytest.fixture
def backward_calls(request) -> list:
    """One entry for each time that Bernoulli's gradient, or the parameter's, is computed in a backward pass."""
    op = TABLE[f"{getattr(request, 'param', 'bernoulli_nll')}_backward"]
    calls, eager = [], op.eager
    op.eager = lambda *args: calls.append(1) or eager(*args)
    yield calls
    op.eager = eager


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("data_too", [False, True])
def test_expected_gradient_is_the_same_bits(dtype, weighted, data_too, backward_calls):
    logits, x = _bernoulli(dtype=dtype)
    x.requires_grad_(data_too)
    weight = torch.rand(5, 70).gt(0.3) if weighted else None
    wanted = [logits, x] if data_too else [logits]
    runs = []
    for hint in (None, 1 / 5):
        nll = vaefast.bernoulli_nll(logits, x, weight=weight, expected_grad=hint)
        runs.append((nll, *torch.autograd.grad(nll.mean(), wanted)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert len(backward_calls) == 1


def test_small_tensors_are_read_twice(monkeypatch, backward_calls):
    monkeypatch.setattr(_define, "WORTH", 5 * 70 + 1)
    logits, x = _bernoulli()
    vaefast.bernoulli_nll(logits, x, expected_grad=0.2).mean().backward()
    assert len(backward_calls) == 1


@pytest.mark.parametrize("upstream", ["sum", "scaled", "rows", "zero", "nan"])
def test_any_other_gradient_is_right_too(upstream, backward_calls):
    logits, x = _bernoulli()
    grad_nll = {
        "sum": torch.ones(5),
        "scaled": torch.full((5,), 65536 / 5),
        "rows": torch.tensor([0.2, 0.2, 0.2, 0.2, 0.3]),
        "zero": torch.zeros(5),
        "nan": torch.full((5,), float("nan")),
    }[upstream]
    (plain,) = torch.autograd.grad(vaefast.bernoulli_nll(logits, x), logits, grad_nll)
    (hinted,) = torch.autograd.grad(vaefast.bernoulli_nll(logits, x, expected_grad=0.2), logits, grad_nll)
    torch.testing.assert_close(hinted, plain, rtol=0, atol=0, equal_nan=True)
    assert len(backward_calls) == 2


def test_retain_graph_and_accumulation(backward_calls):
    logits, x = _bernoulli()
    loss = vaefast.bernoulli_nll(logits, x, expected_grad=0.2).mean()
    first = torch.autograd.grad(loss, logits, retain_graph=True)[0].clone()
    loss.backward(retain_graph=True)
    loss.backward(retain_graph=True)
    torch.testing.assert_close(logits.grad, 2 * first)
    torch.testing.assert_close(torch.autograd.grad(3 * loss, logits)[0], 3 * first)
    assert len(backward_calls) == 1
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_a_leaf_takes_the_written_gradient():
    logits, x = _bernoulli()
    pointers = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: pointers.append(t.data_ptr()) or t, lambda t: t):
        loss = vaefast.bernoulli_nll(logits, x, expected_grad=0.2).mean()
    loss.backward()
    assert logits.grad.data_ptr() in pointers


def test_an_expected_gradient_lies_where_the_tensors_do(backward_calls):
    logits = torch.randn(7, 8000, requires_grad=True)
    x = torch.rand(7, 8000)
    with torch.device("meta"):  # as the default
        vaefast.bernoulli_nll(logits, x, expected_grad=1 / 7).mean().backward()
    assert not backward_calls
    torch.testing.assert_close(logits.grad, (torch.sigmoid(logits.detach()) - x) / 7)


def test_nothing_is_written_without_need(monkeypatch):
    called = []
    op = TABLE["bernoulli_nll_with_gradient"]
    eager = op.eager
    op.eager = lambda *args: called.append(1) or eager(*args)
    try:
        logits, x = _bernoulli()
        with torch.no_grad():
            vaefast.bernoulli_nll(logits, x, expected_grad=0.2)
        vaefast.bernoulli_nll(logits.detach(), x, expected_grad=0.2)
        assert not called
        vaefast.bernoulli_nll(logits, x, expected_grad=0.2)
        assert called
    finally:
        op.eager = eager


def test_expected_gradient_double_backward():
    logits, x = _bernoulli((3, 4), torch.float64)

    def function(logits):
        return vaefast.bernoulli_nll(logits, x, expected_grad=1 / 3)

    assert torch.autograd.gradcheck(function, [logits], check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, [logits])


PLANES = {row.name: row for row in ROWS if row.planes}


@pytest.mark.parametrize("name", PLANES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("upstream", [torch.full((5,), 0.2), torch.linspace(-1, 1, 5)], ids=["expected", "other"])
def test_expected_gradient_of_planes(name, dtype, weighted, upstream):
    """Of every input. Values agree to rounding: where the gradient is written, it shares a division with the value."""
    row = PLANES[name]
    tensors = row.inputs((5, 70), dtype=dtype)
    options = {"weight": torch.rand(5, 70).gt(0.3)} if weighted else {}
    runs = []
    for hint in (None, 0.2):
        nll = getattr(vaefast, name)(*row.arguments(tensors), **options, expected_grad=hint)
        runs.append([nll, *torch.autograd.grad(nll, tensors, upstream.to(nll.dtype))])
    rtol = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(runs[0][0], runs[1][0], rtol=rtol, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1:], runs[1][1:], strict=True))


@pytest.mark.parametrize("name", PLANES)
def test_opcheck_of_planes_with_gradient(name):
    row, constants = PLANES[name], () if name == "categorical_nll" else (1.0, 0.0, 0.0, 0.1, -7.0)
    tensors = [t.detach() for t in row.arguments(row.inputs((3, 4))) if isinstance(t, torch.Tensor)]
    arguments = (torch.ones(3), *tensors, None, 1, *constants, [True, False])
    torch.library.opcheck(TABLE[f"{name}_with_gradient"].call, arguments)


def _divergence(shape=(5, 70), dtype=torch.float32):
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for _ in range(4)]


# the last two are streamed past the caches: whole vectors, and rows that begin anywhere
@pytest.mark.parametrize("shape", [(5, 70), (2, 3, 8), (256, 1024), (5, 60_001)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("upstream", ["expected", "other"])
def test_expected_gradient_of_kl_normal(shape, dtype, upstream):
    tensors = _divergence(shape, dtype)
    runs = []
    for hint in (None, 0.25):
        kl = vaefast.kl_normal(*tensors, logvar_bounds=(-1.0, 1.5), expected_grad=hint)
        grad_kl = torch.full_like(kl, 0.25) if upstream == "expected" else torch.linspace(-1, 1, len(kl)).to(kl)
        runs.append([kl, *torch.autograd.grad(kl, tensors, grad_kl)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("backward_calls", ["kl_normal"], indirect=True)
def test_expected_gradient_of_kl_normal_is_computed_once(backward_calls):
    tensors = _divergence()
    kl = vaefast.kl_normal(*tensors, expected_grad=0.2).mean()
    kl.backward(retain_graph=True)
    assert not backward_calls
    (3 * kl).backward()
    assert backward_calls
    (once,) = torch.autograd.grad(vaefast.kl_normal(*tensors).mean(), tensors[0])
    torch.testing.assert_close(tensors[0].grad, 4 * once)


@pytest.mark.parametrize("hint", [None, 0.2])
def test_kl_normal_makes_what_is_wanted(hint):
    """A constant prior's gradients are neither written nor kept."""
    mu_q, logvar_q, mu_p, logvar_p = _divergence()
    fixed = [mu_p[0].detach(), logvar_p[0].detach()]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        kl = vaefast.kl_normal(mu_q, logvar_q, *fixed, expected_grad=hint).mean()
    assert kept == [350] * 4 if hint is None else kept == [350] * 4 + [5, 350, 350, 0, 0]
    actual = torch.autograd.grad(kl, (mu_q, logvar_q))
    plain = torch.autograd.grad(reference_kl(mu_q, logvar_q, *fixed).mean(), (mu_q, logvar_q))
    torch.testing.assert_close(actual, plain)


def reference_kl(mu_q, logvar_q, mu_p, logvar_p):
    terms = logvar_p - logvar_q - 1 + (logvar_q.exp() + (mu_q - mu_p) ** 2) / logvar_p.exp()
    return 0.5 * terms.sum(1)


@pytest.mark.parametrize("call", [lambda t: vaefast.kl_normal(t, t, t, t, expected_grad=0.2), None])
def test_a_gradient_that_is_changed_is_not_what_is_kept(call):
    """retain_graph: what was written is given out as a copy."""
    logits, x = _bernoulli()
    loss = (vaefast.bernoulli_nll(logits, x, expected_grad=0.2) if call is None else call(logits)).mean()
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    before = first.clone()
    first.detach().numpy()[:] *= 2
    assert torch.equal(torch.autograd.grad(loss, logits)[0], before)


@pytest.mark.parametrize("wrong", ["x", [0.2], torch.tensor(0.2), True])
def test_expected_gradient_refuses(wrong):
    logits, x = _bernoulli()
    for call in (
        lambda: vaefast.bernoulli_nll(logits, x, expected_grad=wrong),
        lambda: vaefast.kl_normal(logits, x, logits, x, expected_grad=wrong),
    ):
        with pytest.raises(TypeError, match="expected_grad must be None or a number, got"):
            call()


def test_expected_gradient_of_kl_normal_double_backward():
    def function(*tensors):
        return vaefast.kl_normal(*tensors, expected_grad=1 / 3)

    tensors = _divergence((3, 4), torch.float64)
    assert torch.autograd.gradcheck(function, tensors, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, tensors)


def test_opcheck_of_kl_normal_with_gradient():
    tensors = [t.detach() for t in _divergence((3, 4))]
    torch.library.opcheck(
        TABLE["kl_normal_with_gradient"].call, (torch.ones(3), *tensors, 1, -1.0, 1.0, [True, False, True, True])
    )


# --- modules ---


def _vae(latent=3):
    torch.manual_seed(0)
    return torch.nn.Linear(8, 2 * latent), torch.nn.Linear(latent, 8)


def _loss(encoder, decoder, objective, x, seed=5):
    mu, logvar = encoder(x).chunk(2, 1)
    z, kl = vaefast.rsample_kl(mu, logvar, seed=seed)
    return objective(decoder(z), x, kl, mu, logvar)


def _plain(encoder, decoder, x, beta, seed=5):
    mu, logvar = encoder(x).chunk(2, 1)
    z = mu + torch.exp(0.5 * logvar) * vaefast.standard_normal(mu.shape, seed=seed)
    nll = torch.nn.functional.binary_cross_entropy_with_logits(decoder(z), x, reduction="none").sum(1)
    return (nll + beta * terms(mu, logvar).sum(1)).mean()


def test_module_is_the_plain_elbo(backward_calls):
    encoder, decoder = _vae()
    x = torch.rand(16, 8)
    result = _loss(encoder, decoder, nn.ELBOLoss(nn.Bernoulli(), beta=2.0), x)
    expected = _plain(encoder, decoder, x, 2.0)
    torch.testing.assert_close(result.loss, expected)
    parameters = [*encoder.parameters(), *decoder.parameters()]
    plain = gradients(expected, *parameters)
    torch.testing.assert_close(gradients(result.loss, *parameters), plain)
    summed = _loss(encoder, decoder, nn.ELBOLoss(nn.Bernoulli(), beta=2.0, reduction="sum"), x).loss
    torch.testing.assert_close(gradients(summed, *parameters), tuple([16 * g for g in plain]))
    assert not backward_calls  # mean and sum bring what the module expected


@pytest.mark.parametrize("options", [{}, {"free_bits": 0.1}, {"capacity": 3.0}, {"reduction": "sum"}])
def test_compiled_with_a_beta_that_changes(options, compiler):
    encoder, decoder = _vae()
    x, beta = torch.rand(16, 8), torch.tensor(0.0)
    objective = nn.ELBOLoss(nn.Bernoulli(), beta=beta, **options)
    graphs = []

    def counting(graph, inputs):
        graphs.append(1)
        return torch._inductor.compile(graph, inputs)

    compiled = torch.compile(lambda x: _loss(encoder, decoder, objective, x), fullgraph=True, backend=counting)
    weights = [*encoder.parameters(), *decoder.parameters()]
    for value in (0.0, 0.5, 1.0):
        beta.fill_(value)
        ours, eager = compiled(x), _loss(encoder, decoder, objective, x)
        torch.testing.assert_close(tuple(ours), tuple(eager))
        torch.testing.assert_close(gradients(ours.loss, *weights), gradients(eager.loss, *weights))
    assert len(graphs) == 1


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing(use_reentrant):
    encoder, decoder = _vae()
    x = torch.rand(16, 8).requires_grad_()
    objective = nn.ELBOLoss(nn.Bernoulli(), free_bits=0.05)
    parameters = [*encoder.parameters(), *decoder.parameters()]

    def run(x):
        return _loss(encoder, decoder, objective, x).loss

    for loss in (checkpoint(run, x, use_reentrant=use_reentrant), run(x)):
        loss.backward()
    halves = [p.grad / 2 for p in parameters]
    torch.testing.assert_close(tuple(halves), gradients(run(x), *parameters))


def test_autocast():
    encoder, decoder = _vae()
    x = torch.rand(16, 8)
    with torch.autocast("cpu", torch.bfloat16):
        result = _loss(encoder, decoder, nn.ELBOLoss(nn.Bernoulli()), x)
    assert result.loss.dtype == result.nll.dtype == result.kl_per_dimension.dtype == torch.float32
    torch.testing.assert_close(result.loss, _plain(encoder, decoder, x, 1.0), rtol=2e-2, atol=0)
    result.loss.backward()
    assert all(p.grad.isfinite().all() for p in decoder.parameters())


def test_per_sample_gradients_by_func():
    _, decoder = _vae()
    x = torch.rand(4, 8)
    objective = nn.ELBOLoss(nn.Bernoulli(), beta=0.5)
    weights = dict(decoder.named_parameters())
    z = torch.randn(4, 3)

    def loss(weights, z, x, kl):
        return objective(functional_call(decoder, weights, z[None]), x[None], kl[None]).loss

    each = vmap(grad(loss), in_dims=(None, 0, 0, 0))(weights, z, x, torch.zeros(4))
    for i in range(4):
        one = grad(loss)(weights, z[i], x[i], torch.zeros(()))
        for name in weights:
            torch.testing.assert_close(each[name][i], one[name])


def test_func_grad_of_free_bits(moments, nll):
    def loss(mu, logvar):
        return vaefast.elbo_loss(nll.detach(), mu=mu, logvar=logvar, free_bits=0.3).loss

    tensors = [t.detach() for t in moments]
    torch.testing.assert_close(grad(loss, (0, 1))(*tensors), gradients(loss(*moments), *moments))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_module_copies(clone):
    objective = nn.ELBOLoss(nn.Bernoulli(), beta=0.5, free_bits=0.1, per_channel=True)
    other = clone(objective)
    assert repr(other) == repr(objective)
    assert "beta=0.5, free_bits=0.1, per_channel=True" in repr(other)


def test_module_refuses_a_reduced_likelihood():
    with pytest.raises(ValueError, match="likelihood must have reduction 'none'"):
        nn.ELBOLoss(nn.Bernoulli(reduction="mean"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"reduction": "meen"}, ValueError, "reduction must be one of 'none', 'mean', 'sum', got 'meen'"),
        ({"reduction": "none", "free_bits": 0.1}, ValueError, "reduction must be 'mean' or 'sum' with free_bits"),
        ({"logvar_bounds": "a"}, TypeError, "logvar_bounds must be None or a pair"),
        ({"logvar_bounds": (1, 0)}, ValueError, "logvar_bounds must be"),
    ],
)
def test_module_refuses_on_construction(options, error, message):
    with pytest.raises(error, match=message):
        nn.ELBOLoss(nn.Bernoulli(), **options)
