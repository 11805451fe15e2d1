"""The transport contract, written once from one rank's point of view.

`CHECKS` are coroutines `check(transport)` that every rank of a world runs, in this order, at any world size; they
leave the world usable. `CLOSING_CHECKS` end with a closed transport, so each wants a world of its own.
Expected values are computed from the rank numbers alone, never by the transport.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import ml_dtypes
import numpy as np
import pytest

from node_comm.arrays import Description
from node_comm.errors import AddressError, BufferMismatch, CommError, Disconnected
from node_comm.message import Message
from node_comm.node import Node
from node_comm.transport import REDUCIBLE, Operation, Transport

Check = Callable[[Transport], Awaitable[None]]


class Word(Message, frozen=True):
    """What nodes say to each other here."""


DTYPES = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32",
          "float64", "longdouble", "complex64", "complex128", ">f8", ">i4", "<U5", ">U3", "S7", "<M8[ns]", "<m8[s]",
          "bfloat16", "float8_e4m3fn", "float8_e5m2", "int4")


def dtype_of(name: str) -> np.dtype:
    """NumPy's dtype of that name, or ml_dtypes'."""
    return np.dtype(getattr(ml_dtypes, name, name))


def assert_same(actual: np.ndarray | None, expected: np.ndarray) -> None:
    """The same dtype, shape and bytes (so that NaNs and negative zeros count as well)."""
    assert actual is not None
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    if actual.dtype == np.longdouble:  # its padding bytes are anyone's
        assert (actual == expected).all()
    else:
        assert actual.tobytes() == expected.tobytes()


def sample(dtype: str, shape: tuple[int, ...], rank: int) -> np.ndarray:
    """An array that differs from rank to rank."""
    count = int(np.prod(shape))
    values = (np.arange(count) + 3 * rank) % 7
    if dtype in ("<M8[ns]", "<m8[s]"):
        return values.astype("i8").view(dtype).reshape(shape)
    return values.astype(dtype_of(dtype)).reshape(shape)


def samples(rank: int) -> dict[str, np.ndarray]:
    """Arrays of every kind that travels, by a name that says which kind."""
    arrays = {f"{name} {list(shape)}": sample(name, shape, rank)
              for name in DTYPES for shape in ((), (0, 4), (1,), (3,), (2, 3), (40, 50))}
    grid = np.arange(24, dtype=np.float64).reshape(4, 6) + 100 * rank
    plain = {"Fortran": np.asfortranarray(grid), "transposed": grid.T, "strided": grid[:, ::2],
             "column": grid[:, 1],
             "negative step": grid[::-1, ::-1], "broadcast view": np.broadcast_to(grid[0], (3, 6)),
             "no elements in the middle": np.empty((2, 0, 3), np.int16),
             "large strided": (np.arange(300_000) + rank)[::3],
             "large Fortran": np.asfortranarray(np.arange(60_000, dtype=np.float32).reshape(200, 300) + rank),
             "special values": np.array([np.nan, -0.0, np.inf, -np.inf, 5e-324, rank])}
    read_only = grid.copy()
    read_only.flags.writeable = False
    big_endian = np.asfortranarray(grid.astype(">f8"))
    half = np.asfortranarray(grid.astype(ml_dtypes.bfloat16))
    unaligned = np.frombuffer(b"x" + grid.tobytes(), np.float64, offset=1)
    return arrays | plain | {"read-only": read_only, "Fortran >f8": big_endian, "Fortran bfloat16": half,
                             "unaligned": unaligned}


def neighbours(transport: Transport) -> tuple[int, int]:
    """The next and the previous rank of the ring."""
    return (transport.rank + 1) % transport.size, (transport.rank - 1) % transport.size


async def exchange(transport: Transport, header: bytes, buffer: np.ndarray | None,
                   into: object = None) -> tuple[bytes, np.ndarray | None]:
    """Send to the next rank and receive from the previous one, at once."""
    following, previous = neighbours(transport)
    _, received = await asyncio.gather(transport.send(following, header, buffer),
                                       transport.recv(previous, into))  # type: ignore[arg-type]
    assert received.source == previous
    return received.header, received.buffer


async def check_ranks(transport: Transport) -> None:
    assert 0 <= transport.rank < transport.size


async def check_every_array_travels(transport: Transport) -> None:
    """S-COMM-01, S-COMM-03, S-COMM-04: every dtype, shape and memory order arrives as it was."""
    _, previous = neighbours(transport)
    expected = samples(previous)
    for name, array in samples(transport.rank).items():
        before = array.tobytes()
        header, arrived = await exchange(transport, name.encode(), array)
        assert header == name.encode()
        assert_same(arrived, expected[name])
        assert arrived is not None
        assert arrived.flags.c_contiguous
        assert arrived.flags.writeable
        assert array.tobytes() == before


async def check_every_array_travels_into_a_buffer(transport: Transport) -> None:
    """S-COMM-01, S-COMM-03, S-COMM-04: the same into the receiver's own buffer."""
    _, previous = neighbours(transport)
    expected = samples(previous)
    for name, array in samples(transport.rank).items():
        target = np.zeros(array.shape, array.dtype)
        _, arrived = await exchange(transport, name.encode(), array, target)
        assert arrived is target
        assert_same(target, expected[name])


async def check_into_function(transport: Transport) -> None:
    """`into` may choose a buffer for what arrives, or leave it to the transport."""
    _, previous = neighbours(transport)
    target = np.zeros(5, np.float32)
    seen: list[tuple[bytes, Description]] = []

    def choose(header: bytes, description: Description) -> np.ndarray | None:
        seen.append((header, description))
        return target if header == b"mine" else None

    mine = np.arange(5, dtype=np.float32) + transport.rank
    _, arrived = await exchange(transport, b"mine", mine, choose)
    assert arrived is target
    assert_same(target, np.arange(5, dtype=np.float32) + previous)
    _, arrived = await exchange(transport, b"yours", mine, choose)
    assert arrived is not target
    assert_same(arrived, np.arange(5, dtype=np.float32) + previous)
    header, arrived = await exchange(transport, b"nothing beside it", None, choose)
    assert (header, arrived) == (b"nothing beside it", None)
    assert seen == [(b"mine", Description("<f4", (5,))), (b"yours", Description("<f4", (5,)))]


async def check_wrong_into_loses_that_message_only(transport: Transport) -> None:
    """A buffer that does not fit is refused, untouched, and what comes later still arrives."""
    following, previous = neighbours(transport)
    read_only = np.zeros((4, 6))
    read_only.flags.writeable = False
    wrong = {"dtype": np.zeros((4, 6), np.float32), "byte order": np.zeros((4, 6), ">f8"), "shape": np.zeros((6, 4)),
             "size": np.zeros(24), "order": np.zeros((4, 6), order="F"), "strides": np.zeros((4, 12))[:, ::2],
             "read-only": read_only}
    grid = np.arange(24, dtype=np.float64).reshape(4, 6)
    for many in (1, 2_000):  # small payloads and large ones may take different ways
        sent = np.tile(grid, (many, 1))
        for name, target in wrong.items():
            target = target if many == 1 or name != "shape" else np.zeros((6, 4 * many))
            sending = asyncio.ensure_future(transport.send(following, name.encode(), sent))
            with pytest.raises(BufferMismatch) as caught:
                await transport.recv(previous, into=target)
            assert str(sent.shape[0]) in str(caught.value)
            assert not target.any()
            await sending
            header, arrived = await exchange(transport, b"later", sent)
            assert header == b"later"
            assert_same(arrived, sent)


async def check_into_that_raises(transport: Transport) -> None:
    """An error of the receiver's own function reaches the receiver; later messages arrive."""
    following, previous = neighbours(transport)

    def refuse(header: bytes, description: Description) -> np.ndarray | None:
        raise ZeroDivisionError(header)

    array = np.arange(100_000.0)
    sending = asyncio.ensure_future(transport.send(following, b"refused", array))
    with pytest.raises(ZeroDivisionError, match="refused"):
        await transport.recv(previous, into=refuse)
    await sending
    _, arrived = await exchange(transport, b"later", array)
    assert_same(arrived, array)


async def check_headers(transport: Transport) -> None:
    """Headers of any length arrive whole: small, empty, above a pipe's capacity, all bytes values."""
    _, previous = neighbours(transport)
    for length in (0, 1, 255, 4_000, 4_096, 5_000, 65_536, 70_000, 400_000):
        pattern = np.resize(np.arange(256, dtype=np.uint8), length)
        for buffer in (None, np.arange(3) + transport.rank, np.arange(30_000) + transport.rank):
            header, arrived = await exchange(transport, (pattern + transport.rank).astype(np.uint8).tobytes(), buffer)
            assert header == (pattern + previous).astype(np.uint8).tobytes()
            if buffer is None:
                assert arrived is None
            else:
                assert_same(arrived, np.arange(len(buffer)) + previous)


async def check_sending_to_oneself_does_not_wait(transport: Transport) -> None:
    """A rank may send to itself first and receive afterwards: nothing waits for itself."""
    small, large = np.arange(4.0), np.asfortranarray(np.arange(200_000.0).reshape(400, 500))
    expected = large.copy()
    await transport.send(transport.rank, b"alone")
    await transport.send(transport.rank, b"small", small)
    await transport.send(transport.rank, b"large", large)
    small[:], large[:] = -1, -1  # returned, so no longer borrowed
    first, second, third = [await transport.recv(transport.rank) for _ in range(3)]
    assert first == (transport.rank, b"alone", None)
    assert second.header == b"small"
    assert_same(second.buffer, np.arange(4.0))
    assert third.header == b"large"
    assert_same(third.buffer, expected)
    assert third.buffer is not None
    assert not np.shares_memory(third.buffer, large)


async def check_buffers_are_only_borrowed(transport: Transport) -> None:
    """After `send` returns, the sender may overwrite its buffer; what was received does not change."""
    _, previous = neighbours(transport)
    for count in (4, 100_000):
        mine = np.full(count, transport.rank, np.int64)
        _, arrived = await exchange(transport, b"", mine)
        mine[:] = -1
        await transport.barrier()
        assert_same(arrived, np.full(count, previous, np.int64))


async def check_many_messages_keep_their_order(transport: Transport) -> None:
    """S-COMM-07: a thousand messages from many sources, with and without arrays, in order by source, each once."""
    each = 1_000 // transport.size

    async def post(dest: int) -> None:
        for number in range(each):
            array = None if number % 5 else np.full((300 if number % 3 else 3,), number * 1_000 + transport.rank)
            await transport.send(dest, f"{transport.rank} {dest} {number}".encode(), array)

    async def collect() -> None:
        seen = [0] * transport.size
        for _ in range(each * transport.size):
            source, header, array = await transport.recv()
            number = seen[source]
            assert header == f"{source} {transport.rank} {number}".encode()
            if number % 5:
                assert array is None
            else:
                assert_same(array, np.full((300 if number % 3 else 3,), number * 1_000 + source))
            seen[source] += 1
        assert seen == [each] * transport.size

    await asyncio.gather(collect(), *(post(dest) for dest in range(transport.size)))
    await transport.barrier()  # nobody's next check may post to a rank that still takes anything from anyone


async def check_messages_without_an_array_wait_for_nobody(transport: Transport) -> None:
    """All are sent before anybody receives one, short and long; they arrive whole and in order."""
    headers = [bytes([number]) * size for number, size in enumerate((10, 300, 5_000, 100_000, 20) * 8)]
    following, previous = (transport.rank + 1) % transport.size, (transport.rank - 1) % transport.size
    for header in headers:
        async with asyncio.timeout(5):
            await transport.send(following, header)
    await transport.barrier()
    assert [(await transport.recv(previous)).header for _ in headers] == headers


async def check_recv_by_source(transport: Transport) -> None:
    """A receiver that names the source gets that one's messages, whatever else lies there."""
    async def post() -> None:
        for number in range(3):
            await asyncio.gather(*(transport.send(dest, b"%d" % number, np.array([transport.rank, number]))
                                   for dest in range(transport.size)))

    async def collect() -> None:
        for number in range(3):
            for source in reversed(range(transport.size)):
                received = await transport.recv(source)
                assert (received.source, received.header) == (source, b"%d" % number)
                assert_same(received.buffer, np.array([source, number]))

    await asyncio.gather(post(), collect())


async def check_rounds_do_not_mix(transport: Transport) -> None:
    """S-COMM-07: 20 rounds of update and metrics, the ranks unequally fast; rank 0 gets each round whole."""
    naps = random.Random(transport.rank)
    if transport.rank:
        for number in range(20):
            await asyncio.sleep(naps.random() * 0.003 * transport.rank / transport.size)
            await transport.send(0, b"update %d" % number, np.full(5_000, number * 100.0 + transport.rank))
            await transport.send(0, b"metrics %d" % number)
    else:
        for number in range(20):
            for source in range(1, transport.size):
                update = await transport.recv(source)
                assert update.header == b"update %d" % number
                assert_same(update.buffer, np.full(5_000, number * 100.0 + source))
                assert (await transport.recv(source)).header == b"metrics %d" % number


async def check_big_exchange_in_both_directions(transport: Transport) -> None:
    """S-COMM-06: every pair of ranks exchanges arrays at the same time; no send relies on buffering."""
    for count in (1, 1_000, 1_000_000 // transport.size):
        targets = [np.zeros(count) for _ in range(transport.size)]
        mine = np.arange(count) + 0.5 * transport.rank
        await asyncio.gather(
            *(transport.send(dest, b"swap", mine) for dest in range(transport.size)),
            *(transport.recv(source, targets[source]) for source in range(transport.size)))
        for source, target in enumerate(targets):
            assert_same(target, np.arange(count) + 0.5 * source)


async def check_payload_sizes(transport: Transport) -> None:
    """S-LIFE-04: payloads around every buffer's limit, up to 50 MB."""
    _, previous = neighbours(transport)
    for nbytes in (1_000, 4_096, 60_000, 65_536, 70_000, 50_000_001):
        mine = np.full(nbytes, transport.rank + 1, np.uint8)
        mine[-1] = 200 + transport.rank
        _, arrived = await exchange(transport, b"", mine)
        assert arrived is not None
        assert arrived.nbytes == nbytes
        assert (arrived[:-1] == previous + 1).all()
        assert arrived[-1] == 200 + previous


async def check_what_cannot_be_sent(transport: Transport) -> None:
    """Objects and records are refused by the sender, unknown ranks by sender and receiver; nothing is lost."""
    following, _ = neighbours(transport)
    for array in (np.array([1, "a"], object), np.zeros(2, [("a", "f4"), ("b", "i8")]), np.zeros(2, "V8")):
        with pytest.raises(BufferMismatch, match="cannot be sent"):
            await transport.send(following, b"", array)
    for rank in (-1, transport.size):
        with pytest.raises(AddressError, match=str(rank)):
            await transport.send(rank, b"")
        with pytest.raises(AddressError, match=str(rank)):
            await transport.recv(rank)
    header, _ = await exchange(transport, b"still here", None)
    assert header == b"still here"


async def check_broadcast(transport: Transport) -> None:
    """S-COMM-01, S-COMM-03, S-COMM-04: broadcast of every kind of array, from every root."""
    for root in range(transport.size):
        for array in samples(root).values():
            if transport.rank == root:
                before = array.tobytes()
                await transport.broadcast(array, root)
                assert array.tobytes() == before
            else:
                target = np.zeros(array.shape, array.dtype)
                await transport.broadcast(target, root)
                assert_same(target, array)
    large = np.arange(1_500_000.0) if transport.rank == 0 else np.zeros(1_500_000)
    await transport.broadcast(large)
    assert_same(large, np.arange(1_500_000.0))


async def check_reduce(transport: Transport) -> None:
    """Every operation, dtype and root, of small, empty, odd and large arrays, against values known in advance."""
    combine = {"sum": lambda parts: sum(parts[1:], parts[0]), "max": lambda parts: np.maximum.reduce(parts),
               "min": lambda parts: np.minimum.reduce(parts)}
    cases = [(dtype.name, shape) for dtype in sorted(REDUCIBLE, key=str) for shape in ((), (0, 4), (5,), (7, 11))]
    cases += [("float32", (262_147,)), ("int64", (1_000_003,)), ("float64", (3, 100_001)), ("uint8", (700_001,))]
    for number, (dtype, shape) in enumerate(cases):
        root = number % transport.size
        parts = [sample(dtype, shape, rank) for rank in range(transport.size)]  # small integers: sums are exact
        for operation, oracle in combine.items():
            mine = parts[transport.rank].copy()
            out = np.full(shape, 99, dtype) if transport.rank == root else None
            await transport.reduce(mine, out, root, operation)  # type: ignore[arg-type]
            assert_same(mine, parts[transport.rank])
            if out is not None:
                assert_same(out, oracle(parts).astype(dtype).reshape(shape))


async def check_reduce_in_place(transport: Transport) -> None:
    """`out` may be the root's buffer itself; the other ranks' buffers stay as they were."""
    for count in (3, 500_000):
        for root in range(transport.size):
            mine = np.arange(count, dtype=np.int64) * (transport.rank + 1)
            await transport.reduce(mine, mine if transport.rank == root else None, root)
            factor = transport.size * (transport.size + 1) // 2 if transport.rank == root else transport.rank + 1
            assert_same(mine, np.arange(count, dtype=np.int64) * factor)


async def check_reduce_of_what_the_others_give(transport: Transport) -> None:
    """The root may have nothing of its own: what it has in `out` does not count. Nobody else may, nor a root that is alone."""
    combining: dict[Operation, np.ufunc] = {"sum": np.add, "max": np.maximum, "min": np.minimum}
    for number, (dtype, count) in enumerate((("int64", 3), ("int64", 400_001), ("float32", 600_000), ("uint8", 5), ("int8", 7))):
        parts = [sample(dtype, (count,), rank) + 1 for rank in range(transport.size)]
        root = number % transport.size
        for operation, combine in combining.items():
            out = transport.allocate((count,), np.dtype(dtype)) if operation == "sum" else np.empty(count, dtype)
            out[:] = 0 if operation == "min" else 77
            is_root = transport.rank == root
            given = transport.reduce(None if is_root else parts[transport.rank], out if is_root else None, root, operation)
            if transport.size == 1:
                with pytest.raises(BufferMismatch, match="nothing is given"):
                    await given
                continue
            await given
            if is_root:
                others = [part for rank, part in enumerate(parts) if rank != root]
                assert_same(out, combine.reduce(others).astype(dtype))
            else:
                assert_same(parts[transport.rank], sample(dtype, (count,), transport.rank) + 1)
    if transport.size > 1:
        ones, is_last = np.ones(3), transport.rank == transport.size - 1
        await expect_mismatch(transport, lambda: transport.reduce(None if is_last else ones, ones), "nothing is given")
        own = None if transport.rank == 0 else ones
        await expect_mismatch(transport, lambda: transport.reduce(own, np.ones(4)), "(4,)", "(3,)")


async def check_reduce_of_mixed_memory_orders(transport: Transport) -> None:
    """S-COMM-01: ranks that hold the same values in different memory orders get the right sum, in place by place."""
    values = np.array([[0, 1, 2], [3, 4, 5]], np.float64)
    for repeat in (1, 30_000):
        base = np.tile(values, (1, repeat))
        wide = np.zeros((2, 6 * repeat))
        wide[:, ::2] = base
        forms = [base, np.asfortranarray(base), wide[:, ::2], base[::-1, ::-1].copy()[::-1, ::-1]]
        mine = forms[transport.rank % len(forms)]
        out = np.zeros(base.shape) if transport.rank == 0 else None
        await transport.reduce(mine, out)
        if out is not None:
            assert_same(out, base * transport.size)


async def check_gather(transport: Transport) -> None:
    """Ranks of different shapes, one of them empty, any memory order; every root."""
    for factor in (1, 1_000):
        def of(rank: int, factor: int = factor) -> np.ndarray:
            return np.arange(2 * rank * factor, dtype=np.float32).reshape(rank, 2 * factor) + rank

        for root in range(transport.size):
            out = [np.zeros((rank, 2 * factor), np.float32) for rank in range(transport.size)]
            await transport.gather(np.asfortranarray(of(transport.rank)), out if transport.rank == root else None, root)
            for rank, target in enumerate(out):
                assert_same(target, of(rank) if transport.rank == root else np.zeros_like(of(rank)))
    for name in DTYPES:
        out = [np.zeros((2, 3), dtype_of(name)) for _ in range(transport.size)]
        await transport.gather(sample(name, (2, 3), transport.rank), out)
        if transport.rank == 0:
            for rank, target in enumerate(out):
                assert_same(target, sample(name, (2, 3), rank))
    counts = [np.full((), -1) for _ in range(transport.size)]
    await transport.gather(np.array(transport.rank), counts)
    if transport.rank == 0:
        assert [int(count) for count in counts] == list(range(transport.size))
    table = np.full((transport.size, 3), -1)  # one array, whose rows are the places
    await transport.gather(np.full(3, transport.rank), table)  # type: ignore[arg-type]
    if transport.rank == 0:
        assert table.tolist() == [[rank] * 3 for rank in range(transport.size)]


async def check_alltoall(transport: Transport) -> None:
    """Every pair its own shape and values, some empty."""
    def part(source: int, dest: int, factor: int, dtype: str) -> np.ndarray:
        shape = ((source + dest) % 3 * factor, 2)
        return (np.arange(shape[0] * 2).reshape(shape) % 50 + 10 * source + dest).astype(dtype_of(dtype))

    for factor, dtype in ((1, "float64"), (20_000, "int32"), (3, "bfloat16"), (2, ">f8"), (1, "<U5")):
        mine = [part(transport.rank, dest, factor, dtype) for dest in range(transport.size)]
        mine[-1] = np.asfortranarray(mine[-1])
        out = [np.zeros_like(part(source, transport.rank, factor, dtype)) for source in range(transport.size)]
        await transport.alltoall(mine, out)
        for source, target in enumerate(out):
            assert_same(target, part(source, transport.rank, factor, dtype))


async def check_barrier_waits_for_all(transport: Transport) -> None:
    """Nobody passes before the last rank is there; messages flow meanwhile."""
    last = transport.size - 1
    if transport.rank == 0 and last:
        waiting = asyncio.ensure_future(transport.barrier())
        for _ in range(20):
            await asyncio.sleep(0.002)
            assert not waiting.done()
        await transport.send(last, b"come", np.arange(20_000))
        await waiting
    else:
        if transport.rank == last and last:
            assert_same((await transport.recv(0)).buffer, np.arange(20_000))
        await transport.barrier()


async def check_messages_and_collectives_side_by_side(transport: Transport) -> None:
    """Collectives and messages in flight at the same time do not disturb each other."""
    following, previous = neighbours(transport)

    async def talk() -> None:
        for number in range(30):
            _, received = await asyncio.gather(
                transport.send(following, b"%d" % number, np.full(10_000, number + transport.rank)),
                transport.recv(previous))
            assert received.header == b"%d" % number
            assert_same(received.buffer, np.full(10_000, number + previous))

    async def collect() -> None:
        for number in range(10):
            out = np.zeros(10_000, np.int64)
            await transport.reduce(np.full(10_000, number + transport.rank), out)
            if transport.rank == 0:
                assert_same(out, np.full(10_000, number * transport.size + sum(range(transport.size))))
            shared = np.full(10_000, number if transport.rank == 0 else -1)
            await transport.broadcast(shared)
            assert_same(shared, np.full(10_000, number))

    await asyncio.gather(talk(), collect())


async def expect_mismatch(transport: Transport, call: Callable[[], Awaitable[None]], *words: str) -> None:
    """`call` raises BufferMismatch with all of `words` on this rank, and the world works afterwards."""
    with pytest.raises(BufferMismatch) as caught:
        await call()
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in {str(caught.value)!r}"
    out = np.zeros(2, np.int32)
    await transport.reduce(np.full(2, transport.rank, np.int32), out)
    if transport.rank == 0:
        assert out.tolist() == [sum(range(transport.size))] * 2


async def check_disagreement_reaches_every_rank(transport: Transport) -> None:
    """S-COMM-08: one rank that differs in shape, dtype, root, operation or kind: all ranks raise, nothing moves."""
    if transport.size == 1:
        return
    odd = transport.rank == transport.size - 1
    odd_name = f"rank {transport.size - 1}"
    out = np.full(4, 7.0)
    three = np.ones(3 if odd else 4)
    await expect_mismatch(transport, lambda: transport.reduce(three, out), "(4,)", "(3,)", "rank 0", odd_name)
    small = np.ones(4, np.float32 if odd else np.float64)
    await expect_mismatch(transport, lambda: transport.reduce(small, out), "float32", "float64", "rank 0", odd_name)
    ones = np.ones(4)
    await expect_mismatch(transport, lambda: transport.reduce(ones, out, int(odd)), "rank 0", odd_name)
    await expect_mismatch(transport, lambda: transport.reduce(ones, out, 0, "max" if odd else "sum"), "max", "sum")
    await expect_mismatch(transport, lambda: transport.barrier() if odd else transport.reduce(ones, out),
                          "barrier", "reduce", "rank 0", odd_name)
    await expect_mismatch(transport, lambda: transport.broadcast(three), "(4,)", "(3,)", "rank 0", odd_name)
    await expect_mismatch(transport, lambda: transport.broadcast(small), "float32", "float64")
    await expect_mismatch(transport, lambda: transport.broadcast(ones, int(odd)), "rank 0", odd_name)
    targets = [np.full(4, 7.0) for _ in range(transport.size)]
    await expect_mismatch(transport, lambda: transport.broadcast(ones) if odd else transport.gather(ones, targets),
                          "broadcast", "gather")
    await expect_mismatch(transport, lambda: transport.gather(three, targets), "(4,)", "(3,)", odd_name)
    await expect_mismatch(transport, lambda: transport.gather(small, targets), "float32", "float64")
    parts = [three if dest == 0 else ones for dest in range(transport.size)]
    await expect_mismatch(transport, lambda: transport.alltoall(parts, targets), "(4,)", "(3,)", odd_name)
    assert (out == 7).all()
    assert (ones == 1).all()
    assert (three == 1).all()
    assert (small == 1).all()
    assert all((target == 7).all() for target in targets)


async def check_wrong_buffers_of_one_rank_reach_every_rank(transport: Transport) -> None:
    """A buffer that cannot be used on one rank raises on all: read-only, missing, strided, misshapen targets."""
    root = transport.rank == 0
    ones = np.ones(4)
    for out in (None, np.zeros(3), np.zeros(4, np.float32), np.zeros(8)[::2], np.broadcast_to(0.0, 4)):
        await expect_mismatch(transport, lambda out=out: transport.reduce(ones, out if root else None), "rank 0")
    for memory in (np.zeros(100_001), transport.allocate((100_001,), np.dtype(np.float64))):
        for given, out in ((memory[:-1], memory[1:]), (memory[::2], memory[:50_001])):
            await expect_mismatch(transport, lambda given=given, out=out: transport.reduce(given, out), "rank 0", "overlaps")
    for dtype in ("float16", "bfloat16", "bool", ">f8", "complex64", "<U5", "<M8[ns]"):
        array = sample(dtype, (4,), 1)
        await expect_mismatch(transport, lambda array=array: transport.reduce(array, array.copy()), "reduce")
    for root_rank in (-1, transport.size):
        await expect_mismatch(transport, lambda r=root_rank: transport.broadcast(ones, r), str(root_rank))
    good = [np.zeros(4) for _ in range(transport.size)]
    for out in (None, good[:-1], [*good, ones], [np.zeros(5), *good[1:]], [np.zeros(8)[::2], *good[1:]]):
        await expect_mismatch(transport, lambda out=out: transport.gather(ones, out if root else None), "rank 0")
        if out is not None:
            await expect_mismatch(transport, lambda out=out: transport.alltoall(good, out if root else good), "rank 0")
    await expect_mismatch(transport, lambda: transport.alltoall(good[:-1] if root else good, good), "rank 0")
    objects = np.array([1, "a"], object)
    await expect_mismatch(transport, lambda: transport.broadcast(objects if root else ones), "rank 0")
    if transport.size > 1:
        odd = transport.rank == transport.size - 1
        for target in (np.broadcast_to(0.0, 4), np.zeros(8)[::2]):
            await expect_mismatch(transport, lambda target=target: transport.broadcast(target if odd else ones),
                                  f"rank {transport.size - 1}")


async def check_allocate(transport: Transport) -> None:
    """Arrays that the transport allocates are plain aligned arrays, and so are their views, in every call."""
    _, previous = neighbours(transport)
    for shape, dtype in (((), "int64"), ((0, 4), "float32"), ((3, 5), "float64"), ((400, 500), "bfloat16")):
        array = transport.allocate(shape, dtype_of(dtype))
        assert (array.shape, array.dtype) == (shape, dtype_of(dtype))
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert array.ctypes.data % 64 == 0
        array[...] = transport.rank
        _, arrived = await exchange(transport, b"", array)
        assert_same(arrived, np.full(shape, previous, dtype_of(dtype)))
    buffer, out = transport.allocate((300_000,), np.dtype("i8")), transport.allocate((300_000,), np.dtype("i8"))
    assert not np.shares_memory(buffer, out)
    for root in range(transport.size):
        buffer[:], out[:] = np.arange(300_000) + transport.rank, -1
        await transport.reduce(buffer, out if transport.rank == root else None, root)
        total = np.arange(300_000) * transport.size + sum(range(transport.size))
        assert_same(out, total if transport.rank == root else np.full(300_000, -1))
        assert_same(buffer, np.arange(300_000) + transport.rank)
        await transport.reduce(buffer, buffer if transport.rank == root else None, root)
        assert_same(buffer, total if transport.rank == root else np.arange(300_000) + transport.rank)
        await transport.broadcast(buffer, root)
        assert_same(buffer, total)
        part = buffer[1_000:200_000:2] if transport.rank % 2 else buffer[1_000:100_500]
        part[:] = transport.rank
        targets = list(out[:99_500 * transport.size].reshape(transport.size, -1)) if transport.size <= 3 else [
            np.zeros(99_500, np.int64) for _ in range(transport.size)]
        await transport.gather(part, targets if transport.rank == root else None, root)
        if transport.rank == root:
            for rank, target in enumerate(targets):
                assert (target == rank).all()


async def check_arrays_are_read_where_they_lie(transport: Transport) -> None:
    """Where ranks can read each other's memory, a place is all that they are told: no copy, and what changes is seen."""
    for shape, dtype in (((3,), "float32"), ((40, 50), "int64"), ((1 << 19,), "uint8"), ((6,), "bfloat16")):
        memory = transport.allocate((2, *shape), dtype_of(dtype))
        memory[1] = sample(dtype, shape, transport.rank)
        place = transport.place_of(memory[1])
        assert transport.place_of(np.zeros(3)) is None, "ordinary memory"
        assert transport.place_of(memory[:, ::2]) is None, "it has gaps"
        for root in range(transport.size):
            if transport.rank == root:
                await asyncio.gather(*(transport.send(rank, place or b"none") for rank in range(transport.size)))
            given = (await transport.recv(root)).header
            assert (given == b"none") == (place is None), "all ranks can, or none"
            if place is not None:
                array = transport.read_at(given)
                assert_same(array, sample(dtype, shape, root))
                assert not array.flags.writeable
                await transport.barrier()
                memory[1] = sample(dtype, shape, transport.rank + 1)
                await transport.barrier()
                assert_same(array, sample(dtype, shape, root + 1))
                assert_same(transport.read_at(given), sample(dtype, shape, root + 1))
                await transport.barrier()
                memory[1] = sample(dtype, shape, transport.rank)
                await transport.barrier()
    with pytest.raises(CommError):
        transport.read_at(b"nonsense")


async def check_cancelled_receive(transport: Transport) -> None:
    """Cancelling a receive ends it; closing is then allowed."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await transport.recv(transport.rank)
    await transport.close()


async def check_a_reply_that_comes_too_late_is_written_nowhere(transport: Transport) -> None:
    """Who has given up a question can use its array for something else, whatever is answered."""
    following, _ = neighbours(transport)
    node = Node(transport, [Word])
    await node.start()
    target = np.zeros(300_000)
    late = await node.ask(following, Word(), into=target)
    question = await node.recv()
    late.cancel()
    await transport.barrier()  # nobody answers before all have given up
    await node.reply(question, Word(), np.ones(300_000))
    await node.send(question.source, Word())
    await node.recv()  # the reply has come before
    assert not target.any()
    await transport.barrier()
    await node.stop()


async def check_close(transport: Transport) -> None:
    """After `close`, pending and later calls raise Disconnected; it may be called twice."""
    pending = [asyncio.ensure_future(transport.recv()), asyncio.ensure_future(transport.recv(transport.rank))]
    await transport.barrier()  # nobody leaves before all are here
    await transport.close()
    for call in pending:
        with pytest.raises(Disconnected):
            await call
    await transport.close()
    array = np.zeros(3)
    for later in (transport.recv, lambda: transport.recv(0), lambda: transport.send(0, b""),
                  lambda: transport.send(0, b"", array), lambda: transport.broadcast(array),
                  lambda: transport.reduce(array, array.copy()), transport.barrier,
                  lambda: transport.gather(array, [array] * transport.size),
                  lambda: transport.alltoall([array] * transport.size, [array] * transport.size)):
        with pytest.raises(Disconnected):
            await later()


async def check_last_words_of_nodes(transport: Transport) -> None:
    """What a node has sent arrives, though it stops at once."""
    node = Node(transport, [Word])
    await node.start()
    await asyncio.sleep(0)  # it reads by now
    if transport.rank:
        await node.send(0, Word())
    else:
        assert {(await node.recv()).source for _ in range(1, transport.size)} == set(range(1, transport.size))
    await node.stop()


CHECKS: list[Check] = [
    check_ranks, check_every_array_travels, check_every_array_travels_into_a_buffer, check_into_function,
    check_wrong_into_loses_that_message_only, check_into_that_raises, check_headers,
    check_sending_to_oneself_does_not_wait, check_buffers_are_only_borrowed, check_many_messages_keep_their_order,
    check_recv_by_source, check_rounds_do_not_mix, check_big_exchange_in_both_directions, check_payload_sizes,
    check_what_cannot_be_sent, check_broadcast, check_reduce, check_reduce_in_place,
    check_reduce_of_what_the_others_give, check_messages_without_an_array_wait_for_nobody,
    check_reduce_of_mixed_memory_orders, check_gather, check_alltoall, check_barrier_waits_for_all,
    check_messages_and_collectives_side_by_side, check_disagreement_reaches_every_rank,
    check_wrong_buffers_of_one_rank_reach_every_rank, check_allocate, check_arrays_are_read_where_they_lie]
CLOSING_CHECKS: list[Check] = [check_cancelled_receive, check_a_reply_that_comes_too_late_is_written_nowhere,
                               check_last_words_of_nodes, check_close]


def name_of(check: Check) -> str:
    """For pytest's ids."""
    return check.__name__.removeprefix("check_")  # type: ignore[attr-defined]
