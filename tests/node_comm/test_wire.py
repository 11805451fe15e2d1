"""Frames: what is put together again, and what is refused, with nothing taken on trust."""

from __future__ import annotations

import random
import resource
import tracemalloc
import zlib
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from node_comm.arrays import Description, describe
from node_comm.errors import ProtocolError
from node_comm.wire import (
    BEGIN,
    MAX_HEADER,
    PIECE,
    PIECE_BYTES,
    ZIPPED,
    Adding,
    Assembler,
    Begin,
    Discarded,
    Outgoing,
    Sink,
)

MOST = 1 << 16
#: 4 GiB of zeros, says its head.
BOMB = zstandard.ZstdCompressor().compress(bytes(300))[:4] + bytes([0b11100000]) + (2**32).to_bytes(8, "little") + bytes(16)


def assembler(sink: Callable[[bytes, Description], Sink] = lambda header, description: None, most: int = 1 << 30) -> Assembler:
    return Assembler(sink, most)


def feed(into: Assembler, frames: list[bytes]) -> list:
    return [whole for frame in frames if (whole := into.feed(frame)) is not None]


def begin(header: bytes = b"h", description: object = None) -> bytes:
    return bytes([BEGIN]) + msgspec.msgpack.encode([header, description])


def piece(data: bytes) -> bytes:
    return bytes([PIECE]) + zlib.crc32(data).to_bytes(4, "little") + data


def zip_piece(data: bytes, small: bytes | None = None) -> bytes:
    small = zstandard.ZstdCompressor().compress(data) if small is None else small
    return bytes([ZIPPED]) + zlib.crc32(data).to_bytes(4, "little") + small


@given(st.lists(st.tuples(st.binary(max_size=40), st.sampled_from(["<f4", "<i8", "|u1", "bfloat16", "<U3", "|b1"]),
                          st.lists(st.integers(0, 4), max_size=3))), st.sampled_from([None, 1, 19]))
def test_messages_arrive_as_they_were_sent(messages, zip_level):
    """S-COMM-03 and S-COMM-04 over the wire: any header, dtype and shape, 0-d and empty arrays too."""
    import ml_dtypes  # noqa: F401 (bfloat16 by name)

    into, expected, frames = assembler(), [], []
    for header, dtype, shape in messages:
        count = int(np.prod(shape))
        array = np.arange(count).astype("<i8").astype(dtype).reshape(shape)
        expected.append((header, array))
        frames += Outgoing(header, array, zip_level)
    found = feed(into, frames)
    assert [whole.header for whole in found] == [header for header, _ in expected]
    for whole, (_, array) in zip(found, expected, strict=True):
        assert describe(whole.buffer) == describe(array)
        assert whole.buffer.tobytes() == array.tobytes()


@pytest.mark.parametrize("nbytes", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 7])
def test_large_arrays_come_in_pieces(nbytes):
    """S-COMM-09: no frame is larger than a piece, whatever the array."""
    array = np.random.default_rng(0).integers(0, 255, nbytes).astype(np.uint8)
    outgoing = Outgoing(b"", array)
    assert max(map(len, outgoing)) <= PIECE_BYTES + 64
    assert len(list(outgoing)) == len(outgoing)
    [whole] = feed(assembler(), list(outgoing))
    assert (whole.buffer == array).all()


@pytest.mark.parametrize(("dtype", "most"), [("<f4", 0.95), ("<i8", 0.6), ("|u1", 1.0), ("<U3", 0.5)])
def test_zipped_pieces(dtype, most):
    """Differences of weights as float32 and as an exact sum's integers; noise travels as it is."""
    draws = np.random.default_rng(0)
    array = {"<f4": draws.normal(0, 1e-3, 600_000).astype("<f4"), "<i8": np.rint(draws.normal(0, 2**30, 600_000)).astype("<i8"),
             "|u1": draws.integers(0, 256, 600_000, np.uint8), "<U3": np.full(300_000, "abc")}[dtype]
    frames = list(Outgoing(b"", array, 1))
    assert sum(map(len, frames)) <= most * array.nbytes + 100 * len(frames)
    [whole] = feed(assembler(), frames)
    assert (whole.buffer == array).all()
    total = np.zeros(array.shape, array.dtype)
    if array.dtype.kind != "U":
        feed(assembler(lambda *_: Adding(total)), frames)
        assert (total == array).all()


def test_a_frame_is_encoded_once_for_many(monkeypatch):
    """Counted: eight streams that move along together ask for 8 * n frames, of which n are encoded."""
    encoded = 0
    crc32 = zlib.crc32

    def counting(data):
        nonlocal encoded
        encoded += 1
        return crc32(data)

    monkeypatch.setattr("node_comm.wire.zlib.crc32", counting)
    outgoing = Outgoing(b"", np.zeros(20 * PIECE_BYTES, np.uint8))
    for index in range(len(outgoing)):
        for stream in range(8):
            outgoing[max(index - stream % 3, 0)]
    assert encoded == 20


def test_a_stream_may_be_far_behind():
    """Found by eight clients of 100 MB: a piece that is encoded once more, for the slowest, is not kept."""
    array = np.arange(30 * PIECE_BYTES, dtype=np.uint8)
    outgoing = Outgoing(b"", array)
    for index in range(len(outgoing)):
        outgoing[index]
    assert (feed(assembler(), list(outgoing))[0].buffer == array).all()


def test_places():
    """Into an array that is given, added to one, or nowhere."""
    array = np.arange(700_000, dtype=np.int64)
    target, total = np.empty_like(array), array.copy()
    assert feed(assembler(lambda *_: target), list(Outgoing(b"", array)))[0].buffer is target
    assert (target == array).all()
    assert feed(assembler(lambda *_: Adding(total)), list(Outgoing(b"", array)))[0].buffer is None
    assert (total == 2 * array).all()
    tracemalloc.start()
    assert feed(assembler(lambda *_: Discarded()), list(Outgoing(b"", array)))[0].buffer is None
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20 + 5 * PIECE_BYTES  # the frames alone
    tracemalloc.stop()


@pytest.mark.parametrize(("frames", "words"), [
    ([b""], "empty"),
    ([b"\x07abc"], "unknown kind 7"),
    ([piece(b"abc")], "where 0 are missing"),
    ([begin(), piece(b"abc")], "where 0 are missing"),
    ([begin(b"h", ["<f4", [2]]), begin()], "8 bytes of the last one are missing"),
    ([begin(b"h", ["<f4", [2]]), piece(b"123456789")], "9 bytes where 8"),
    ([begin(b"h", ["<f4", [2]]), piece(b"")], "0 bytes"),
    ([begin(b"h", ["<f4", [2]]), piece(b"12345678")[:-1] + b"x"], "damaged"),
    ([begin(b"h", ["<f4", [2]]), b"\x01\x00"], "piece"),
    ([zip_piece(b"abc")], "3 bytes; 1 to 0 are allowed"),
    ([begin(b"h", ["<f4", [2]]), zip_piece(b"0" * 2**20)], "1048576 bytes; 1 to 8 are allowed"),
    ([begin(b"h", ["<f4", [2]]), zip_piece(b"", BOMB)], "bytes; 1 to 8 are allowed"),
    ([begin(b"h", ["<f4", [2]]), zip_piece(b"12345678")[:-3]], "zipped piece is damaged"),
    ([begin(b"h", ["<f4", [2]]), zip_piece(b"12345678", b"no zstandard")], "zipped piece is damaged"),
    ([begin(b"h", ["<f4", [2]]), zip_piece(b"12345678", zip_piece(b"12345679")[5:])], "damaged on its way"),
    ([begin(b"h", ["|O", [2]])], "dtype"),
    ([begin(b"h", ["<f4,<f4", [2]])], "dtype"),
    ([begin(b"h", ["no such", [2]])], "dtype"),
    ([begin(b"h", ["x" * 200, [2]])], "dimensions"),
    ([begin(b"h", ["<f4", [1] * 60])], "dimensions"),
    ([begin(b"h", ["<f4", [-1]])], "shape"),
    ([begin(b"h", ["<f4", [2**62]])], "shape"),
    ([begin(b"h", ["<f4", [2**39, 2**39]])], "shape"),
    ([begin(b"h", ["<f4", [0, 2**39, 2**39]])], "shape"),
    ([begin(b"h", ["<f4", [2**30]])], "not asked for"),
    ([begin(b"h", ["<U100000000", [1]])], "not asked for"),
    ([begin("text", None)], "malformed"),
    ([begin(b"h", ["<f4", [2.5]])], "malformed"),
    ([bytes([BEGIN])], "malformed"),
    ([bytes([BEGIN]) + b"\xc1"], "malformed"),
    ([bytes([BEGIN]) + b"\xdf\xff\xff\xff\xff"], "malformed"),
    ([bytes([BEGIN]) + b"\x91" * 5000], "malformed"),
    ([begin(b"x" * MAX_HEADER)], "header"),
])
def test_what_is_refused(frames, words):
    """S-SEC-02 and S-COMM-09: with the reason, before any memory is taken for it."""
    into = assembler(most=MOST)
    tracemalloc.start()
    with pytest.raises(ProtocolError, match=words):
        feed(into, frames)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(("sink", "words"), [
    (lambda *_: np.zeros(3, np.float32), "the buffer given for it"), (lambda *_: np.zeros(2, np.float64), "the buffer given"),
    (lambda *_: Adding(np.zeros(1, np.float32)), "the buffer given")])
def test_an_array_that_does_not_fit_its_place(sink, words):
    """S-AGG-11 over the wire."""
    with pytest.raises(ProtocolError, match=words):
        feed(assembler(sink), [begin(b"h", ["<f4", [2]])])


def test_a_sum_is_fed_whole_elements():
    with pytest.raises(ProtocolError, match="elements of 8"):
        feed(assembler(lambda *_: Adding(np.zeros(2, np.int64))), [begin(b"h", ["<i8", [2]]), piece(b"1234")])


@pytest.mark.filterwarnings("ignore:Data type alias")
def test_a_million_frames_that_nobody_meant():
    """S-SEC-01, S-SEC-02: bytes changed, cut, swapped and made up. Each is taken or refused with ProtocolError; memory stays."""
    draws = random.Random(20261125)
    seeds = [*Outgoing(b"header", np.arange(5, dtype=np.float32)), *Outgoing(b"", np.zeros((2, 0, 3), np.int64)),
             *Outgoing(b"plain"), begin(b"h", ["bfloat16", [3]]), begin(b"h", ["<f4", [2**20]]), piece(b"12345678"),
             zip_piece(bytes(20)), *Outgoing(b"", np.zeros(5, np.float32), 1)]
    total = np.zeros(5, np.float32)
    places: list[Sink] = [None, Discarded(), Adding(total), np.zeros(5, np.float32)]
    into, refused, whole = None, 0, 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(1_000_000):
        if into is None or number % 64 == 0:
            place = places[number // 64 % len(places)]
            into = Assembler(lambda header, description, place=place: place, MOST)
        frame = bytearray(seeds[draws.randrange(len(seeds))])
        change = draws.randrange(5)
        if change == 0 and frame:
            frame[draws.randrange(len(frame))] = draws.randrange(256)
        elif change == 1:
            del frame[draws.randrange(len(frame) + 1):]
        elif change == 2:
            frame[draws.randrange(len(frame) + 1):0] = draws.randbytes(draws.randrange(9))
        elif change == 3:
            frame = bytearray(draws.randbytes(draws.randrange(24)))
        try:
            whole += into.feed(bytes(frame)) is not None
        except ProtocolError:
            refused += 1
            into = None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 * 1024  # KiB
    assert whole > 10_000
    assert refused > 100_000


def test_the_begin_frame_is_what_the_struct_says():
    """The oracle of the tests above, which build frames by hand."""
    assert begin(b"h", ["<f4", [2]])[1:] == msgspec.msgpack.encode(Begin(b"h", Description("<f4", (2,))))
