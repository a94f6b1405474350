"""FusedSequential against nn.Sequential: values, gradients of every order, and all that may be done to a module."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from vaefast.nn import FusedSequential, layers

ACTIVATIONS = [
    nn.ReLU(),
    nn.ReLU(inplace=True),
    nn.LeakyReLU(0.2),
    nn.LeakyReLU(0.3, inplace=True),
    nn.SiLU(inplace=True),
    nn.GELU(),
    nn.GELU("tanh"),
    nn.ELU(0.7),
    nn.SELU(),
    nn.Tanh(),
    nn.Sigmoid(),
    nn.Softplus(2.0, 1.0),
    nn.Mish(),
]
DOUBLE = {"dtype": torch.float64}


def pair(*modules: nn.Module) -> tuple[nn.Sequential, FusedSequential]:
    """The same layers twice, with parameters of their own."""
    plain = nn.Sequential(*modules)
    return plain, FusedSequential(*copy.deepcopy(plain))


def is_fused(y: torch.Tensor) -> bool:
    return type(y.grad_fn).__name__ == "_LayersBackward"


def gradients(module: nn.Module, x: torch.Tensor, upstream: torch.Tensor | None = None) -> list[torch.Tensor | None]:
    """[y, the gradients of x and of every parameter]."""
    x = x.detach().clone().requires_grad_(x.requires_grad)
    module.zero_grad()
    y = module(x)
    if y.requires_grad:
        y.backward(torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape) if upstream is None else upstream)
    return [y.detach(), x.grad, *[p.grad for p in module.parameters()]]


def same(a: nn.Module, b: nn.Module, x: torch.Tensor, **tolerance) -> None:
    torch.testing.assert_close(gradients(a, x), gradients(b, x), **tolerance)


@st.composite
def stacks(draw):
    sizes = draw(st.lists(st.integers(1, 6), min_size=2, max_size=5))
    modules: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        modules.append(nn.Linear(a, b, bias=draw(st.booleans()), **DOUBLE))
        others = [nn.LayerNorm(b, **DOUBLE), nn.Identity()]
        modules += copy.deepcopy(draw(st.lists(st.sampled_from([*ACTIVATIONS, *others]), max_size=1)))
        modules += copy.deepcopy(draw(st.lists(st.sampled_from([nn.Tanh(), nn.GELU(), *others]), max_size=1)))
    if draw(st.booleans()):
        cut = draw(st.integers(0, len(modules)))
        modules = [*modules[:cut], nn.Sequential(*modules[cut:])]
    batch = draw(st.sampled_from([(0,), (1,), (3,), (2, 2), ()]))
    x = torch.randn(*batch, sizes[0], requires_grad=draw(st.booleans()), **DOUBLE)
    return modules, x


@settings(deadline=None)
@given(stacks(), st.integers(0, 2**31))
def test_any_stack_is_that_of_pytorch(stack, frozen):
    modules, x = stack
    plain, fused = pair(*modules)
    for module in (plain, fused):
        for i, p in enumerate(module.parameters()):
            p.requires_grad_(not frozen >> i & 1)
    same(plain, fused, x)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_gradients_of_both_orders(activation):
    torch.manual_seed(0)
    module = FusedSequential(nn.Linear(3, 4), activation, nn.Linear(4, 2), copy.deepcopy(activation)).double()
    x = torch.randn(5, 3, requires_grad=True, **DOUBLE)
    assert is_fused(module(x))
    inputs = [x, *module.parameters()]
    names = [name for name, _ in module.named_parameters()]

    def call(x, *parameters):
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


def strided(kind: str, rows: int, cols: int) -> torch.Tensor:
    return {
        "contiguous": lambda: torch.randn(rows, cols),
        "transposed": lambda: torch.randn(cols, rows).t(),
        "half": lambda: torch.randn(rows, 2 * cols).chunk(2, 1)[1],
        "every other": lambda: torch.randn(rows, 2 * cols)[:, ::2],
        "one row for all": lambda: torch.randn(1, cols).expand(rows, cols),
        "one column for all": lambda: torch.randn(rows, 1).expand(rows, cols),
        "one number": lambda: torch.randn(1, 1).expand(rows, cols),
    }[kind]()


KINDS = ["contiguous", "transposed", "half", "every other", "one row for all", "one column for all", "one number"]


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
@pytest.mark.filterwarnings("ignore:TF32")  # PyTorch's own, of a setting for other devices
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 7])
def test_products_of_onednn(monkeypatch, kind, rows):
    calls = []

    def onednn(*args):
        calls.append(args)
        return torch.ops.mkldnn._linear_pointwise(*args)

    monkeypatch.setattr(layers, "_onednn", lambda: onednn)
    monkeypatch.setattr(layers, "_LARGE", 0)
    torch.manual_seed(0)
    plain, fused = pair(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4, bias=False), nn.Tanh(), nn.Linear(4, 3))
    x, upstream = strided(kind, rows, 5).requires_grad_(), strided(kind, rows, 3)
    torch.testing.assert_close(gradients(plain, x, upstream), gradients(fused, x, upstream))
    assert len(calls) >= 5
    calls.clear()
    with torch.backends.mkldnn.flags(enabled=False):
        same(plain, fused, x)
        same(plain.double(), fused.double(), x.double())
    assert not calls


def test_large_products_are_right_on_this_machine():
    torch.manual_seed(0)
    plain, fused = pair(nn.Linear(400, 300), nn.Softplus(), nn.Linear(300, 200))
    x = torch.rand(64, 400, requires_grad=True)
    expected = gradients(copy.deepcopy(plain).double(), x.double())
    for actual, wanted in zip(gradients(fused, x), expected, strict=True):
        torch.testing.assert_close(actual.double(), wanted, rtol=1e-4, atol=1e-4)


def example(batch: int = 4):
    torch.manual_seed(0)
    plain, fused = pair(nn.Linear(3, 5), nn.SiLU(), nn.Sequential(nn.Linear(5, 4), nn.ReLU()), nn.Linear(4, 2))
    x = torch.randn(batch, 3, requires_grad=True)
    assert is_fused(fused(x))  # a plan is made
    return plain, fused, x


def of_inner(module: nn.Module) -> nn.Module:
    return module[2][0]


def double_output(module, inputs, output):
    return 2 * output


CHANGES = {
    "forward hook": lambda m: of_inner(m).register_forward_hook(double_output),
    "pre-hook": lambda m: of_inner(m).register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],)),
    "hook of an activation": lambda m: m[1].register_forward_hook(double_output),
    "hook of a container": lambda m: m[2].register_forward_hook(double_output),
    "backward hook": lambda m: of_inner(m).register_full_backward_hook(lambda module, gi, go: (3 * gi[0],)),
    "backward pre-hook": lambda m: of_inner(m).register_full_backward_pre_hook(lambda module, go: (3 * go[0],)),
    "a forward of its own": lambda m: setattr(of_inner(m), "forward", lambda x: x[:, :4] + 1),
    "another layer": lambda m: m.__setitem__(1, nn.Tanh()),
    "another inner layer": lambda m: m[2].__setitem__(1, nn.Tanh()),
    "a layer more": lambda m: m.append(nn.Softmax(1)),
    "a layer less": lambda m: m.pop(3),
    "another weight": lambda m: setattr(of_inner(m), "weight", nn.Parameter(torch.ones(4, 5))),
    "a parametrisation": lambda m: (torch.manual_seed(0), parametrizations.spectral_norm(of_inner(m))),
    "another slope": lambda m: m.__setitem__(1, nn.LeakyReLU(0.5)),
    "a frozen layer": lambda m: of_inner(m).requires_grad_(False),
    "no bias": lambda m: setattr(of_inner(m), "bias", None),
    "float64": lambda m: m.double() and None,
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_changed_later_counts(change):
    plain, fused, x = example()
    for module in (plain, fused):
        CHANGES[change](module)
    x = x.detach().to(next(plain.parameters()).dtype).requires_grad_()
    for _ in range(2):
        same(plain, fused, x)


def test_hook_that_is_taken_away():
    plain, fused, x = example()
    handle = of_inner(fused).register_forward_hook(double_output)
    assert not torch.allclose(fused(x), plain(x))
    handle.remove()
    same(plain, fused, x)


def test_global_hooks_are_called():
    _, fused, x = example()
    seen = []
    with nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module))):
        fused(x)
    assert seen.count(nn.Linear) == 3


def test_wrong_input_raises_as_in_pytorch():
    plain, fused, _ = example()
    for bad in (torch.randn(4, 2), torch.randn(4, 3, dtype=torch.float64), torch.ones(4, 3, dtype=torch.int64)):
        with pytest.raises(RuntimeError) as expected:
            plain(bad)
        with pytest.raises(RuntimeError) as got:
            fused(bad)
        assert str(got.value) == str(expected.value)


def test_copies_and_names():
    plain, fused, x = example()
    assert [*plain.state_dict()] == [*fused.state_dict()]
    copied = copy.deepcopy(fused)
    loaded = pickle.loads(pickle.dumps(fused))
    with torch.no_grad():
        fused[0].weight.zero_()  # of the original alone
    same(plain, copied, x)
    same(plain, loaded, x)


def test_without_gradients():
    plain, fused, x = example()
    with torch.no_grad():
        torch.testing.assert_close(fused(x), plain(x))
    with torch.inference_mode():
        torch.testing.assert_close(fused(x), plain(x))


def test_batched_gradients():
    plain, fused, x = example()
    upstream = torch.randn(6, 4, 2)

    def batched(module):
        return torch.autograd.grad(module(x), [x, *module.parameters()], upstream, is_grads_batched=True)

    torch.testing.assert_close(batched(fused), batched(plain))


def test_transforms():
    plain, fused, x = example()

    def of(module, transform):
        parameters = {name: p.detach() for name, p in module.named_parameters()}

        def loss(parameters, x):
            return torch.func.functional_call(module, parameters, (x,)).square().sum()

        return transform(loss, parameters, x.detach())

    def per_sample(loss, parameters, x):
        return torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x[:, None])

    def tangent(loss, parameters, x):
        return torch.func.jvp(lambda x: loss(parameters, x), (x,), (torch.ones_like(x),))

    def hessian(loss, parameters, x):
        return torch.func.hessian(lambda x: loss(parameters, x))(x)

    for transform in (per_sample, tangent, hessian):
        torch.testing.assert_close(of(fused, transform), of(plain, transform))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant):
    plain, fused, x = example()
    module = nn.Sequential(fused)
    module.forward = lambda x: torch.utils.checkpoint.checkpoint(fused, x, use_reentrant=reentrant)
    same(plain, module, x)


def test_autocast():
    plain, fused, x = example()
    with torch.autocast("cpu", torch.bfloat16):
        y = fused(x)
        assert y.dtype is torch.bfloat16
        torch.testing.assert_close(y, plain(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(dtype):
    plain, fused, x = example()
    same(plain.to(dtype), fused.to(dtype), x.detach().to(dtype).requires_grad_())


def test_compile():
    plain, fused, x = example()
    torch._dynamo.reset()
    compiled = torch.compile(fused, fullgraph=True)
    torch.testing.assert_close(gradients(compiled, x), gradients(plain, x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_tracing():
    plain, fused, x = example()
    traced = torch.jit.trace(fused, x.detach())
    torch.testing.assert_close(traced(x + 1), plain(x + 1))
    exported = torch.export.export(fused, (x.detach(),)).module()
    torch.testing.assert_close(exported(x.detach()), plain(x))
    graph = torch.fx.symbolic_trace(fused)
    torch.testing.assert_close(graph(x), plain(x))
