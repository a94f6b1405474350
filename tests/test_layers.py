"""FusedSequential against nn.Sequential: values, gradients of every order, and all that may be done to a module."""

from __future__ import annotations

import collections
import copy
import gc
import itertools
import pickle
import weakref

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
    "another dictionary of hooks": lambda m: (
        setattr(of_inner(m), "_forward_hooks", collections.OrderedDict()),
        of_inner(m).register_forward_hook(double_output),
    ),
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


def large(monkeypatch) -> None:
    """Every product is oneDNN's."""
    monkeypatch.setattr(layers, "_onednn", lambda: torch.ops.mkldnn._linear_pointwise)
    monkeypatch.setattr(layers, "_LARGE", 0)


BIASES = {
    "every other": torch.arange(8.0)[::2],
    "expanded": torch.tensor([3.0]).expand(4),
    "one number": torch.tensor([3.0]),
    "no dimension": torch.tensor(3.0),
    "a row": torch.arange(4.0)[None],
    "a row for each sample": torch.arange(20.0).view(5, 4),
}


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
@pytest.mark.parametrize("kind", BIASES)
@pytest.mark.parametrize("by_onednn", [False, True])
def test_biases_of_every_kind(monkeypatch, kind, by_onednn):
    plain, fused = pair(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2))
    plain[0].bias, fused[0].bias = (nn.Parameter(BIASES[kind]) for _ in range(2))
    if by_onednn:
        large(monkeypatch)
    same(plain, fused, torch.randn(5, 3, requires_grad=True))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
def test_wrong_input_of_large_products_raises_as_in_pytorch(monkeypatch):
    large(monkeypatch)
    test_wrong_input_raises_as_in_pytorch()


def second_order(module, x, *more):
    """Gradients of the sum of squared gradients."""
    inputs = [*module.parameters(), *more]
    grads = torch.autograd.grad(module(x).square().sum(), inputs, create_graph=True)
    return [*grads, *torch.autograd.grad(sum(g.square().sum() for g in grads), inputs)]


def test_gradients_of_gradients_of_what_stands_twice():
    torch.manual_seed(0)
    tied, x = nn.Linear(3, 3), torch.randn(4, 3, requires_grad=True)
    plain, fused = (kind(tied, nn.Tanh(), tied) for kind in (nn.Sequential, FusedSequential))
    torch.testing.assert_close(second_order(fused, x, x), second_order(plain, x, x))
    plain, fused = pair(nn.Linear(3, 3), nn.Tanh())
    for inner in (lambda m: m(x), lambda m: x * m[0].bias):
        actual, expected = (second_order(m, inner(m), x) for m in (fused, plain))
        torch.testing.assert_close(actual, expected)


def test_gradients_of_gradients_of_what_was_frozen_meanwhile():
    plain, fused, x = example()
    found = []
    for module in (plain, fused):
        y = module(x).square().sum()
        module.requires_grad_(False)
        (gradient,) = torch.autograd.grad(y, x, create_graph=True)
        found.append((gradient, torch.autograd.grad(gradient.square().sum(), x)[0]))
    torch.testing.assert_close(*found)


def test_a_change_in_place_before_a_gradient_of_a_gradient_is_refused():
    _, fused, x = example()
    y = fused(x).sum()
    with torch.no_grad():
        fused[3].bias.add_(1)
    torch.autograd.grad(y, x, retain_graph=True)  # which needs no bias
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y, x, create_graph=True)


def test_replicas_run_their_own_modules():
    _, fused, x = example()
    replica = fused._replicate_for_data_parallel()
    replica[1] = nn.Tanh()
    torch.testing.assert_close(replica(x), nn.Sequential(*replica)(x))


def test_what_is_set_after_the_forward_pass_does_not_count():
    found = []
    for module in pair(nn.Linear(3, 4), nn.LeakyReLU(0.1), nn.Linear(4, 2)):
        torch.manual_seed(0)
        y = module(torch.randn(5, 3))
        module[1].negative_slope = 0.9
        y.sum().backward()
        found.append([p.grad for p in module.parameters()])
    torch.testing.assert_close(*found)


def test_functions_that_others_replaced_are_called(monkeypatch):
    class Doubled(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            return 2 * result if function is nn.functional.linear else result

    plain, fused, x = example()
    with Doubled():
        same(plain, fused, x)
    forward = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: 3 * forward(self, x))
    same(plain, fused, x)


def _as_attribute(module):
    weight = module.weight.detach()
    del module.weight
    module.weight = weight


def _as_buffer(module):
    weight = module.weight.detach()
    del module.weight
    module.register_buffer("weight", weight)


@pytest.mark.parametrize("change", [_as_attribute, _as_buffer])
def test_a_weight_that_is_no_parameter(change):
    plain, fused, x = example()
    for module in (plain, fused):
        change(of_inner(module))
    same(plain, fused, x)


@torch.no_grad()
def _bias_changed(module, x):
    module[0].bias.add_(1)


@torch.no_grad()
def _first_weight_changed(module, x):
    module[0].weight.add_(1)


@torch.no_grad()
def _input_of_a_frozen_layer_changed(module, x):
    x.zero_()


@pytest.mark.parametrize("change", [_bias_changed, _first_weight_changed, _input_of_a_frozen_layer_changed])
def test_what_backward_does_not_need_may_change_in_place(change):
    found = []
    for module in example()[:2]:
        torch.manual_seed(0)
        module[0].requires_grad_(change is not _input_of_a_frozen_layer_changed)
        x = torch.randn(4, 3)
        y = module(x).sum()
        change(module, x)
        y.backward()
        found.append([p.grad for p in module.parameters()])
    torch.testing.assert_close(*found)


def test_what_backward_needs_may_not_change_in_place():
    for index, name in ((2, "weight"), (3, "weight")):
        _, fused, x = example()
        y = fused(x).sum()
        with torch.no_grad():
            getattr(fused[index][0] if index == 2 else fused[index], name).add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.backward()


def test_inference_tensors_into_frozen_layers():
    plain, fused, _ = example()
    with torch.inference_mode():
        x = torch.randn(4, 3)
    for module in (plain, fused):
        module[0].requires_grad_(False)
    same(plain, fused, x)


def saved_bytes(module, x) -> int:
    """What is kept for backward, parameters apart."""
    kept, own = {}, {p.data_ptr() for p in module.parameters()}

    def pack(t):
        if t.data_ptr() not in own:
            kept[t.data_ptr()] = t.nbytes
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        module(x)
    return sum(kept.values())


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.SiLU()])
@pytest.mark.parametrize("trained", ["all", "last", "none, but x", "none"])
def test_no_more_is_kept_than_pytorch_keeps(activation, trained):
    plain, fused = pair(*[m for _ in range(4) for m in (nn.Linear(8, 8), activation)], nn.Linear(8, 8))
    x = torch.randn(16, 8, requires_grad=trained == "none, but x")
    for module in (plain, fused):
        module.requires_grad_(trained == "all")
        module[-1].requires_grad_(trained in ("all", "last"))
    assert saved_bytes(fused, x) <= saved_bytes(plain, x)


def test_nothing_outlives_the_module():
    _, fused, _ = example()
    weight = weakref.ref(of_inner(fused).weight)
    gc.disable()  # no cycle to be found
    try:
        del fused
        assert weight() is None
    finally:
        gc.enable()


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
