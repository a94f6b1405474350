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
    """

    def __init__(self, steps: int, start: float = 0.0, end: float = 1.0):
        _checks.whole("steps", steps, 1)
        self.steps, self.start, self.end = steps, float(start), float(end)
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
        self.count = state["count"]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(steps={self.steps}, start={self.start}, end={self.end})"


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
    (Fu et al. 2019, equation 6; M = 4, R = 0.5)."""

    def __init__(self, steps: int, start: float = 0.0, end: float = 1.0, cycles: int = 4, ratio: float = 0.5):
        super().__init__(steps, start, end)
        if cycles < 1:
            raise ValueError(f"cycles must be at least 1, got {cycles}")
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio must be above 0 and at most 1, got {ratio}")
        self.cycles, self.ratio = cycles, ratio

    def fraction(self, count: int) -> float:
        if count >= self.steps:
            return 1.0
        within = count * self.cycles % self.steps / self.steps
        return min(within / self.ratio, 1.0)


class Capacity(Linear):
    """The capacity C of `elbo_loss`, in nats: from 0 to `end` in a line (Burgess et al. 2018)."""

    def __init__(self, steps: int, end: float, start: float = 0.0):
        super().__init__(steps, start, end)
