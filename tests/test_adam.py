"""The shorter step of torch's fused Adam against torch's own, bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from vaefast.training.adam import Adam


def made(kind=torch.optim.Adam, dtype=torch.float32, **options):
    """(model, optimizer) of two groups, with a schedule that changes the rate."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).to(dtype)
    groups = [{"params": [*model[0].parameters()]}, {"params": [*model[2].parameters()], "lr": 0.02, "eps": 1e-6}]
    return model, kind(groups, lr=0.01, fused=True, **options)


def differentiate(model: nn.Module, step: int, without: tuple[int, ...] = ()) -> None:
    generator = torch.Generator().manual_seed(step)
    for i, p in enumerate(model.parameters()):
        p.grad = None if i in without else torch.randn(p.shape, generator=generator).to(p.dtype)


def compare(ours, theirs) -> None:
    (model, optimizer), (other, reference) = ours, theirs
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
    a, b = optimizer.state_dict()["state"], reference.state_dict()["state"]
    assert a.keys() == b.keys()
    for i, state in a.items():
        assert state.keys() == b[i].keys()
        for name, value in state.items():
            assert torch.equal(value, b[i][name]), (i, name)


def alike(monkeypatch, change, *, at: int, steps: int, compared=lambda ours, theirs: None) -> int:
    """Train two models, one with the shorter step, both changed before step `at`, and `compared` after each; returns
    how often it was the optimizer's own."""
    ours, theirs = made(), made()
    step, own = Adam(ours[1]), calls(monkeypatch, ours[1])
    for i in range(steps):
        if i == at:
            for pair in (ours, theirs):
                change(*pair)
        for model in (ours[0], theirs[0]):
            differentiate(model, i)
        step.step()
        theirs[1].step()
        compared(ours, theirs)
    for p, q in zip(ours[0].parameters(), theirs[0].parameters(), strict=True):
        assert torch.equal(p, q)
    return own.count(ours[1])


def calls(monkeypatch, optimizer) -> list:
    """Each call of the optimizer's own step."""
    seen, step = [], type(optimizer).step
    monkeypatch.setattr(type(optimizer), "step", lambda self, *args: (seen.append(self), step(self, *args)))
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.Adam, {}),
        (torch.optim.Adam, {"weight_decay": 0.1, "betas": (0.5, 0.9)}),
        (torch.optim.AdamW, {"weight_decay": 0.1}),
        (torch.optim.Adam, {"maximize": True}),
    ],
)
def test_same_bits(monkeypatch, kind, options, dtype):
    ours, theirs = made(kind, dtype, **options), made(kind, dtype, **options)
    step, own = Adam(ours[1]), calls(monkeypatch, ours[1])
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.9) for o in (ours[1], theirs[1])]
    for i in range(6):
        # a parameter without a gradient for a while, whose step then lags behind
        for model in (ours[0], theirs[0]):
            differentiate(model, i, without=(1, 3) if i in (0, 3) else ())
        step.step()
        theirs[1].step()
        for schedule in schedules:
            schedule.step()
        compare(ours, theirs)
    assert own.count(ours[1]) == 2  # two parameters have no state before the second


@pytest.mark.filterwarnings("error")
def test_goes_on_after_a_state_was_loaded(monkeypatch):
    ours, theirs = made(), made()
    step = Adam(ours[1])
    for i in range(3):
        for model in (ours[0], theirs[0]):
            differentiate(model, i)
        step.step()
        theirs[1].step()
    saved = copy.deepcopy(ours[1].state_dict())
    again = made()
    again[0].load_state_dict(ours[0].state_dict())
    again[1].load_state_dict(saved)
    step, own = Adam(again[1]), calls(monkeypatch, again[1])
    schedule = torch.optim.lr_scheduler.ExponentialLR(again[1], 1.0)
    for i in range(3, 6):
        for model in (again[0], theirs[0]):
            differentiate(model, i)
        step.step()
        schedule.step()  # which asks whether the optimizer took a step
        theirs[1].step()
        compare(again, theirs)
    assert own.count(again[1]) == 0


def _moved(model, optimizer):
    for state in optimizer.state.values():
        for value in state.values():
            value.data = value.data.double().float()


def _shared(model, optimizer):
    for state in optimizer.state.values():
        state["step"].share_memory_()


def _one_step_for_all(model, optimizer):
    steps = {id(s): s["step"] for s in optimizer.state.values()}
    for state in optimizer.state.values():
        state["step"] = next(iter(steps.values()))


def _other_shape(model, optimizer):
    state = next(iter(optimizer.state.values()))
    state["step"] = state["step"].clone().reshape(1)


@pytest.mark.parametrize("change", [_moved, _shared, _one_step_for_all, _other_shape])
def test_whatever_becomes_of_the_steps(monkeypatch, change):
    own = alike(monkeypatch, change, at=3, steps=6, compared=compare)
    assert own == (1 if change is _moved else 4)


def test_a_steps_tensor_stays_what_it_is():
    model, optimizer = made()
    step = Adam(optimizer)
    differentiate(model, 0)
    step.step()
    held = [s["step"] for s in optimizer.state.values()]
    for _ in range(3):
        step.step()
    assert all(torch.equal(t, torch.tensor(4.0)) for t in held)
    assert all(t is s["step"] for t, s in zip(held, optimizer.state.values(), strict=True))


def test_a_step_of_ones_own_is_taken():
    model, optimizer = made()
    step, seen, own = Adam(optimizer), [], optimizer.step
    differentiate(model, 0)
    step.step()
    optimizer.step = lambda: (seen.append(1), own())
    for _ in range(2):
        step.step()
    assert len(seen) == 2


def _late(model, optimizer):
    late = nn.Parameter(torch.ones(2))
    late.grad = torch.ones(2)
    optimizer.add_param_group({"params": [late]})


@pytest.mark.parametrize(
    "change",
    [
        lambda model, optimizer: optimizer.register_step_pre_hook(lambda *_: None),
        lambda model, optimizer: optimizer.register_step_post_hook(lambda *_: None),
        lambda model, optimizer: optimizer.param_groups[1].update(fused=False, foreach=False),
        lambda model, optimizer: optimizer.param_groups[0].update(lr=torch.tensor(0.01)),
        lambda model, optimizer: setattr(optimizer, "found_inf", torch.tensor(1.0)),
        lambda model, optimizer: setattr(optimizer, "grad_scale", torch.tensor(4.0)),
        _late,
    ],
    ids=["pre-hook", "post-hook", "not fused", "lr a tensor", "found_inf", "grad_scale", "a group more"],
)
def test_the_optimizers_own_step_where_that_is_not_all(monkeypatch, change):
    assert alike(monkeypatch, change, at=2, steps=4) == 3


def test_global_hooks_are_called():
    model, optimizer = made()
    step, seen = Adam(optimizer), []
    differentiate(model, 0)
    handle = register_optimizer_step_post_hook(lambda *_: seen.append(1))
    try:
        for _ in range(3):
            step.step()
    finally:
        handle.remove()
    assert len(seen) == 3


def test_other_optimizers(monkeypatch):
    class Mine(torch.optim.Adam):
        pass

    for optimizer in (made(Mine)[1], made(amsgrad=True)[1], torch.optim.SGD(made()[0].parameters(), 0.1)):
        step, own = Adam(optimizer), calls(monkeypatch, optimizer)
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        for _ in range(2):
            step.step()
        assert own.count(optimizer) == 2
