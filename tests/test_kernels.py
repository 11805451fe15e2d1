"""The native kernels against exact arithmetic: Python integers, fractions, and NumPy where it rounds once."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from federation import kernels
from federation.core.weights import Layout, Weights

FLOATS = [np.dtype(name) for name in ("float16", "float32", "float64")] + [kernels.BFLOAT16]
INTEGERS = [np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)]
DTYPES = [*FLOATS, *INTEGERS, np.dtype(bool)]
#: Fraction bits and lowest exponent of the 16-bit floats.
SMALL = {np.dtype(np.float16): (10, -14), kernels.BFLOAT16: (7, -126)}
#: Lengths around vector widths and block sizes.
LENGTHS = [0, 1, 3, 4, 5, 7, 8, 9, 31, 511, 512, 513, 1037]


@pytest.fixture(autouse=True, params=kernels.variants())
def variant(request: pytest.FixtureRequest):
    """Every test runs with every variant that this CPU has."""
    before = kernels.variant()
    kernels.select_variant(request.param)
    yield request.param
    kernels.select_variant(before)


def doubles(values: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return values.astype(np.float64)


def name_of(dtype: np.dtype) -> str:
    return dtype.name


every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=name_of)


def numbers(dtype: np.dtype, shape: int | tuple[int, ...], seed: int = 0, spread: float = 1.0) -> np.ndarray:
    """Values of `dtype` over much of its range, the extremes among them."""
    rng = np.random.default_rng(seed)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    if dtype.kind in "iu":
        values = rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)
        flat = values.reshape(-1)
        flat[:2] = [np.iinfo(dtype).min, np.iinfo(dtype).max][: flat.size]
        return values
    return (rng.normal(size=shape) * spread).astype(dtype)


def exact_integer(value: float) -> int:
    """rint(value), half to even: Python's round does that for floats."""
    return round(value)


def scaled(values: np.ndarray, start: np.ndarray, factor: float) -> list[float]:
    """(values - start) * factor in float64, from Python numbers, each step rounded once."""
    result = []
    for a, b in zip(values.reshape(-1).tolist(), start.reshape(-1).tolist(), strict=True):
        difference = float(a - b) if values.dtype.kind in "iu" else float(a) - float(b)
        result.append(difference * factor)
    return result


def expected_total(total: np.ndarray, values: np.ndarray, start: np.ndarray, factor: float, limit: float) -> list[int]:
    return [t + (exact_integer(x) if abs(x) <= limit else 0)
            for t, x in zip(total.tolist(), scaled(values, start, factor), strict=True)]


# ---- accumulate


@every_dtype
@pytest.mark.parametrize("n", LENGTHS)
def test_accumulate_adds_the_rounded_scaled_differences(dtype, n):
    values, start = numbers(dtype, n, 1), numbers(dtype, n, 2)
    factor = math.ldexp(0.7, 40 if dtype.itemsize < 8 else -5)
    total = np.random.default_rng(3).integers(-(2**60), 2**60, n)
    expected = expected_total(total, values, start, factor, 2.0**61)

    found = kernels.accumulate(total, values, start, factor)

    assert total.tolist() == expected
    assert found == (max(map(abs, scaled(values, start, factor)), default=0.0), True)


def test_accumulate_rounds_ties_to_even_and_takes_the_largest_values_exactly():
    ties = [0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 2.0**50 + 0.5, -(2.0**50) - 0.5, 2.0**51 + 0.5, 2.0**51 + 1.5,
            2.0**32 + 0.5, 2.0**32 - 0.5, 2.0**33 + 1.5, 5e-324, -5e-324, 0.49999999999999994, -0.0]
    large = [2.0**52 + 1, 2.0**53 - 1, 2.0**61, -(2.0**61), 2.0**61 - 2.0**8, 2.0**52 - 0.5, 2.0**31 * (2.0**30 - 1)]
    values = np.array(ties + large)
    total = np.zeros(len(values), np.int64)
    kernels.accumulate(total, values, np.zeros_like(values), 1.0)
    assert total.tolist() == [exact_integer(x) for x in values.tolist()]


def test_accumulate_is_exact_whatever_the_largest_value_of_an_array_is():
    for exponent in range(-2, 61):
        steps = np.array([0, 0.5, 1, 1.5, 2.5, 3, 2.0**exponent - 0.5])
        values = np.concatenate([2.0**exponent + steps, -(2.0**exponent) - steps, steps])
        total = np.zeros(len(values), np.int64)
        kernels.accumulate(total, values, np.zeros_like(values), 1.0)
        assert total.tolist() == [exact_integer(x) for x in values.tolist()], exponent


finite_doubles = st.floats(allow_nan=False, allow_infinity=False, width=64)
near_limits = st.builds(lambda sign, exponent, steps: sign * math.ldexp(1 + steps * 2.0**-52, exponent),
                        st.sampled_from([-1, 1]), st.integers(-3, 62), st.integers(0, 2**52 - 1))
halves = st.builds(lambda k: k + 0.5, st.integers(-(2**51), 2**51 - 1))


@settings(max_examples=300, deadline=None)
@given(data=st.lists(finite_doubles | near_limits | halves, min_size=1, max_size=20),
       limit=st.sampled_from([2.0**61, 2.0**50, 2.0**51, 1000.0, 0.0]))
def test_accumulate_leaves_out_what_exceeds_the_limit(data, limit):
    for name in kernels.variants():
        kernels.select_variant(name)
        values = np.array(data)
        total = np.zeros(len(values), np.int64)
        found = kernels.accumulate(total, values, np.zeros_like(values), 1.0, limit)
        assert total.tolist() == [exact_integer(x) if abs(x) <= limit else 0 for x in data]
        assert found == (max(map(abs, data)), True)


@every_dtype
def test_accumulate_with_the_factor_negated_takes_back_what_was_added(dtype):
    values, start = numbers(dtype, 1000, 1), numbers(dtype, 1000, 2)
    before = np.random.default_rng(3).integers(-(2**60), 2**60, 1000)
    total = before.copy()
    factor = 2.0**-4 * 0.3 if dtype.kind in "iu" else 2.0**44 * 0.3
    sizes = sorted(map(abs, scaled(values, start, factor)))
    limit = min(sizes[700], 2.0**61)  # some elements are beyond it
    kernels.accumulate(total, values, start, factor, limit)
    assert (total != before).any()
    kernels.accumulate(total, values, start, -factor, limit)
    assert np.array_equal(total, before)


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("n", [1, 9, 513])
def test_accumulate_reports_values_that_are_not_finite(dtype, bad, n):
    for position in {0, n // 2, n - 1}:
        values = np.full(n, 2.0, dtype)
        values[position] = bad
        total = np.zeros(n, np.int64)
        found = kernels.accumulate(total, values, np.zeros(n, dtype), 8.0)
        assert not found.finite
        assert found.peak == (16.0 if n > 1 else 0.0)
        assert total.tolist() == [0 if i == position else 16 for i in range(n)]


def test_accumulate_reports_an_overflow_of_finite_values_as_a_magnitude():
    total = np.zeros(2, np.int64)
    found = kernels.accumulate(total, np.array([1e308, 1.0]), np.zeros(2), 2.0**40)
    assert found == (math.inf, True)
    assert total.tolist() == [0, 2**40]


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@pytest.mark.parametrize("sign", ["", "u"])
def test_accumulate_subtracts_integers_as_integers_to_the_ends_of_their_range(bits, sign):
    info = np.iinfo(f"{sign}int{bits}")
    values = np.array([info.max, info.min, info.max, info.max - 1], info.dtype)
    start = np.array([info.min, info.max, info.max, info.max], info.dtype)
    total = np.zeros(4, np.int64)
    kernels.accumulate(total, values, start, 2.0**-10)
    span = info.max - info.min
    assert total.tolist() == [exact_integer(float(span) / 1024), -exact_integer(float(span) / 1024), 0, 0]


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), kernels.BFLOAT16], ids=name_of)
def test_every_16_bit_float_is_read_as_its_value(dtype):
    patterns = np.arange(2**16, dtype=np.uint16)
    values = patterns.view(dtype)
    fraction, lowest = SMALL[dtype]
    width = 15 - fraction
    limbs = [np.zeros(2**16, np.int64) for _ in range(8)]
    finite = np.isfinite(doubles(values))
    kept = np.where(finite, values, np.zeros((), dtype))
    kernels.accumulate_wide(limbs, kept, np.zeros_like(kept), 2.0 ** (fraction - lowest))
    for i in range(0, 2**16, 7):
        bits = int(patterns[i])
        exponent, mantissa = (bits >> fraction) & (2**width - 1), bits & (2**fraction - 1)
        if exponent == 2**width - 1:
            assert not kernels.all_finite(values[i : i + 1])
            continue
        steps = mantissa if exponent == 0 else (2**fraction + mantissa) << (exponent - 1)
        signed = -steps if bits >> 15 else steps
        assert sum(int(limb[i]) << (40 * level) for level, limb in enumerate(limbs)) == signed


# ---- accumulate_model

MODEL = Layout([dtype.name for dtype in DTYPES] + ["nothing"], [(3, 7)] * len(DTYPES) + [(0, 4)], [*DTYPES, np.float32])
PLACES = kernels.Places(MODEL.dtypes, [math.prod(shape) for shape in MODEL.shapes], MODEL.offsets,
                        [where.start for where in MODEL.value_slices])


def models() -> tuple[Weights, Weights, np.ndarray, np.ndarray]:
    """Two models with arrays of every type, factors under which their differences fit, and totals to begin with."""
    values, start = (Weights.of([numbers(dtype, shape, seed) for dtype, shape in zip(MODEL.dtypes, MODEL.shapes, strict=True)],
                                MODEL.names) for seed in (1, 2))
    factors = np.array([math.ldexp(0.7 + number / 100, 28 if dtype.itemsize < 8 else -5)
                        for number, dtype in enumerate(MODEL.dtypes)])
    return values, start, factors, np.random.default_rng(3).integers(-(2**60), 2**60, MODEL.num_slots)


@pytest.mark.parametrize("scale", [0, -30], ids=["large numbers", "small numbers"])
@pytest.mark.parametrize("fresh", [False, True])
def test_accumulate_model_adds_every_array_with_its_factor_and_touches_no_padding(fresh, scale):
    values, start, factors, total = models()
    factors = np.ldexp(factors, scale)
    expected = total.copy()
    for index, where in enumerate(MODEL.value_slices):
        before = np.zeros_like(total[where]) if fresh else total[where]
        expected[where] = expected_total(before, values[index], start[index], factors[index], 2.0**61)
    assert kernels.accumulate_model(total, values.buffer, start.buffer, PLACES, factors, fresh=fresh)
    assert total.tolist() == expected.tolist()


@pytest.mark.parametrize("index", [index for index, dtype in enumerate(MODEL.dtypes) if dtype in FLOATS and MODEL.shapes[index][0]])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 60000.0])
def test_accumulate_model_adds_nothing_where_one_value_of_one_array_does_not_fit(index, bad):
    values, start, factors, total = models()
    values[index][2, 6] = bad
    before = total.copy()
    factors[index] = 2.0**48  # so that 60000 is beyond the limit, and the others are not
    assert not kernels.accumulate_model(total, values.buffer, start.buffer, PLACES, factors)
    assert (total == before).all()
    assert total.any()
    assert not kernels.accumulate_model(total, values.buffer, start.buffer, PLACES, factors, fresh=True)


def test_accumulate_model_refuses_what_does_not_fit():
    values, start, factors, total = models()

    def refused(error: type[Exception], match: str, **changed: object) -> None:
        given = {"total": total, "values": values.buffer, "start": start.buffer, "places": PLACES, "factors": factors} | changed
        before = total.copy()
        with pytest.raises(error, match=match):
            kernels.accumulate_model(**given)
        assert (total == before).all()

    refused(TypeError, "total", total=total[:-8])
    refused(TypeError, "total", total=total.astype(np.float64))
    refused(TypeError, "values", values=values.buffer[:64])
    refused(TypeError, "start", start=start.buffer.view(np.int8))
    refused(TypeError, "factors", factors=factors[:-1])
    refused(ValueError, "factors", factors=np.append(factors, 1.0))
    refused(ValueError, "factors", factors=factors * math.inf)
    refused(ValueError, "limit", limit=2.0**62)
    shared = np.zeros(MODEL.num_slots + MODEL.nbytes // 8, np.int64)
    refused(ValueError, "overlaps", total=shared, values=shared.view(np.uint8))
    locked = total.copy()
    locked.flags.writeable = False
    refused(TypeError, "read-only", total=locked)


def test_places_do_not_overlap_and_have_types_of_models():
    float32 = np.dtype(np.float32)
    with pytest.raises(ValueError, match="overlap"):
        kernels.Places([float32, float32], [4, 4], [0, 12], [0, 8])
    with pytest.raises(ValueError, match="overlap"):
        kernels.Places([float32, float32], [4, 4], [0, 16], [0, 3])
    with pytest.raises(TypeError, match="complex64"):
        kernels.Places([np.dtype(np.complex64)], [4], [0], [0])


# ---- wide sums


@settings(max_examples=200, deadline=None)
@given(data=st.lists(st.builds(lambda m, e: math.ldexp(m, e), st.floats(-1, 1), st.integers(-5, 141)), min_size=1,
                     max_size=8))
def test_limbs_hold_the_exact_integer_and_give_it_back(data):
    for name in kernels.variants():
        kernels.select_variant(name)
        values = np.array(data)
        limbs = [np.zeros(len(values), np.int64) for _ in range(3)]
        kernels.accumulate_wide(limbs, values, np.zeros_like(values), 1.0)
        for i, x in enumerate(data):
            assert sum(int(limb[i]) << (40 * level) for level, limb in enumerate(limbs)) == exact_integer(x)
            assert all(abs(int(limb[i])) <= 2**39 for limb in limbs[:-1])
        kernels.accumulate_wide(limbs, values, np.zeros_like(values), -1.0)
        assert not any(limb.any() for limb in limbs)


@pytest.mark.parametrize("bad", [2.0**61 * 2.0**40 * 1.001, math.nan, math.inf])
def test_a_wide_sum_refuses_what_it_cannot_hold_and_stays_as_it_was(bad):
    limbs = [np.ones(3, np.int64), np.ones(3, np.int64)]
    with pytest.raises(ValueError, match="beyond what 2 limbs take"):
        kernels.accumulate_wide(limbs, np.array([1.0, bad, 1.0]), np.zeros(3), 1.0)
    assert [limb.tolist() for limb in limbs] == [[1, 1, 1], [1, 1, 1]]


limb_values = st.integers(-(2**62), 2**62)


@settings(max_examples=200, deadline=None)
@given(low=limb_values, middle=st.integers(-(2**40), 2**40), high=st.integers(-(2**20), 2**20))
def test_finish_depends_on_the_integer_not_on_how_it_is_spread(low, middle, high):
    total = low + (middle << 40) + (high << 80)
    spread = [[low, middle, high], [low - (5 << 40), middle + 5, high], [low, middle + (3 << 40), high - 3],
              [low, middle, high, 0]]
    if abs(total) < 2**63:
        spread += [[total], [total, 0], [total, 0, 0]]
    results = set()
    for name in kernels.variants():
        kernels.select_variant(name)
        for parts in spread:
            out = np.zeros(1)
            kernels.finish(out, np.zeros(1), [np.array([part]) for part in parts], 1.0, 1.0)
            results.add(out.tobytes())
    assert len(results) == 1
    assert abs(Fraction(np.frombuffer(results.pop())[0]) - total) <= abs(Fraction(total)) * Fraction(1, 2**51)


# ---- finish


def nearest(x: float, dtype: np.dtype) -> float:
    """x rounded to a 16-bit float, to nearest even, by exact arithmetic."""
    fraction, lowest = SMALL[dtype]
    if x == 0 or not math.isfinite(x):
        return x
    exponent = max(math.frexp(x)[1] - 1, lowest)
    unit = Fraction(2) ** (exponent - fraction)
    rounded = round(Fraction(x) / unit) * unit  # round of a Fraction is half to even
    largest = (2 - Fraction(1, 2**fraction)) * Fraction(2) ** (1 - lowest)
    return math.copysign(math.inf, x) if abs(rounded) > largest else float(rounded)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_finish_rounds_once_to_the_dtype(dtype, n):
    start = numbers(dtype, n, 1)
    total = np.random.default_rng(2).integers(-(2**61), 2**61, n)
    out = np.empty(n, dtype)
    kernels.finish(out, start, [total], 2.0**-60, 3.0)
    exact = [float(s) + float(t) * 2.0**-60 / 3.0
             for s, t in zip(start.astype(np.float64).tolist(), total.tolist(), strict=True)]
    if dtype in SMALL:
        assert out.astype(np.float64).tolist() == [nearest(x, dtype) for x in exact]
    else:
        assert out.tolist() == np.array(exact).astype(dtype).tolist()


@settings(max_examples=400, deadline=None)
@given(data=st.lists(st.builds(lambda m, e: (m, e), st.integers(-(2**40), 2**40), st.integers(-190, 100)), min_size=1,
                     max_size=16))
@pytest.mark.parametrize("dtype", [np.dtype(np.float16), kernels.BFLOAT16], ids=name_of)
def test_finish_rounds_to_16_bits_correctly_over_the_whole_range(dtype, data):
    for name in kernels.variants():
        kernels.select_variant(name)
        for mantissa, exponent in data:
            out = np.empty(1, dtype)
            kernels.finish(out, np.zeros(1, dtype), [np.array([mantissa])], 2.0**exponent, 1.0)
            expected = nearest(math.ldexp(mantissa, exponent), dtype)
            assert float(out[0]) == expected
            assert expected != 0 or mantissa != 0 or not np.signbit(out.astype(np.float64)[0])


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), kernels.BFLOAT16], ids=name_of)
def test_finish_keeps_every_16_bit_float_and_resolves_every_tie_to_even(dtype):
    patterns = np.arange(2**16, dtype=np.uint16)
    values = patterns.view(dtype)
    out = np.empty_like(values)
    kernels.finish(out, values, [np.zeros(2**16, np.int64)], 1.0, 1.0)
    numeric = ~np.isnan(doubles(values))
    assert np.array_equal(out.view(np.uint16)[numeric] & 0x7FFF, patterns[numeric] & 0x7FFF)
    assert np.isnan(out.astype(np.float64)[~numeric]).all()

    # Half-way between neighbours, written as an integer number of halves of the smallest step.
    fraction, lowest = SMALL[dtype]
    positive = values[1 : 2**15 - 2**fraction].astype(np.float64)
    middles = (positive[:-1] + positive[1:]) / 2
    limbs = [np.zeros(len(middles), np.int64) for _ in range(8)]
    scale = 2.0 ** (lowest - fraction - 1)
    kernels.accumulate_wide(limbs, middles, np.zeros_like(middles), 1 / scale)
    rounded = np.empty(len(middles), dtype)
    kernels.finish(rounded, np.zeros_like(rounded), limbs, scale, 1.0)
    expected = np.where(patterns[1 : 1 + len(middles)] % 2 == 0, patterns[1 : 1 + len(middles)],
                        patterns[2 : 2 + len(middles)])
    assert np.array_equal(rounded.view(np.uint16), expected)


@pytest.mark.parametrize("dtype", INTEGERS, ids=name_of)
def test_finish_rounds_means_of_integers_to_nearest_even_and_saturates(dtype):
    info = np.iinfo(dtype)
    cases = [(7, 3, 4), (7, 1, 2), (8, 1, 2), (6, -1, 2), (7, -1, 2), (7, 0, 1), (100, -7, 3), (info.max, 0, 1),
             (info.max, 9, 2), (info.min, -9, 2), (info.max, -5, 2), (info.min, 5, 2), (info.max, 1, 4)]
    for start, numerator, divisor in cases:
        out = np.empty((), dtype)
        kernels.finish(out, np.array(start, dtype), [np.array(numerator)], 1.0, divisor)
        expected = min(max(round(start + Fraction(numerator, divisor)), info.min), info.max)
        assert int(out) == expected, (start, numerator, divisor)


def test_finish_moves_64_bit_integers_across_their_whole_range():
    for dtype, start, delta in [("uint64", 0, 2**64 - 2**11), ("uint64", 2**64 - 1, -(2**64 - 2**11)),
                                ("int64", -(2**63), 2**64 - 2**11), ("int64", 2**63 - 1, -(2**64 - 2**11))]:
        out = np.empty(1, dtype)
        limbs = [np.array([0]), np.array([delta >> 11])]
        kernels.finish(out, np.array([start], dtype), limbs, 2.0 ** (11 - 40), 1.0)
        assert int(out[0]) == start + delta


def test_finish_makes_a_boolean_true_above_one_half():
    start = np.array([True, False, True, False, True, False])
    out = np.empty_like(start)
    kernels.finish(out, start, [np.array([-1, 1, -2, 2, -3, 3])], 1.0, 4.0)
    assert out.tolist() == [True, False, False, False, False, True]


@every_dtype
def test_finish_in_place_gives_what_it_gives_aside(dtype):
    start = numbers(dtype, 1037, 1)
    total = np.random.default_rng(2).integers(-(2**50), 2**50, 1037)
    out = np.empty_like(start)
    kernels.finish(out, start, [total], 2.0**-48, 7.0)
    kernels.finish(start, start, [total], 2.0**-48, 7.0)
    assert start.tobytes() == out.tobytes()


# ---- copy, axpy, max_abs, all_finite


@every_dtype
def test_copy_copies_bytes(dtype):
    for n in LENGTHS:
        values, out = numbers(dtype, n, 3), np.zeros(n + 2, dtype)
        kernels.copy(out[1:n + 1], values)
        assert out[1:n + 1].tobytes() == values.tobytes()
        assert out[0] == out[n + 1] == 0
    kernels.copy(values, values)  # onto itself
    assert values.tobytes() == numbers(dtype, n, 3).tobytes()


@pytest.mark.parametrize(("shift", "extra"), [(0, 0), (1, 0), (15, 1), (16, 63), (33, 100)])
def test_copy_of_what_is_too_large_for_the_caches_copies_to_the_last_byte_and_no_further(shift, extra):
    """From this size on it goes past the caches, in whole lines; what is before the first and after the last goes by itself."""
    length = (32 << 20) + extra
    values = np.random.default_rng(shift).bytes(length)
    out = np.zeros(length + 200, np.uint8)
    kernels.copy(out[shift:shift + length], np.frombuffer(values, np.uint8))
    assert out[shift:shift + length].tobytes() == values
    assert not out[:shift].any()
    assert not out[shift + length:].any()


@every_dtype
@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("width", ["float32", "float64"])
def test_axpy_multiplies_and_adds_with_two_roundings(dtype, n, width):
    x, y = numbers(dtype, n, 1), numbers(np.dtype(width), n, 2)
    expected = y + np.dtype(width).type(0.3) * x.astype(width)
    kernels.axpy(y, x, 0.3)
    assert y.dtype == width
    assert y.tobytes() == expected.tobytes()


def test_axpy_does_not_fuse_multiplication_and_addition():
    # a * x is 1 - 2**-104 before rounding: a fused operation would keep the tail.
    a, x = 1 + 2.0**-52, np.array([1 - 2.0**-52])
    y = np.array([-1.0])
    kernels.axpy(y, x, a)
    assert y[0] == 0.0
    total = np.zeros(1, np.int64)
    kernels.accumulate(total, np.array([1 + 2.0**-30]), np.array([2.0**-30]), 1.0)
    assert total[0] == 1


@every_dtype
def test_max_abs_and_all_finite(dtype):
    for n in LENGTHS:
        values = numbers(dtype, n, 5)
        exact = max((abs(v) for v in values.tolist()), default=0)
        assert kernels.max_abs(values) == float(exact)
        assert kernels.all_finite(values)
        if dtype in FLOATS and n:
            for bad in (math.nan, math.inf, -math.inf):
                values[n // 2] = bad
                assert not kernels.all_finite(values)
                assert kernels.max_abs(values) == max((abs(v) for v in values.tolist() if math.isfinite(v)), default=0)


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
@pytest.mark.parametrize("place", [0, 1500, 2999])
def test_what_is_not_finite_is_seen_in_every_block_and_hides_no_magnitude(dtype, place):
    values = np.ones(3000, dtype)
    for largest in (0, 1023, 1024, 2998):
        values[largest] = -3
        for bad in (math.nan, -math.nan, math.inf, -math.inf):
            kept, values[place] = values[place], bad
            assert kernels.examine(values) == (1.0 if largest == place else 3.0, False)
            values[place] = kept
        assert kernels.examine(values) == (3.0, True)
        values[largest] = 1


# ---- the doors


def calls(array: np.ndarray):
    """Each function with `array` in each of its places, the other arguments fitting."""
    other = np.array(array, order="C", dtype=array.dtype.newbyteorder("=") if array.dtype.kind in "iuf" else None)
    total = np.zeros(array.shape, np.int64)
    out = other.copy()
    yield lambda: kernels.accumulate(total, array, other, 4.0)
    yield lambda: kernels.accumulate(total, other, array, 4.0)
    yield lambda: kernels.accumulate_wide([total], array, other, 4.0)
    yield lambda: kernels.accumulate_wide([total], other, array, 4.0)
    yield lambda: kernels.finish(out, array, [total], 1.0, 1.0)
    yield lambda: kernels.copy(out, array)
    yield lambda: kernels.axpy(np.zeros(array.shape), array, 2.0)
    yield lambda: kernels.max_abs(array)
    yield lambda: kernels.all_finite(array)


def written(array: np.ndarray):
    """Each function that would write `array`."""
    other = np.array(array, order="C")
    if array.dtype == np.int64:
        yield lambda: kernels.accumulate(array, np.ones(array.shape), np.zeros(array.shape), 4.0)
        yield lambda: kernels.accumulate_wide([array], np.ones(array.shape), np.zeros(array.shape), 4.0)
    yield lambda: kernels.finish(array, other, [np.zeros(array.shape, np.int64)], 1.0, 1.0)
    yield lambda: kernels.copy(array, other)
    if array.dtype in (np.float32, np.float64):
        yield lambda: kernels.axpy(array, other, 2.0)


MISLAID = {
    "Fortran order": np.asfortranarray, "strided": lambda base: base[::2], "columns": lambda base: base[:, ::2],
    "transposed": lambda base: base.T, "negative step": lambda base: base[0, ::-1],
    "rows backwards": lambda base: base[::-1], "broadcast": lambda base: np.broadcast_to(base[0], (4, 6)),
}


@pytest.mark.parametrize("mislay", MISLAID.values(), ids=MISLAID.keys())
@every_dtype
def test_another_memory_layout_is_refused_by_every_function(dtype, mislay):
    """S-PKG-02: Fortran order, strides, negative steps."""
    array = mislay(np.arange(24).reshape(4, 6).astype(dtype))
    for call in [*calls(array), *written(array)]:
        with pytest.raises(TypeError, match="memory layout"):
            call()


def test_the_array_of_a_transposed_tensor_is_refused():
    """S-PKG-02: a torch tensor .t()."""
    for call in calls(torch.arange(24.0).reshape(4, 6).t().numpy()):
        with pytest.raises(TypeError, match="memory layout"):
            call()


@pytest.mark.parametrize("tensor", [torch.ones(4, 6), torch.ones(4, 6).t(), torch.ones(3, dtype=torch.bfloat16)])
def test_a_tensor_is_refused_by_name(tensor):
    """S-PKG-02: a tensor, whatever its strides."""
    array = np.ones(tuple(tensor.shape), np.float32)
    total = np.zeros(tensor.numel(), np.int64)
    for call in (lambda: kernels.accumulate(total, tensor, array, 1.0), lambda: kernels.max_abs(tensor),
                 lambda: kernels.axpy(tensor, array, 1.0), lambda: kernels.finish(array, tensor, [total], 1.0, 1.0),
                 lambda: kernels.accumulate(tensor, array, array, 1.0)):
        with pytest.raises(TypeError, match=r"torch\.Tensor \(dtype torch\."):
            call()


def test_read_only_arrays_are_read_and_never_written():
    """S-PKG-02: a read-only array."""
    for dtype in DTYPES:
        array = np.ones(5, dtype)
        array.flags.writeable = False
        for call in calls(array):
            call()
        for call in written(array):
            with pytest.raises(TypeError, match="read-only"):
                call()


@every_dtype
def test_scalars_empty_arrays_and_any_shape_are_taken(dtype):
    """S-PKG-02: 0-d and empty arrays."""
    for shape in [(), (0,), (0, 4), (1, 1), (2, 3, 4)]:
        values, start = numbers(dtype, shape or 1, 1).reshape(shape), numbers(dtype, shape or 1, 2).reshape(shape)
        total = np.zeros(shape, np.int64)
        kernels.accumulate(total, values, start, 2.0**-10)
        expected = expected_total(np.zeros(values.size, np.int64), values, start, 2.0**-10, 2.0**61)
        assert total.reshape(-1).tolist() == expected
        out = np.empty(shape, dtype)
        kernels.finish(out, start, [np.zeros(shape, np.int64)], 1.0, 1.0)
        assert out.tobytes() == start.tobytes()


@every_dtype
def test_unaligned_arrays_give_the_same_numbers(dtype):
    def unaligned(array: np.ndarray) -> np.ndarray:
        memory = np.empty(array.nbytes + 1, np.uint8)
        view = memory[1:].view(array.dtype)
        view[...] = array
        return view

    values, start = numbers(dtype, 777, 1), numbers(dtype, 777, 2)
    total = np.random.default_rng(3).integers(-(2**50), 2**50, 777)
    odd_total, out, odd_out = unaligned(total), np.empty_like(start), unaligned(start)
    y = np.ones(777)
    odd_y = unaligned(y)
    kernels.accumulate(total, values, start, 0.7)
    kernels.accumulate(odd_total, unaligned(values), unaligned(start), 0.7)
    assert np.array_equal(total, odd_total)
    kernels.finish(out, start, [total, total + 1], 2.0**-80, 3.0)
    kernels.finish(odd_out, unaligned(start), [odd_total, unaligned(total + 1)], 2.0**-80, 3.0)
    assert out.tobytes() == odd_out.tobytes()
    kernels.axpy(y, values, 0.1)
    kernels.axpy(odd_y, unaligned(values), 0.1)
    assert y.tobytes() == odd_y.tobytes()


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i8", "complex64", "O", "U3", "M8[s]", "longdouble",
                                   ml_dtypes.float8_e4m3fn, [("a", "f4")]])
def test_other_dtypes_are_refused_by_name(dtype):
    array = np.zeros(3, dtype)
    for call in (lambda: kernels.max_abs(array), lambda: kernels.accumulate(np.zeros(3, int), array, array, 1.0),
                 lambda: kernels.axpy(np.zeros(3), array, 1.0)):
        with pytest.raises(TypeError, match="has the dtype"):
            call()


def test_dtypes_and_shapes_must_agree():
    ones, total = np.ones(4, np.float32), np.zeros(4, np.int64)
    with pytest.raises(TypeError, match="values has the dtype float32, but start has float64"):
        kernels.accumulate(total, ones, np.ones(4), 1.0)
    with pytest.raises(ValueError, match=r"\(4,\), but start has \(2, 2\)"):
        kernels.accumulate(total, ones, np.ones((2, 2), np.float32), 1.0)
    with pytest.raises(ValueError, match="total has 3 elements"):
        kernels.accumulate(np.zeros(3, np.int64), ones, ones, 1.0)
    with pytest.raises(TypeError, match="total must have the dtype int64, not int32"):
        kernels.accumulate(np.zeros(4, np.int32), ones, ones, 1.0)
    with pytest.raises(ValueError, match=r"limbs\[1\] has 5 elements"):
        kernels.accumulate_wide([total, np.zeros(5, np.int64)], ones, ones, 1.0)
    with pytest.raises(ValueError, match="1 to 16 limbs"):
        kernels.finish(ones.copy(), ones, [], 1.0, 1.0)
    with pytest.raises(TypeError, match="y must be float32 or float64"):
        kernels.axpy(np.ones(4, np.float16), ones, 1.0)
    with pytest.raises(ValueError, match="x has"):
        kernels.axpy(np.ones(3), ones, 1.0)


def test_overlapping_memory_is_refused():
    memory = np.zeros(8, np.int64)
    floats = memory.view(np.float64)
    with pytest.raises(ValueError, match="overlaps"):
        kernels.accumulate(memory[:4], floats[:4], np.zeros(4), 1.0)
    with pytest.raises(ValueError, match="overlaps"):
        kernels.accumulate(memory[:4], np.zeros(4), floats[3:7], 1.0)
    with pytest.raises(ValueError, match=r"limbs\[1\] overlaps limbs\[0\]"):
        kernels.accumulate_wide([memory[:4], memory[3:7]], np.zeros(4), np.zeros(4), 1.0)
    with pytest.raises(ValueError, match="overlaps"):
        kernels.finish(floats[:4], floats[1:5], [np.zeros(4, np.int64)], 1.0, 1.0)
    with pytest.raises(ValueError, match="overlaps"):
        kernels.finish(floats[:4], floats[:4], [memory[2:6]], 1.0, 1.0)
    with pytest.raises(ValueError, match="overlaps"):
        kernels.axpy(floats[:4], floats[2:6], 1.0)
    with pytest.raises(ValueError, match="overlaps"):
        kernels.copy(floats[:4], floats[1:5])


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_numbers_out_of_range_are_refused(number):
    ones, total = np.ones(4), np.zeros(4, np.int64)
    with pytest.raises(ValueError, match="factor"):
        kernels.accumulate(total, ones, ones, number)
    with pytest.raises(ValueError, match="factor"):
        kernels.accumulate_wide([total], ones, ones, number)
    with pytest.raises(ValueError, match="limit"):
        kernels.accumulate(total, ones, ones, 1.0, number)
    with pytest.raises(ValueError, match="limit"):
        kernels.accumulate(total, ones, ones, 1.0, 2.0**61 * 1.01)
    for scale, divisor, name in [(number, 1.0, "scale"), (1.0, number, "divisor"), (3.0, 1.0, "power of two"),
                                 (0.0, 1.0, "scale"), (1.0, 0.0, "divisor"), (1.0, -1.0, "divisor")]:
        with pytest.raises(ValueError, match=name):
            kernels.finish(ones.copy(), ones, [total], scale, divisor)
    with pytest.raises(ValueError, match="must be a number"):
        kernels.axpy(ones.copy(), ones, number)
    with pytest.raises(ValueError, match="no variant 'sse9'"):
        kernels.select_variant("sse9")


# ---- the same bits everywhere


def test_a_thread_that_flushes_denormals_gets_the_same_bits():
    values = np.array([1e-40, 2e-39, -3e-45, 1.0], np.float32)
    zeros = np.zeros(4, np.float32)
    half = np.arange(1, 1024, dtype=np.uint16).view(np.float16)  # all denormal
    plain_total, flushed_total = np.zeros(4, np.int64), np.zeros(4, np.int64)
    plain, flushed = np.empty(4, np.float32), np.empty(4, np.float32)
    plain_half, flushed_half = np.empty_like(half), np.empty_like(half)
    tiny = np.arange(1, 5)
    kernels.accumulate(plain_total, values, zeros, 2.0**180)
    kernels.finish(plain, zeros, [tiny], 2.0**-149, 1.0)
    kernels.finish(plain_half, half, [np.zeros(1023, np.int64)], 1.0, 1.0)
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush denormals")
    try:
        kernels.accumulate(flushed_total, values, zeros, 2.0**180)
        kernels.finish(flushed, zeros, [tiny], 2.0**-149, 1.0)
        kernels.finish(flushed_half, half, [np.zeros(1023, np.int64)], 1.0, 1.0)
        still_flushing = (torch.tensor([1e-40]) * 1.0).item() == 0.0
    finally:
        torch.set_flush_denormal(False)
    assert still_flushing, "a kernel must leave the thread's mode as it was"
    assert plain_total.tolist() == flushed_total.tolist() == [exact_integer(float(v) * 2.0**180) if abs(v) < 0.5 else 0
                                                              for v in values]
    assert plain.view(np.uint32).tolist() == flushed.view(np.uint32).tolist() == [1, 2, 3, 4]
    assert plain_half.tobytes() == flushed_half.tobytes() == half.tobytes()


@every_dtype
def test_all_variants_give_the_same_bits(dtype, variant):
    n = 5003
    values, start = numbers(dtype, n, 1), numbers(dtype, n, 2)
    if dtype in FLOATS:
        values[::97] = math.nan
        values[::89] = math.inf
        start[::83] *= np.asarray(1e-3).astype(dtype)
    results = {}
    for name in kernels.variants():
        kernels.select_variant(name)
        total, out, y32, y64 = np.zeros(n, np.int64), np.empty_like(start), np.ones(n, np.float32), np.ones(n)
        found = [kernels.accumulate(total, values, start, 2.0**58 * 0.7), kernels.examine(values)]
        kernels.finish(out, start, [total], 2.0**-57, 3.0)
        kernels.axpy(y32, start, 0.1)
        kernels.axpy(y64, start, 0.1)
        results[name] = (total.tobytes(), out.tobytes(), y32.tobytes(), y64.tobytes(), found)
    assert all(result == results["portable"] for result in results.values())
