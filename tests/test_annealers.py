"""Schedules: their values, and that they go on where they stopped."""

from __future__ import annotations

import copy
import pickle

import pytest

from vaefast.nn import Capacity, Cosine, Cyclical, Linear


@pytest.mark.parametrize(
    ("annealer", "values"),
    [
        (Linear(4), [0, 0.25, 0.5, 0.75, 1, 1, 1]),
        (Linear(2, start=1, end=3), [1, 2, 3, 3]),
        (Cosine(4), [0, 0.1464466094, 0.5, 0.8535533906, 1, 1]),
        (Cyclical(8, cycles=2), [0, 0.5, 1, 1, 0, 0.5, 1, 1, 1, 1]),
        (Cyclical(6, end=0.5, cycles=2, ratio=1.0), [0, 1 / 6, 1 / 3, 0, 1 / 6, 1 / 3, 0.5, 0.5]),
        (Cyclical(10, cycles=4, ratio=0.5), [0, 0.8, 1, 0.4, 1, 0, 0.8, 1, 0.4, 1, 1]),  # cycles of 2.5 steps
        (Capacity(5, end=25), [0, 5, 10, 15, 20, 25, 25]),
    ],
    ids=lambda value: repr(value) if not isinstance(value, list) else "",
)
def test_values(annealer, values):
    annealer = copy.deepcopy(annealer)
    assert [annealer.step() for _ in values] == pytest.approx(values)
    assert annealer.value == annealer.at(len(values)) == pytest.approx(values[-1])


@pytest.mark.parametrize("annealer", [Linear(10), Cosine(10), Cyclical(10), Capacity(10, end=2)], ids=repr)
def test_goes_on_where_it_stopped(annealer):
    annealer = pickle.loads(pickle.dumps(annealer))
    for _ in range(3):
        annealer.step()
    other = pickle.loads(pickle.dumps(annealer))
    fresh = copy.deepcopy(other)
    fresh.count = 0
    fresh.load_state_dict(annealer.state_dict())
    expected = [annealer.step() for _ in range(10)]
    assert [other.step() for _ in range(10)] == expected == [fresh.step() for _ in range(10)]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Linear(0), ValueError, "steps must be at least 1, got 0"),
        (lambda: Cosine(1.5), TypeError, "steps must be an int, got float"),
        (lambda: Cyclical(10, cycles=0), ValueError, "cycles must be at least 1"),
        (lambda: Cyclical(10, ratio=0), ValueError, "ratio must be above 0 and at most 1"),
        (lambda: Cyclical(10, cycles=20), ValueError, "cycles must be 1 or fewer than steps 10, got 20"),
        (lambda: Cyclical(4), ValueError, "cycles must be 1 or fewer than steps 4, got 4"),
        (lambda: Cyclical(10, cycles=2.0), TypeError, "cycles must be an int, got float"),
        (lambda: Cyclical(10, ratio="half"), TypeError, "ratio must be a number, got 'half'"),
        (lambda: Linear(10, start="0"), TypeError, "start must be a number, got '0'"),
        (lambda: Capacity(10, end=None), TypeError, "end must be a number, got None"),
        (lambda: Linear(10).load_state_dict({}), ValueError, "state must be what state_dict gave, {'count'.*}, got {}"),
        (lambda: Linear(10).load_state_dict({"count": 1.5}), TypeError, "count must be an int, got float"),
    ],
)
def test_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_repr_makes_the_same():
    annealer = Cyclical(10, end=2, cycles=3, ratio=0.25)
    assert repr(annealer) == "Cyclical(steps=10, start=0.0, end=2.0, cycles=3, ratio=0.25)"
    assert repr(eval(repr(annealer))) == repr(annealer)
    assert Cyclical(1, cycles=1).at(1) == 1
