"""Codecs against what they are defined to do, and packed updates against what was packed."""

from __future__ import annotations

from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.core.compression import BFloat16, Compression, Float16, Int8, Packing, TopK
from federation.core.weights import Weights
from federation.errors import UpdateError

CODECS = ["float16", "bfloat16", "int8", "topk"]


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def around(scale: float, size: int = 5000, seed: int = 1) -> np.ndarray:
    return draws(seed).normal(0, scale, size).astype(np.float32)


def through(codec, *changes: np.ndarray, seed: int = 0) -> list[np.ndarray]:
    data = np.frombuffer(codec.encode(changes, draws(seed)), np.uint8)
    assert data.size == codec.nbytes
    return codec.decode(data)


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-6, 1.0, 1e30, 3e37])
def test_float16_has_eleven_bits_at_any_magnitude(scale):
    change = around(scale)
    [found] = through(Float16([change.size]), change)
    peak = np.abs(change).max().astype(np.float64)
    bound = np.maximum(np.abs(change).astype(np.float64) * 2.0**-11, max(peak * 2.0**-38, 1e-45))
    assert (np.abs(found.astype(np.float64) - change) <= bound).all()


@pytest.mark.parametrize("change", [[-1e30, -3e28], [0.0, -0.0], [np.nextafter(np.float32(1), np.float32(0)), 1e-3]])
def test_float16_scales_by_magnitude_and_leaves_room_to_round(change):
    [found] = through(Float16([2]), np.float32(change))
    np.testing.assert_allclose(found, np.float32(change), rtol=2.0**-11)


def test_bfloat16_is_what_ml_dtypes_rounds_to():
    change = np.concatenate([around(1.0), around(1e-38), around(1e37)])
    first, second = through(BFloat16([4, change.size - 4]), change[:4], change[4:])
    assert (np.concatenate([first, second]) == change.astype(ml_dtypes.bfloat16).astype(np.float32)).all()


@pytest.mark.parametrize("scale", [1e-38, 1e-4, 1e37])
def test_int8_rounds_to_a_neighbour_and_is_right_in_the_mean(scale):
    change = around(scale, 3 * Int8.BLOCK + 5)
    codec = Int8([change.size])
    steps = np.repeat([np.abs(block).max() / 127.0 for block in np.split(change.astype(np.float64), range(2048, 6149, 2048))],
                      2048)[:change.size]
    total, tries = np.zeros(change.size), 400
    for seed in range(tries):
        [found] = through(codec, change, seed=seed)
        assert (np.abs(found.astype(np.float64) - change) <= steps * 1.0001).all()
        total += found
    # The mean of n roundings, each with a standard deviation of at most half a step: five of the mean's own.
    assert (np.abs(total / tries - change) <= 5 * 0.5 / np.sqrt(tries) * steps + 1e-45).all()


def test_int8_of_the_largest_float_is_finite():
    """A 127th of it, times 127, is rounded to infinity; other scales are as they were."""
    top = np.finfo(np.float32).max
    change = np.concatenate([np.full(Int8.BLOCK, -top), np.full(Int8.BLOCK, np.float32(3))]).astype(np.float32)
    [found] = through(Int8([change.size]), change)
    assert np.isfinite(found).all()
    assert np.allclose(found, change, rtol=1e-6)
    assert (found[Int8.BLOCK:] == np.float32(3) / np.float32(127) * np.float32(127)).all()


def test_int8_rounds_the_largest_of_a_block_no_further_up():
    """In float32, 127 and the largest number below 1 are 128, which wraps around."""
    most = SimpleNamespace(random=lambda shape, dtype: np.full(shape, np.nextafter(dtype(1), dtype(0)), dtype))
    codec = Int8([2])
    [found] = codec.decode(np.frombuffer(codec.encode([np.float32([2, -2])], most), np.uint8))
    assert found[0] == pytest.approx(2)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.floats(0.01, 1.0))
def test_topk_sends_the_largest_and_of_equals_the_first(values, fraction):
    change = np.array(values, np.float32)
    count = max(1, int(np.ceil(fraction * change.size)))
    wanted = sorted(range(change.size), key=lambda place: (-abs(change[place]), place))[:count]
    [found] = through(TopK([change.size], fraction), change)
    expected = np.zeros_like(change)
    expected[wanted] = change[wanted]
    assert (found == expected).all()


def test_topk_chooses_in_the_model_as_a_whole():
    first, second = through(TopK([3, 4], 0.3), np.float32([0.1, -5, 0.2]), np.float32([9, 0.1, 0.1, -4]))
    assert (first.tolist(), second.tolist()) == ([0, -5, 0], [9, 0, 0, -4])


def test_what_topk_leaves_out_comes_later():
    """A client that changes the model in the same way each time has said it all after a while, but for a bounded rest."""
    start = Weights.of({"w": np.zeros(1000, np.float32)})
    packing = Packing(Compression("topk", 0.05), start)
    change, said, rest = np.abs(around(1.0, 1000)), np.zeros(1000), None
    for number in range(1, 101):
        packed = packing.pack("c", [change], draws(), rest)
        said, rest = said + packed.arrays[0], packed.rest
        assert np.allclose(said + rest, number * change, rtol=1e-4)
    assert (said[change > 0.2] > 0).all()
    assert np.abs(rest).max() < 25 * change.max()


DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int64, np.int32, np.uint8, np.bool_]


@settings(max_examples=150)
@given(st.sampled_from(CODECS), st.lists(st.tuples(st.sampled_from(DTYPES), st.sampled_from([(), (0,), (3,), (2, 5)]),
                                                   st.booleans()), min_size=1, max_size=5), st.integers(0, 2**32))
def test_what_arrives_is_what_the_sender_counts(codec, arrays, seed):
    """Bit for bit, any dtypes and shapes; buffers and integers as they are; what does not travel is the start's."""
    random = draws(seed)
    start = Weights.of({f"a{index}": random.normal(0, 3, shape).astype(dtype) for index, (dtype, shape, _) in enumerate(arrays)})
    trained = [(array + random.normal(0, 0.1, array.shape)).astype(array.dtype) for array in start]
    without = {index for index, (_, _, stays) in enumerate(arrays) if stays}
    packing = Packing(Compression(codec, 0.2), start, without)
    packed = packing.pack("c", trained, random)
    assert packed.data.size == packing.nbytes
    for found, sent in zip(packing.unpack("c", packed.data), packed.arrays, strict=True):
        assert found.dtype == sent.dtype
        assert found.tobytes() == sent.tobytes()
    for index, (found, array) in enumerate(zip(packed.arrays, trained, strict=True)):
        assert found.shape == array.shape
        if index in without:
            assert found.tobytes() == start[index].tobytes()
        elif index not in start.layout.parameters:
            assert found.tobytes() == array.tobytes()


@pytest.mark.parametrize("codec", CODECS)
def test_changes_of_large_weights_are_taken_in_their_own_precision(codec):
    """And what travels as it is has the model's dtype, whatever the client's."""
    start = Weights.of({"w": np.full(2, 1e9), "n": np.arange(3)})
    packing = Packing(Compression(codec, 1.0), start)
    trained = [start[0] + [0.25, -0.25], np.int32([5, 6, 7])]
    found = packing.unpack("c", packing.pack("c", trained, draws()).data)
    np.testing.assert_allclose(found[0], trained[0], rtol=0, atol=1e-6)
    assert (found[1].dtype, found[1].tolist()) == (np.int64, [5, 6, 7])


def test_the_start_is_left_as_it_is():
    start = Weights.of({"w": around(1.0), "n": np.arange(4)})
    before = start.buffer.copy()
    for codec in CODECS:
        packed = Packing(Compression(codec), start).pack("c", [around(1.0, seed=2), np.arange(4)], draws())
        for array in packed.arrays:
            array += 1
    assert (start.buffer == before).all()


@pytest.mark.parametrize("codec", CODECS)
def test_what_cannot_be_packed(codec):
    """S-AGG-10: NaN and infinity are for the sum to refuse; a change beyond float32 is named."""
    start = Weights.of({"w": np.zeros(3)})
    packing = Packing(Compression(codec), start)
    assert packing.pack("c", [np.array([1, np.nan, 0])], draws()) is None
    assert packing.pack("c", [np.array([1, np.inf, 0])], draws()) is None
    with pytest.raises(UpdateError, match="c: it is too far from the global weights"):
        packing.pack("c", [np.array([1, 1e300, 0])], draws())


@pytest.mark.parametrize("places", [[3, 2], [2, 2], [1, 10], [0, 2**32 - 1]])
def test_places_that_are_none_are_refused(places):
    """S-SEC-02: nothing is written where it should not be, and nothing twice."""
    start = Weights.of({"w": np.zeros(10, np.float32)})
    data = np.frombuffer(np.array(places, "<u4").tobytes() + np.ones(2, "<f4").tobytes(), np.uint8)
    with pytest.raises(UpdateError, match="client_3 sent an update that cannot be unpacked: places"):
        Packing(Compression("topk", 0.2), start).unpack("client_3", data)


@pytest.mark.parametrize("codec", CODECS)
def test_any_bytes_are_an_update_or_refused(codec):
    start = Weights.of({"w": around(1.0, 100), "b": np.zeros((), np.float32), "n": np.arange(3)})
    packing = Packing(Compression(codec, 0.1), start)
    random = draws()
    for _ in range(300):
        try:
            arrays = packing.unpack("c", random.integers(0, 256, packing.nbytes, np.uint8))
        except UpdateError:
            continue
        assert [array.shape for array in arrays] == [(100,), (), (3,)]
