"""Terms of pairs: against torch.distributions and known answers, at extremes, and what memory they take."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from conftest import need
from hypothesis import given
from hypothesis import strategies as st
from memory import allocations, peak
from samples import DTYPES, HALF, cotangents, gradients, tuple_of
from strategies import strided
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.func import grad, hessian, jvp, vmap
from torch.utils.checkpoint import checkpoint

import vaefast
from vaefast import _backends, _extension
from vaefast.ops._define import TABLE
from vaefast.ops.pairs import AggregatePosterior

N = 5000  # of the data


@pytest.fixture(params=["cpu", "reference"])
def backend(request):
    with vaefast.use_backend(request.param):
        yield request.param


# Each op, and the same in the PyTorch that people write


def normal(mu, logvar):
    return Normal(mu, torch.exp(0.5 * logvar), validate_args=False)


def plain_mixture(z, mu, logvar, log_weights):
    mixture = MixtureSameFamily(
        Categorical(logits=log_weights), Independent(normal(mu, logvar), 1), validate_args=False
    )
    return mixture.log_prob(z) + torch.logsumexp(log_weights, 0)


def stratified_weights(batch, dataset_size):
    """Chen et al. 2018, appendix C.2, entry by entry."""
    others = batch - 1
    weights = torch.full((batch, batch), 1 / others, dtype=torch.float64)
    for i in range(batch):
        weights[i, (i + 1) % batch] = (dataset_size - others) / (dataset_size * others)
        weights[i, i] = 1 / dataset_size
    return weights


def plain_total_correlation(z, mu, logvar, estimator):
    weights = torch.full((len(z), len(z)), 1 / (len(z) * N), dtype=z.dtype)
    if estimator == "stratified":
        weights = stratified_weights(len(z), N).to(z.dtype)
    pairs = normal(mu, logvar).log_prob(z[:, None])  # [B, B, D]
    log_q_x = normal(mu, logvar).log_prob(z).sum(1)
    log_q = torch.logsumexp(weights.log() + pairs.sum(2), 1)
    log_product = torch.logsumexp(weights.log()[..., None] + pairs, 1).sum(1)
    log_p = Normal(0, 1).log_prob(z).sum(1)
    return log_q_x - log_q, log_q - log_product, log_product - log_p


def plain_mmd(x, y, kernel, scales, unbiased):
    def mean(a, b, own):
        total = 0
        for i in range(len(a)):
            for j in range(len(b)):
                q, cs = (a[i] - b[j]).square().sum(), [2 * a.shape[1] * s for s in scales]
                if own or i != j:
                    total = total + sum(c / (c + q) if kernel == "imq" else torch.exp(-q / c) for c in cs)
        return total / (len(a) * (len(b) - (not own)))

    return mean(x, x, not unbiased) + mean(y, y, not unbiased) - 2 * mean(x, y, True)


class Case(NamedTuple):
    name: str
    call: Callable
    plain: Callable
    sizes: Callable  # (rows, cols, dims) -> the shapes of the tensors
    ops: tuple[str, ...]


def _ops(name):
    return f"{name}_forward", f"{name}_backward"


def _total_correlation(estimator):
    return Case(
        estimator,
        lambda *t: vaefast.total_correlation(*t, N, estimator=estimator),
        functools.partial(plain_total_correlation, estimator=estimator),
        lambda i, j, d: [(i, d)] * 3,
        _ops("total_correlation"),
    )


def _mmd(kernel, scales, unbiased):
    return Case(
        f"{kernel}_{'un' * unbiased}biased",
        lambda x, y: vaefast.mmd(x, y, kernel, scales, unbiased=unbiased),
        functools.partial(plain_mmd, kernel=kernel, scales=scales, unbiased=unbiased),
        lambda i, j, d: [(i, d), (j, d)],
        (f"{kernel}_mmd",),
    )


MIXTURE = Case(
    "mixture",
    vaefast.mixture_log_prob,
    plain_mixture,
    lambda i, j, d: [(i, d), (j, d), (j, d), (j,)],
    _ops("mixture_log_prob"),
)
CASES = [
    MIXTURE,
    *map(_total_correlation, ("weighted", "stratified")),
    *itertools.starmap(_mmd, itertools.product(("imq", "rbf"), ((0.2, 1.0, 3.0),), (True, False))),
]


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request):
    return request.param


def inputs(case, sizes, dtype=torch.float64, seed=0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = [2 * torch.rand(s, generator=generator, dtype=torch.float64) - 1 for s in case.sizes(*sizes)]
    return [t.to(dtype).requires_grad_() for t in tensors]


def run(function, tensors, grads=None):
    outputs = tuple(tuple_of(function(*tensors)))
    return outputs + gradients(outputs, tensors, grads)


def check(case, tensors, tolerance):
    """Outputs and gradients against the plain formula in float64; errors relative to the largest of a tensor."""
    wide = [t.detach().double().requires_grad_() for t in tensors]
    expected = case.plain(*wide)
    grads = cotangents(tuple_of(expected))
    expected = tuple_of(expected) + gradients(tuple_of(expected), wide, grads)
    outputs = tuple(tuple_of(case.call(*tensors)))
    wanted = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    assert {o.dtype for o in outputs} == {wanted}
    actual = outputs + gradients(outputs, tensors, [g.to(wanted) for g in grads])
    for a, e in zip(actual, expected, strict=True):
        bound = tolerance + (torch.finfo(a.dtype).eps if a.dtype in HALF else 0)
        size = max(1, e.abs().max().item()) if e.shape == outputs[0].shape else e.abs().max().item()
        assert (a.double() - e).abs().max().item() <= bound * size


def check_against_reference(case, tensors, tolerance):
    """As `check`, of more points than the plain formulas take."""
    grads = cotangents(tuple_of(case.call(*tensors)))
    actual = run(case.call, tensors, grads)
    with vaefast.use_backend("reference"):
        wide = [t.detach().double().requires_grad_() for t in tensors]
        expected = run(case.call, wide, [g.double() for g in grads])
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert (a - e).abs().max() <= tolerance * e.abs().max().clamp(min=1 if i < len(grads) else 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(2, 2, 1), (7, 13, 4), (19, 17, 3), (33, 5, 40)])
def test_values_and_gradients(case, backend, sizes, dtype):
    check(case, inputs(case, sizes, dtype), 1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [(129, 257, 10), (600, 150, 3), (300, 1100, 2)])
def test_blocks_and_parts(dtype, sizes):
    """Sizes with full blocks, a rest, and several parts on either side."""
    with vaefast.use_backend("cpu"):
        for case in CASES[:3]:
            check(case, inputs(case, sizes, dtype), 1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["cuda", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(7, 13, 4), (129, 257, 10), (1100, 2048, 32)])
def test_on_the_gpu(case, name, dtype, sizes):
    need(name, None if torch.cuda.is_available() else "no CUDA device")
    for op in case.ops:
        need(name, _backends.why_not(name, TABLE[op].density, "cuda"))
    tensors = inputs(case, sizes, dtype)
    with vaefast.use_backend("cpu"):
        grads = cotangents(tuple_of(case.call(*tensors)))
        expected = run(case.call, tensors, grads)
    with vaefast.use_backend(name):
        on_gpu = [t.detach().cuda().requires_grad_() for t in tensors]
        actual = run(case.call, on_gpu, [g.cuda() for g in grads])
        again = run(case.call, on_gpu, [g.cuda() for g in grads])
    assert all(torch.equal(a, b) for a, b in zip(actual, again, strict=True))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    for a, e in zip(actual, expected, strict=True):
        bound = tolerance + (torch.finfo(e.dtype).eps if e.dtype in HALF else 0)
        assert (a.cpu().double() - e.double()).abs().max() <= bound * e.double().abs().max().clamp(min=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_instruction_set(case, dtype):
    module = _extension.module()
    if module is None:
        pytest.skip("cpu: " + _extension.reason())
    try:
        for name in module.instruction_sets:
            module.use_instruction_set(name)
            with vaefast.use_backend("cpu"):
                check(case, inputs(case, (21, 37, 5), dtype), 1e-12 if dtype == torch.float64 else 1e-5)
    finally:
        module.use_instruction_set(_extension.instruction_set())


@given(data=st.data())
def test_strides(case, backend, data):
    tensors = [data.draw(strided(t.detach())) for t in inputs(case, (5, 6, 3))]
    dense = [t.contiguous().requires_grad_() for t in tensors]
    for a, b in zip(run(case.call, [t.requires_grad_() for t in tensors]), run(case.call, dense), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_events_of_several_dimensions(case, backend):
    tensors = inputs(case, (5, 6, 12))
    shaped = [t.detach().reshape(-1, 3, 2, 2).requires_grad_() if t.ndim == 2 else t for t in tensors]
    for a, b in zip(run(case.call, shaped), run(case.call, tensors), strict=True):
        assert torch.equal(a.reshape(b.shape), b)


def test_types_are_promoted():
    z, mu, logvar = (t.detach() for t in inputs(_total_correlation("weighted"), (4, 4, 3)))
    mixed = z.half().requires_grad_(), mu.float().requires_grad_(), logvar.bfloat16().requires_grad_()
    outputs = vaefast.total_correlation(*mixed, N)
    assert [o.dtype for o in outputs] == [torch.float32] * 3
    assert [g.dtype for g in gradients(tuple(outputs), mixed)] == [t.dtype for t in mixed]


def test_gradcheck(case, backend):
    tensors = inputs(case, (3, 4, 2))
    call = (lambda *t: tuple(case.call(*t))) if len(tuple_of(case.call(*tensors))) > 1 else case.call
    assert torch.autograd.gradcheck(call, tensors, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(call, tensors, check_batched_grad=True)


def test_opcheck(case, backend):
    tensors = [t.detach() for t in inputs(case, (4, 4, 3))]
    forward, *backward = (TABLE[op] for op in case.ops)
    constants = {"mmd": ([1.0, 2.0], True, [True, False]), "total_correlation": (-1.0, 0.5, -0.25, 0)}
    constants = next((value for name, value in constants.items() if name in forward.name), ())
    torch.library.opcheck(forward.call, (*tensors, *constants))
    saved = tuple_of(forward(*tensors, *constants))
    for op in backward:
        torch.library.opcheck(op.call, (*cotangents(saved), *tensors, *saved, *constants))


def test_compile(case, backend, compiler):
    compiled = torch.compile(lambda *t: tuple(tuple_of(case.call(*[torch.tanh(x) for x in t]))), fullgraph=True)
    for sizes in ((5, 7, 3), (6, 9, 3), (20, 40, 3)):
        tensors = inputs(case, sizes, torch.float32)
        expected = run(lambda *t: case.call(*[torch.tanh(x) for x in t]), tensors)
        for a, b in zip(run(compiled, tensors), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_transforms(case, backend):
    tensors = [t.detach() for t in inputs(case, (3, 4, 2))]

    def loss(function, *t):
        return sum((i + 1) * o.square().sum() for i, o in enumerate(tuple_of(function(*t))))

    ours, plain = (functools.partial(loss, f) for f in (case.call, case.plain))
    close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-10)
    close(grad(ours)(*tensors), grad(plain)(*tensors))
    close(hessian(ours)(*tensors), hessian(plain)(*tensors))
    tangents = [torch.ones_like(t) for t in tensors]
    close(jvp(ours, tuple(tensors), tuple(tangents)), jvp(plain, tuple(tensors), tuple(tangents)))
    many = [torch.stack([t, t + 0.1]) for t in tensors]
    close(vmap(grad(ours))(*many), torch.stack([grad(ours)(*[t[i] for t in many]) for i in range(2)]))


def test_checkpoint_and_autocast(case, backend):
    tensors = inputs(case, (5, 6, 3), torch.float32)
    expected = run(case.call, tensors)
    saved = run(lambda *t: checkpoint(lambda *t: tuple_of(case.call(*t)), *t, use_reentrant=False), tensors)
    with torch.autocast("cpu", torch.bfloat16):
        cast = run(case.call, tensors)
    for a, b, c in zip(expected, saved, cast, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_do_not_depend_on_the_run_or_the_threads(case, dtype):
    tensors = inputs(case, (300, 700, 9), dtype)
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 1, 2, 3):
            torch.set_num_threads(threads)
            with vaefast.use_backend("cpu"):
                runs.append(run(case.call, tensors))
    finally:
        torch.set_num_threads(before)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_frozen_inputs(case, backend):
    """A gradient does not depend on which others are wanted."""
    tensors = inputs(case, (5, 6, 3))
    whole = run(case.call, tensors)[-len(tensors) :]
    for i, wanted in enumerate(tensors):
        some = [t if t is wanted else t.detach() for t in tensors]
        assert torch.equal(gradients(tuple_of(case.call(*some)), [wanted])[0], whole[i])


# Known answers


def test_stratified_weights_are_unbiased(backend):
    """The estimate's mean over all ordered batches of a data set is q(z) itself; with the weights in the columns 0 and
    1, as in the authors' code, it is off for every sample."""
    size, batch, dims = 5, 3, 2
    generator = torch.Generator().manual_seed(3)
    z, mu, logvar = (torch.randn(size, dims, generator=generator, dtype=torch.float64) for _ in range(3))
    log_q_x = normal(mu, logvar).log_prob(z).sum(1)
    exact = normal(mu, logvar).log_prob(z[:, None]).sum(2).exp().mean(1)
    ours, public = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    wrong = torch.full((batch, batch), 1 / (batch - 1), dtype=torch.float64)
    wrong.view(-1)[::batch] = 1 / size
    wrong.view(-1)[1::batch] = (size - batch + 1) / (size * (batch - 1))
    draws = list(itertools.permutations(range(size), batch))
    for draw in map(list, draws):
        parts = vaefast.total_correlation(z[draw], mu[draw], logvar[draw], size, estimator="stratified")
        q = (log_q_x[draw] - parts.mutual_information).exp()
        ours.index_add_(0, torch.tensor(draw), q)
        pairs = normal(mu[draw], logvar[draw]).log_prob(z[draw][:, None]).sum(2).exp()
        public.index_add_(0, torch.tensor(draw), (wrong * pairs).sum(1))
    count = len(draws) * batch / size
    torch.testing.assert_close(ours / count, exact, rtol=1e-12, atol=0)
    assert ((public / count - exact).abs() > 0.02 * exact).all()


def test_stratified_mutual_information_of_codes_far_apart(backend):
    """Each code tells its sample: the mutual information is log N, of every sample; nothing else is in the sum."""
    mu = 1000.0 * torch.arange(6.0)[:, None].expand(6, 2)
    z, logvar = mu + 0.5, torch.zeros(6, 2)
    parts = vaefast.total_correlation(z, mu, logvar, 600, estimator="stratified")
    torch.testing.assert_close(parts.mutual_information, torch.full((6,), math.log(600.0)))
    # log q(z) = log q(z | x) - log N, and so for each of the 2 dimensions
    torch.testing.assert_close(parts.total_correlation, torch.full((6,), math.log(600.0)))


@pytest.mark.parametrize("estimator", ["weighted", "stratified"])
def test_parts_add_up(backend, estimator):
    z, mu, logvar = inputs(MIXTURE, (9, 9, 4))[:3]
    parts = vaefast.total_correlation(z, mu, logvar, N, estimator=estimator)
    expected = (normal(mu, logvar).log_prob(z) - Normal(0, 1).log_prob(z)).sum(1)
    torch.testing.assert_close(sum(parts), expected)


def test_one_dimension_has_no_total_correlation(backend):
    z, mu, logvar = inputs(MIXTURE, (9, 9, 1))[:3]
    parts = vaefast.total_correlation(z, mu, logvar, N)
    torch.testing.assert_close(parts.total_correlation, torch.zeros_like(parts.total_correlation), rtol=0, atol=1e-14)


def test_one_component_is_the_normal(backend):
    z, mu, logvar, _ = inputs(MIXTURE, (7, 1, 4), torch.float32)
    ours = run(vaefast.mixture_log_prob, (z, mu, logvar))
    theirs = run(lambda *t: -vaefast.gaussian_nll(t[1].expand(7, 4), t[0], t[2]), (z, mu, logvar))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_default_weights_and_repeated_components(backend):
    """1 / K each: as many copies of one component as one likes are that component."""
    z, mu, logvar, _ = inputs(MIXTURE, (7, 3, 4))
    once = vaefast.mixture_log_prob(z, mu, logvar)
    torch.testing.assert_close(vaefast.mixture_log_prob(z, mu.repeat(50, 1), logvar.repeat(50, 1)), once)
    weights = torch.full((3,), -math.log(3), dtype=z.dtype)
    torch.testing.assert_close(vaefast.mixture_log_prob(z, mu, logvar, weights), once)


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_mmd_of_one_sample_with_itself(backend, kernel):
    x = inputs(MIXTURE, (40, 1, 5))[0]
    value = vaefast.mmd(x, x.detach().clone(), kernel, unbiased=False)
    torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-14)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_one_tensor_given_twice(backend, kernel, dtype, compiled):
    x = torch.randn(20, 3, dtype=dtype, generator=torch.Generator().manual_seed(0)).requires_grad_()
    twins = [x.detach().clone().requires_grad_() for _ in range(2)]

    def call(x, y):
        return vaefast.mmd(x, y, kernel, unbiased=False) + vaefast.mixture_log_prob(x, y, y).sum()

    call(*twins).backward()
    if compiled:
        torch._dynamo.reset()
        torch.compile(lambda x: call(x, x), backend="aot_eager", fullgraph=True)(x).backward()
    else:
        call(x, x).backward()
    torch.testing.assert_close(x.grad, twins[0].grad + twins[1].grad)


def test_long_sums_do_not_depend_on_the_threads():
    x, y = (torch.randn(11000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    before, values = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            values.append(vaefast.mmd(x, y, "imq", [1.0]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*values)


def test_mmd_default_scales(backend):
    """WAE-MMD's: C = 2 D s, seven scales; two points are at hand's reach."""
    x, y = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    scales = (0.1, 0.2, 0.5, 1, 2, 5, 10)
    expected = 2 * 7 - 2 * sum(4 * s / (4 * s + 25) for s in scales)
    assert vaefast.mmd(x, y, unbiased=False).item() == pytest.approx(expected, rel=1e-6)
    expected = 2 - 2 * math.exp(-25 / 4)
    assert vaefast.mmd(x, y, "rbf", unbiased=False).item() == pytest.approx(expected, rel=1e-6)


def test_mmd_of_far_points_keeps_its_small_terms(backend):
    """Without k(x, x), which would hide them, terms of 1e-9 beside nothing are right to float32's accuracy."""
    x = torch.tensor([[0.0], [6.0]])
    far = torch.tensor([[1e3], [1e3 + 6.0]])
    expected = 2 * math.exp(-36 / 2)  # pairs across are nothing
    assert vaefast.mmd(x, far, "rbf").item() == pytest.approx(expected, rel=1e-5)


# Extremes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_apart(backend, dtype):
    """Every log-density near -1e6: the nearest component takes all of the gradient."""
    z = torch.zeros(3, 2, dtype=dtype, requires_grad=True)
    mu = torch.tensor([[1000.0, 1000.0], [1001.0, 1001.0], [-1100.0, 1000.0]], dtype=dtype, requires_grad=True)
    logvar = torch.zeros(3, 2, dtype=dtype, requires_grad=True)
    value = vaefast.mixture_log_prob(z, mu, logvar)
    expected = torch.full((3,), -1e6 - math.log(2 * math.pi) - math.log(3), dtype=dtype)
    torch.testing.assert_close(value, expected, rtol=1e-7, atol=0)
    grads = gradients((value,), (z, mu, logvar), [torch.ones_like(value)])
    torch.testing.assert_close(grads[0], torch.full_like(z, 1000), rtol=1e-6, atol=0)
    pull = torch.tensor([[-3000.0, -3000.0], [0, 0], [0, 0]], dtype=dtype)
    torch.testing.assert_close(grads[1], pull, rtol=1e-6, atol=0)
    parts = vaefast.total_correlation(mu, z, logvar, N)
    values = (*parts, *gradients(tuple(parts), (z, mu, logvar)))
    assert all(torch.isfinite(v).all() for v in values)
    exact = plain_total_correlation(mu.double(), z.double(), logvar.double(), "weighted")
    for a, e in zip(parts, exact, strict=True):  # the parts are differences of numbers of 1e6
        torch.testing.assert_close(a.double(), e, rtol=1e-6, atol=0.3 if dtype == torch.float32 else 1e-8)


def test_beyond_the_largest_number(backend):
    """The density of a mean of 1e30 is 0 in float32: the value is -inf, and nothing is NaN."""
    z, mu = torch.zeros(2, 3, requires_grad=True), torch.full((4, 3), 1e30, requires_grad=True)
    logvar = torch.zeros(4, 3, requires_grad=True)
    value = vaefast.mixture_log_prob(z, mu, logvar)
    assert torch.equal(value, torch.full((2,), -math.inf))
    assert not any(g.isnan().any() for g in gradients((value,), (z, mu, logvar)))
    near = torch.cat([mu[:3], torch.ones(1, 3)])
    expected = vaefast.mixture_log_prob(z, near[3:], logvar[3:]) - math.log(4)
    torch.testing.assert_close(vaefast.mixture_log_prob(z, near, logvar), expected)


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
@pytest.mark.parametrize("distance", [1e6, 1e30])
def test_mmd_of_samples_out_of_reach(backend, kernel, distance):
    """k(x, y) and its gradient are nothing, even where |x - y|^2 is infinite: the rest is each sample's own."""
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0]], requires_grad=True)
    y = (x.detach() + distance).requires_grad_()
    scales = (0.2, 1.0)
    value, *grads = run(lambda x, y: vaefast.mmd(x, y, kernel, scales), (x, y))
    own = [4 * s / (4 * s + 2) if kernel == "imq" else math.exp(-2 / (4 * s)) for s in scales]
    between_y = 2.0 if y[0, 0] == y[1, 0] else sum(own)  # 1e30 + 1 is 1e30
    assert value.item() == pytest.approx(sum(own) + between_y, rel=1e-5)
    assert all(torch.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("logvar", [-80.0, 80.0])
@pytest.mark.parametrize("case", CASES[:3], ids=lambda case: case.name)
def test_extreme_variances(case, backend, logvar):
    tensors = inputs(case, (4, 5, 3))
    tensors[2] = torch.full_like(tensors[2], logvar, requires_grad=True)
    check(case, tensors, 1e-12)
    assert not any(v.isnan().any() for v in run(case.call, [t.detach().float().requires_grad_() for t in tensors]))


def test_identical_points(case, backend):
    tensors = [t[:1].detach().expand(t.shape).contiguous().requires_grad_() for t in inputs(case, (6, 7, 3))]
    if len(tensors) == 2:
        tensors[1] = tensors[0][:1].detach().expand(7, 3).contiguous().requires_grad_()
        values = run(case.call, tensors)
        assert all(v.abs().max() <= 1e-14 for v in values)
    else:
        check(case, tensors, 1e-12)


def test_weights_of_nothing(backend):
    z, mu, logvar, log_weights = inputs(MIXTURE, (5, 4, 3))
    with torch.no_grad():
        log_weights[1] = log_weights[3] = -math.inf
    some = run(vaefast.mixture_log_prob, (z, mu, logvar, log_weights))
    kept = [t[::2].detach().requires_grad_() for t in (mu, logvar, log_weights)]
    left = run(vaefast.mixture_log_prob, (z, *kept))
    for a, b in zip(some, left, strict=True):
        torch.testing.assert_close(a if a.shape == b.shape else a[::2], b)
    assert all(torch.equal(g[1::2], torch.zeros_like(g[1::2])) for g in some[2:])
    with torch.no_grad():
        log_weights[:] = -math.inf
    value, *grads = run(vaefast.mixture_log_prob, (z, mu, logvar, log_weights))
    assert torch.equal(value, torch.full_like(value, -math.inf))
    assert all(torch.equal(g, torch.zeros_like(g)) for g in grads)


def test_nan_stays(case, backend):
    tensors = inputs(case, (5, 6, 3))
    with torch.no_grad():
        tensors[0][2, 1] = math.nan
    outputs = tuple_of(case.call(*tensors))
    assert all(o.isnan().all() if o.ndim == 0 else o[2].isnan() for o in outputs)
    if case is MIXTURE:
        assert torch.isfinite(outputs[0][[0, 1, 3, 4]]).all()


def test_single_and_empty(backend):
    z, mu, logvar = (t.detach() for t in inputs(MIXTURE, (1, 1, 3))[:3])
    parts = vaefast.total_correlation(z, mu, logvar, 1)
    log_ratio = (normal(mu, logvar).log_prob(z) - Normal(0, 1).log_prob(z)).sum(1)
    zero = torch.zeros(1, dtype=z.dtype)
    for part, expected in zip(parts, (zero, zero, log_ratio), strict=True):
        torch.testing.assert_close(part, expected)
    torch.testing.assert_close(vaefast.total_correlation(z, mu, logvar, 7).mutual_information, zero + math.log(7))
    tensors = z[:0].requires_grad_(), mu.requires_grad_()
    value, *grads = run(lambda z, mu: vaefast.mixture_log_prob(z, mu, logvar), tensors)
    assert value.shape == (0,)
    assert torch.equal(grads[1], torch.zeros_like(mu))
    nothing = torch.zeros(2, 0)
    log_weights = torch.log(torch.tensor([0.25, 0.5]))
    value = vaefast.mixture_log_prob(nothing, nothing, nothing, log_weights)
    torch.testing.assert_close(value, torch.full((2,), math.log(0.75)))


def test_errors():
    z, x = torch.zeros(4, 3), torch.zeros(4, 2)
    for error, words, call in [
        (ValueError, "dataset_size must be at least the batch's 4", lambda: vaefast.total_correlation(z, z, z, 3)),
        (TypeError, "dataset_size must be an int", lambda: vaefast.total_correlation(z, z, z, 4.0)),
        (ValueError, "estimator must be", lambda: vaefast.total_correlation(z, z, z, 4, estimator="mss")),
        (ValueError, "at least 1 samples", lambda: vaefast.total_correlation(z[:0], z[:0], z[:0], 3)),
        (
            ValueError,
            "at least 2 samples",
            lambda: vaefast.total_correlation(z[:1], z[:1], z[:1], 3, estimator="stratified"),
        ),
        (ValueError, "mu must have z's shape", lambda: vaefast.total_correlation(z, z[:2], z, 9)),
        (ValueError, "logvar must have z's shape", lambda: vaefast.total_correlation(z, z, z[:2], 9)),
        (ValueError, "mu_k must have z's event shape", lambda: vaefast.mixture_log_prob(z, x, x)),
        (ValueError, "logvar_k must have mu_k's shape", lambda: vaefast.mixture_log_prob(z, z, z[:2])),
        (ValueError, "at least one component", lambda: vaefast.mixture_log_prob(z, z[:0], z[:0])),
        (ValueError, r"log_weights must have shape \(4,\)", lambda: vaefast.mixture_log_prob(z, z, z, z)),
        (TypeError, "log_weights must be float32", lambda: vaefast.mixture_log_prob(z, z, z, z[:, 0].int())),
        (TypeError, "z must be a tensor", lambda: vaefast.mixture_log_prob([0.0], z, z)),
        (ValueError, "on z's device", lambda: vaefast.mixture_log_prob(z, z.to("meta"), z.to("meta"))),
        (ValueError, "y must have x's event shape", lambda: vaefast.mmd(z, x)),
        (ValueError, "kernel must be 'imq' or 'rbf'", lambda: vaefast.mmd(z, z, "linear")),
        (ValueError, "scales must be positive", lambda: vaefast.mmd(z, z, scales=(1.0, 0.0))),
        (ValueError, "scales must be positive", lambda: vaefast.mmd(z, z, scales=())),
        (TypeError, "scales must be a sequence of numbers, got 1.0", lambda: vaefast.mmd(z, z, scales=1.0)),
        (TypeError, "scales must be a sequence of numbers, got 'a'", lambda: vaefast.mmd(z, z, scales="a")),
        (ValueError, "y must hold at least 2 samples", lambda: vaefast.mmd(z, z[:1])),
        (ValueError, "x must hold at least 1 samples", lambda: vaefast.mmd(z[:0], z, unbiased=False)),
        (ValueError, "at least one number a sample", lambda: vaefast.mmd(z[:, :0], z[:, :0])),
    ]:
        with pytest.raises(error, match=words):
            call()


def test_rows_that_are_a_slice_of_the_cols(backend):
    """As with other processes' points: value and gradients are those of these rows among all."""
    z, mu, logvar = inputs(_total_correlation("stratified"), (7, 7, 3))
    weights = -1.0, 0.5, -0.25
    whole, parts = AggregatePosterior.apply(z, mu, logvar, *weights, 0), []
    for begin, end in ((0, 2), (2, 6), (6, 7)):
        parts.append(AggregatePosterior.apply(z[begin:end], mu, logvar, *weights, begin))
    together = tuple(map(torch.cat, zip(*parts, strict=True)))
    grads = cotangents(whole)
    for a, b in zip(
        (*whole, *gradients(whole, (z, mu, logvar), grads)),
        (*together, *gradients(together, (z, mu, logvar), grads)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


# Memory, and where they run


def test_memory_does_not_grow_as_pairs(case):
    """Forward and backward of B points take at most 32 tensors of B D, of which 16 are the parts' sums."""

    def step(tensors):
        outputs = tuple(tuple_of(case.call(*tensors)))
        return outputs, gradients(outputs, tensors, [torch.ones_like(o) for o in outputs])

    with vaefast.use_backend("cpu"):
        for batch in (1024, 2048):
            tensors = inputs(case, (batch, batch, 16), torch.float32)
            assert peak(allocations(functools.partial(step, tensors))[1]) <= 32 * tensors[0].nbytes


def test_where_they_run():
    """Every op of pairs, and no other, is known to every compiled backend."""
    ops = {op for case in CASES for op in case.ops}
    assert {op.name for op in TABLE.values() if op.walk == "pairs"} == ops
    for op in ops:
        assert _backends.why_not("cpu", TABLE[op].density, "cpu") is None
        for name, device in (("cuda", "cuda"), ("triton", "cuda")):
            reason = _backends.why_not(name, TABLE[op].density, device) or ""
            assert "kernel for" not in reason
            assert "density" not in reason


# What tests the walk alone: other backends run these again
OF_THE_WALK = (
    test_stratified_mutual_information_of_codes_far_apart,
    test_one_component_is_the_normal,
    test_mmd_of_far_points_keeps_its_small_terms,
    test_far_apart,
    test_beyond_the_largest_number,
    test_extreme_variances,
    test_identical_points,
    test_weights_of_nothing,
    test_nan_stays,
    test_single_and_empty,
    test_frozen_inputs,
    test_rows_that_are_a_slice_of_the_cols,
)
