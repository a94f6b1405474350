"""Schedules of beta and of the capacity: plain objects that count steps.

beta = torch.tensor(0.0)                      # a tensor that is filled in place: no recompile under torch.compile
annealer = Cyclical(steps=10_000)
for batch in batches:
    beta.fill_(annealer.step())
    loss = elbo_loss(nll, kl, beta=beta).loss
"""

from __future__ import annotations

import math

from vaefast.ops import _checks


class Annealer:
    """From `start` to `end` in `steps` steps, and `end` from then on; a subclass says how.

    value: at the current step. step() returns it and counts one step further. `state_dict` holds the count alone.

    Raises:
        TypeError, ValueError: for an argument of the wrong kind or out of its range, named in the message.
    """

    def __init__(self, steps: int, start: float = 0.0, end: float = 1.0):
        _checks.whole("steps", steps, 1)
        self.steps, self.start, self.end = steps, _number("start", start), _number("end", end)
        self.count = 0

    def fraction(self, count: int) -> float:
        """How much of the way is done after `count` steps, from 0 to 1."""
        raise NotImplementedError

    def at(self, count: int) -> float:
        done = self.fraction(count)
        return self.start * (1 - done) + self.end * done

    @property
    def value(self) -> float:
        return self.at(self.count)

    def step(self) -> float:
        value = self.value
        self.count += 1
        return value

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if not isinstance(state, dict) or "count" not in state:
            raise ValueError(f"state must be what state_dict gave, {{'count': steps so far}}, got {state!r}")
        _checks.whole("count", state["count"], 0)
        self.count = state["count"]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(steps={self.steps}, start={self.start}, end={self.end})"


def _number(name: str, value: object) -> float:
    try:
        if not isinstance(value, str):  # float reads those, too
            return float(value)
    except (TypeError, ValueError, RuntimeError):  # the last of a tensor of several
        pass
    raise TypeError(f"{name} must be a number, got {value!r}")


class Linear(Annealer):
    """A straight line (Bowman et al. 2016)."""

    def fraction(self, count: int) -> float:
        return min(count / self.steps, 1.0)


class Cosine(Annealer):
    """Half a cosine: slow at both ends."""

    def fraction(self, count: int) -> float:
        return 0.5 * (1 - math.cos(math.pi * min(count / self.steps, 1.0)))


class Cyclical(Annealer):
    """`cycles` times from start to end: each rises in a line for `ratio` of its length, then stays at the end
    (Fu et al. 2019, equation 6; M = 4, R = 0.5). More than one cycle must be fewer than the steps."""

    def __init__(self, steps: int, start: float = 0.0, end: float = 1.0, cycles: int = 4, ratio: float = 0.5):
        super().__init__(steps, start, end)
        _checks.whole("cycles", cycles, 1)
        if cycles >= max(steps, 2):  # a cycle of one step never leaves the start
            raise ValueError(f"cycles must be 1 or fewer than steps {steps}, got {cycles}")
        self.cycles, self.ratio = cycles, _number("ratio", ratio)
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio must be above 0 and at most 1, got {ratio}")

    def fraction(self, count: int) -> float:
        if count >= self.steps:
            return 1.0
        within = count * self.cycles % self.steps / self.steps
        return min(within / self.ratio, 1.0)

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, cycles={self.cycles}, ratio={self.ratio})"


class Capacity(Linear):
    """The capacity C of `elbo_loss`, in nats: from 0 to `end` in a line (Burgess et al. 2018)."""

    def __init__(self, steps: int, end: float, start: float = 0.0):
        super().__init__(steps, start, end)
