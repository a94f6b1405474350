"""The noise: known answers, the same bits on every backend, and the statistics of a normal."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import DTYPES, seed_tensor
from strategies import SEEDS, shapes

import vaefast
from vaefast.reference import noise

VECTORS = json.loads(Path(__file__).with_name("noise_vectors.json").read_text())


def _bits(tensor: torch.Tensor) -> list[str]:
    return [f"{word & 0xFFFFFFFF:08x}" for word in tensor.view(torch.int32).flatten().tolist()]


@pytest.mark.parametrize("known", VECTORS["philox_known_answers"], ids=lambda k: k["counter"][0])
def test_philox_known_answers(known):
    """Random123's known answers for philox4x32-10."""
    counter, key = ([torch.tensor([int(word, 16)]) for word in known[k]] for k in ("counter", "key"))
    assert [f"{word.item():08x}" for word in noise.philox4x32(counter, key)] == known["out"]


@pytest.mark.parametrize("known", VECTORS["normals"], ids=lambda k: f"{k['seed']}-{k['offset']}-{k['first_element']}")
def test_known_normals(known):
    expected = known["float32_bits"]
    seed = seed_tensor(known["seed"], known["offset"])
    actual = noise.standard_normal(seed, (len(expected),), first=known["first_element"])
    assert _bits(actual) == expected
    assert actual[:4].tolist() == pytest.approx(known["approx"], abs=1e-6)


FROM_0 = [k for k in VECTORS["normals"] if k["first_element"] == 0]


@pytest.mark.parametrize("known", FROM_0, ids=lambda k: f"{k['seed']}-{k['offset']}")
def test_known_normals_on_every_backend(backend, known):
    expected = known["float32_bits"]
    seed = seed_tensor(known["seed"], known["offset"], backend.device)
    assert _bits(vaefast.standard_normal((8, 8), seed=seed)) == expected
    # rsample of N(0, 1) is the noise itself
    zero = torch.zeros(4, 16, device=backend.device)
    assert _bits(vaefast.rsample(zero, zero, seed=seed)) == expected


@given(seed=SEEDS, offset=SEEDS, shape=shapes(min_dims=0))
def test_bits_are_those_of_the_reference(backend, seed, offset, shape):
    seed = seed_tensor(seed, offset)
    actual = vaefast.standard_normal(shape, seed=seed.to(backend.device))
    assert actual.device.type == backend.device
    assert actual.shape == shape
    assert _bits(actual.cpu()) == _bits(noise.standard_normal(seed, shape))


def test_many_bits_are_those_of_the_reference(backend):
    """2^18 normals: every quadrant and swap occurs many times over."""
    seed = seed_tensor(2, 3)
    actual = vaefast.standard_normal(2**18 + 3, seed=seed.to(backend.device)).cpu()
    assert torch.equal(actual.view(torch.int32), noise.standard_normal(seed, (2**18 + 3,)).view(torch.int32))


@given(first=st.integers(0, 2**66), count=st.integers(0, 70))
def test_blocks_anywhere(first, count):
    """A draw can be entered anywhere, past 2^31 and 2^32 elements and blocks too."""
    first = min(first, 2**63)
    seed = seed_tensor(5, -6)
    part = noise.standard_normal(seed, (count,), first=first)
    block = first // 4 * 4
    whole = noise.standard_normal(seed, (first - block + count,), first=block)
    assert torch.equal(part, whole[first - block :])


@pytest.mark.parametrize("block", [2**29 - 1, 2**31 - 1, 2**32 - 1, 2**32, 2**40 + 1, 2**61])
def test_blocks_far_out(block):
    """Four normals of one block from the definition: counter (i_lo, i_hi, offset_lo, offset_hi), key (seed)."""
    words = [block & 0xFFFFFFFF, block >> 32, 9, 0]
    r = noise.philox4x32([torch.tensor([w]) for w in words], [torch.tensor([8]), torch.tensor([0])])
    expected = torch.cat([*noise.box_muller(r[0], r[1]), *noise.box_muller(r[2], r[3])])
    assert torch.equal(noise.standard_normal(seed_tensor(8, 9), (4,), first=4 * block), expected)


def test_box_muller_is_a_box_muller():
    """Against float64: sqrt(-2 log u) times cosine and sine of the angle, for words at and around the corners."""
    corners = [0, 1, 2, 3, 2**30 - 1, 2**30, 2**31 - 1, 2**31, 3 * 2**30, 3 * 2**30 - 1, 2**32 - 2, 2**32 - 1]
    inside = torch.randint(0, 2**32, (2000,), generator=torch.Generator().manual_seed(0)).tolist()
    a, b = torch.cartesian_prod(torch.tensor(corners + inside[:500]), torch.tensor(corners + inside[500:])).T
    first, second = noise.box_muller(a, b)
    u = ((a >> 1).float() * 2.0**-31 + 2.0**-32).double()
    assert 0 < u.min() < u.max() == 1
    r = torch.sqrt(-2 * torch.log(u))
    remainder = (b << 34 >> 34).double() / 2**30 * (math.pi / 2)  # signed, in [-pi/4, pi/4)
    angle = (b >> 30) * (math.pi / 2) + remainder
    torch.testing.assert_close(first.double(), r * torch.cos(angle), rtol=0, atol=2e-6)
    torch.testing.assert_close(second.double(), r * torch.sin(angle), rtol=0, atol=2e-6)
    assert noise.box_muller(torch.tensor([0]), torch.tensor([0]))[0].item() == pytest.approx(6.6604, abs=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_types_round_the_float32_result_once(backend, dtype):
    seed = seed_tensor(1, 1, backend.device)
    single = vaefast.standard_normal((300, 7), seed=seed, dtype=torch.float32)
    assert torch.equal(vaefast.standard_normal((300, 7), seed=seed, dtype=dtype), single.to(dtype))


def test_default_dtype_and_shapes():
    assert vaefast.standard_normal(3, seed=0).shape == (3,)
    assert vaefast.standard_normal((), seed=0).shape == ()
    assert vaefast.standard_normal([2, 0], seed=0).shape == (2, 0)
    assert vaefast.standard_normal(torch.Size([2, 3]), seed=0).dtype == torch.get_default_dtype()
    assert torch.equal(vaefast.standard_normal(9, seed=3), vaefast.standard_normal((3, 3), seed=3).flatten())


def test_fills_of_every_size(backend):
    """Sizes 0 to 300: what comes after the last whole vector is right too."""
    seed = seed_tensor(6, 2, backend.device)
    long = noise.standard_normal(seed, (300,))
    for size in range(301):
        assert torch.equal(vaefast.standard_normal(size, seed=seed), long[:size])


@pytest.mark.parametrize("cols", [1, 2, 3, 5, 7, 8, 13, 31, 64, 97])
def test_rows_that_start_anywhere(backend, cols):
    """Rows start at every element of a block, and are read from any alignment in memory."""
    seed = seed_tensor(6, 2, backend.device)
    rows = 40
    long = noise.standard_normal(seed, (rows * cols,)).view(rows, cols)
    wide = torch.zeros(rows, cols + 11, device=backend.device)
    for start in range(9):
        zero = wide[:, start : start + cols]
        assert torch.equal(vaefast.rsample(zero, zero, seed=seed), long)


def test_element_number_is_that_of_the_logical_tensor(backend):
    """Noise goes by the index, not by the memory: a transposed latent gets the noise of a contiguous one."""
    seed = seed_tensor(6, 2, backend.device)
    zero = torch.zeros(12, 10, 8, 6, device=backend.device)
    expected = vaefast.rsample(zero, zero, seed=seed)
    for same in (zero.to(memory_format=torch.channels_last), torch.zeros_like(zero.mT).mT, zero[:1].expand_as(zero)):
        assert torch.equal(vaefast.rsample(same, same, seed=seed), expected)


# Where the seed comes from


def test_manual_seed_rules():
    torch.manual_seed(3)
    first, second = vaefast.draw_seed(), vaefast.draw_seed()
    assert first.dtype == torch.int64
    assert first.shape == (2,)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(vaefast.draw_seed(), first)
    torch.manual_seed(3)
    z = vaefast.standard_normal(5, seed=None)
    assert torch.equal(z, vaefast.standard_normal(5, seed=first))


def test_generator():
    state = torch.get_rng_state()
    a, b = (vaefast.draw_seed(generator=torch.Generator().manual_seed(s)) for s in (4, 4))
    assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), state)  # the default generator was left alone
    generator = torch.Generator().manual_seed(4)
    assert torch.equal(vaefast.draw_seed(generator=generator), a)
    assert not torch.equal(vaefast.draw_seed(generator=generator), a)


def test_explicit_seed_leaves_the_generator_alone(row):
    state = torch.get_rng_state()
    row.call(*row.inputs((2, 3)), seed=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_int_seed_is_the_seed_with_offset_0():
    for seed in (0, 42, -1, 2**63 - 1, -(2**63)):
        assert torch.equal(vaefast.standard_normal(9, seed=seed), vaefast.standard_normal(9, seed=seed_tensor(seed)))


def test_all_128_bits_of_the_seed_matter():
    draws = [noise.standard_normal(seed_tensor(0, 0), (8,))]
    for bit in range(64):
        value = 2**bit if bit < 63 else -(2**63)
        draws += [noise.standard_normal(seed_tensor(*s), (8,)) for s in ((value, 0), (0, value))]
    assert len({tuple(draw.tolist()) for draw in draws}) == 129


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"shape": 3.5}, TypeError, "shape must be an int or a sequence of ints"),
        ({"shape": (2, "a")}, TypeError, "shape must hold ints"),
        ({"shape": (2, True)}, TypeError, "shape must hold ints"),
        ({"shape": (2, -1)}, ValueError, r"shape must hold sizes >= 0, got \(2, -1\)"),
        ({"dtype": torch.int32}, TypeError, "dtype must be float32, .* got torch.int32"),
        ({"seed": 1.5}, TypeError, "seed must be an int, .* got float"),
        ({"seed": True}, TypeError, "seed must be an int"),
        ({"seed": 2**63}, ValueError, "seed must fit in 64 bits"),
        ({"seed": torch.zeros(2)}, TypeError, "seed must be .* int64 tensor .* got torch.float32"),
        ({"seed": torch.zeros(3, dtype=torch.int64)}, ValueError, r"seed must be .* got shape \(3,\)"),
        ({"seed": torch.zeros(2, dtype=torch.int64), "device": "meta"}, ValueError, "seed must be on meta, got cpu"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        vaefast.standard_normal(**{"shape": 3, "seed": 0, **arguments})


# Statistics. Every figure is in standard errors, so the chance of a false alarm is that of a normal: 6e-5 past 4,
# 6e-7 past 5. About 40 are looked at; seeds are fixed, so a failure is the code's.


def _tail(x: float) -> float:
    return math.erfc(x / math.sqrt(2))  # P(|z| > x)


class Statistics:
    """Sums over chunks of a draw: moments, lags, tails and a histogram of the normal's distribution function."""

    LAGS = (1, 2, 3, 4, 5, 7, 8, 16, 31, 64, 1000)
    TAILS = (1.0, 2.0, 3.0, 4.0, 5.0)
    BINS = 1000

    def __init__(self):
        self.count = 0
        self.powers = torch.zeros(6, dtype=torch.float64)
        self.lags = torch.zeros(len(self.LAGS), dtype=torch.float64)
        self.pairs = torch.zeros(len(self.LAGS), dtype=torch.float64)
        self.tails = torch.zeros(len(self.TAILS), dtype=torch.float64)
        self.histogram = torch.zeros(self.BINS, dtype=torch.float64)
        self.largest = 0.0

    def add(self, z: torch.Tensor) -> None:
        magnitude = z.abs()
        self.largest = max(self.largest, magnitude.max().item())
        self.tails += torch.tensor([(magnitude > x).sum().item() for x in self.TAILS], dtype=torch.float64)
        wide = z.double()
        self.histogram += torch.histc(torch.special.ndtr(wide), self.BINS, 0, 1)
        power = torch.ones_like(wide)
        for i in range(6):
            power *= wide
            self.powers[i] += power.sum()
        for i, lag in enumerate(self.LAGS):
            self.lags[i] += torch.dot(wide[:-lag], wide[lag:])
            self.pairs[i] += len(z) - lag
        self.count += len(z)

    def check(self) -> None:
        n = self.count
        # E z^k = 0, 1, 0, 3, 0, 15; variance of z^k = E z^2k - (E z^k)^2
        means = torch.tensor([0, 1, 0, 3, 0, 15], dtype=torch.float64)
        variances = torch.tensor([1, 2, 15, 96, 945, 10170], dtype=torch.float64)
        assert ((self.powers / n - means) / (variances / n).sqrt()).abs().max() < 5
        assert (self.lags / self.pairs.sqrt()).abs().max() < 5  # a product of two independent normals has variance 1
        for x, found in zip(self.TAILS, self.tails.tolist(), strict=True):
            p = _tail(x)
            assert abs(found - n * p) < 5 * math.sqrt(n * p * (1 - p)) + 1  # + 1: a count that is nearly Poisson
        expected = n / self.BINS
        chi_square = ((self.histogram - expected) ** 2 / expected).sum().item()
        freedom = self.BINS - 1
        assert abs(chi_square - freedom) < 5 * math.sqrt(2 * freedom)
        assert self.largest < 6.6605


def _draw(seed: int, offset: int, count: int) -> Statistics:
    statistics = Statistics()
    statistics.add(vaefast.standard_normal(count, seed=seed_tensor(seed, offset)))
    return statistics


def test_statistics_of_one_draw():
    statistics = _draw(20, 0, 4_000_000)
    statistics.check()
    assert statistics.largest > 4.5  # fails once in 10^12 draws


def test_statistics_detect_what_they_should():
    """A test that cannot fail shows nothing: each of these is not standard normal noise."""
    good = vaefast.standard_normal(1_000_000, seed=21)
    repeated = good.clone()
    repeated[7::8] = repeated[::8]
    cut = good.clamp(-4, 4)
    for bad in (good * 1.01, good + 0.01, repeated, cut.where(cut.abs() < 4, 0), good.half().float().round(decimals=1)):
        statistics = Statistics()
        statistics.add(bad)
        with pytest.raises(AssertionError):
            statistics.check()


def test_draws_of_neighbouring_seeds_are_independent():
    """Counters, offsets and seeds that differ by one bit give draws without correlation, element by element."""
    n = 500_000
    draws = [
        vaefast.standard_normal(n, seed=seed_tensor(s, o)).double()
        for s, o in ((0, 0), (1, 0), (0, 1), (2**32, 0), (0, 2**32), (-1, 0))
    ]
    for i, a in enumerate(draws):
        for b in draws[:i]:
            assert abs(torch.dot(a, b).item()) < 5 * math.sqrt(n)


@pytest.mark.slow
def test_statistics_of_many_draws():
    """2e8 normals in 50 draws, seeds and offsets counting up."""
    statistics = Statistics()
    for i in range(50):
        statistics.add(vaefast.standard_normal(4_000_000, seed=seed_tensor(i // 7, i % 7)))
    statistics.check()
    assert statistics.largest > 5.2
