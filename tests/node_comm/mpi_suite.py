"""The MPI transport on every rank of a world; `test_mpi.py` starts it under mpirun with 1 to 4 ranks."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

from node_comm import mpi
from node_comm.errors import BufferMismatch, CommError, Disconnected
from node_comm.mpi import MPITransport
from node_comm.mpi_messages import as_comm_error
from tests.node_comm.contract import CHECKS, CLOSING_CHECKS, Check, name_of

pytestmark = pytest.mark.mpi

MIB = 1 << 20


def on_this_rank(main: Callable[[MPITransport], Awaitable[None]], max_chunk_bytes: int = mpi.MAX_CHUNK_BYTES) -> None:
    """Run `main` on a world of its own."""
    async def whole() -> None:
        transport = mpi.connect(max_chunk_bytes)
        await main(transport)
        await transport.close()

    asyncio.run(whole())


@pytest.mark.parametrize("check", CHECKS + CLOSING_CHECKS, ids=name_of)
def test_contract(check: Check) -> None:
    on_this_rank(check)


@pytest.mark.parametrize("check", CHECKS, ids=name_of)
def test_contract_in_odd_chunks(check: Check) -> None:
    """S-COMM-05: chunks that are no multiple of any item's size change nothing."""
    on_this_rank(check, max_chunk_bytes=500_001)


@pytest.mark.parametrize("max_chunk_bytes", [MIB, 1_000_003, 1 << 30])
def test_arrays_beyond_a_chunk(max_chunk_bytes: int) -> None:
    """S-COMM-05: 2,621,441 float32 in chunks arrive byte for byte; sums are right at every border."""
    count = 2_621_441

    async def main(transport: MPITransport) -> None:
        def values(rank: int) -> np.ndarray:
            return np.random.default_rng(rank).integers(0, 2**32, count, np.uint32).view(np.float32)

        following, previous = (transport.rank + 1) % transport.size, (transport.rank - 1) % transport.size
        target = np.zeros(count, np.float32)
        await asyncio.gather(transport.send(following, b"", values(transport.rank)), transport.recv(previous, target))
        assert target.tobytes() == values(previous).tobytes()
        shared = values(transport.rank)
        await transport.broadcast(shared, root=transport.size - 1)
        assert shared.tobytes() == values(transport.size - 1).tobytes()
        ones, out = np.ones(count, np.float32), np.zeros(count, np.float32)
        await transport.reduce(ones, out)
        if transport.rank == 0:
            assert (out == transport.size).all()
        targets = [np.zeros(count, np.float32) for _ in range(transport.size)]
        await transport.gather(values(transport.rank), targets)
        if transport.rank == 0:
            assert all(each.tobytes() == values(rank).tobytes() for rank, each in enumerate(targets))

    on_this_rank(main, max_chunk_bytes)


def test_tiny_chunks() -> None:
    """S-COMM-05: a chunk may be smaller than one item."""
    async def main(transport: MPITransport) -> None:
        buffer, out = np.arange(50.0) + transport.rank, np.zeros(50)
        await transport.reduce(buffer, out, operation="max")
        if transport.rank == 0:
            assert out.tolist() == (np.arange(50.0) + transport.size - 1).tolist()
        await transport.broadcast(buffer)
        assert buffer.tolist() == np.arange(50.0).tolist()

    on_this_rank(main, max_chunk_bytes=3)


def test_the_smallest_chunk_size_of_all_ranks_counts() -> None:
    """Ranks that were given different chunk sizes still understand each other."""
    async def main(transport: MPITransport) -> None:
        assert transport.max_chunk_bytes == 1000
        following, previous = (transport.rank + 1) % transport.size, (transport.rank - 1) % transport.size
        _, received = await asyncio.gather(transport.send(following, b"", np.full(999, transport.rank)),
                                           transport.recv(previous))
        assert received.buffer is not None
        assert (received.buffer == previous).all()

    on_this_rank(main, max_chunk_bytes=1000 + 77 * MPI.COMM_WORLD.Get_rank())


@pytest.mark.parametrize("wrong", [0, -1, 1 << 31])
def test_impossible_chunk_sizes_are_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match=f"2147483647, not {wrong}"):
        mpi.connect(wrong)


@pytest.mark.mpi(min_size=3)
def test_receives_are_served_in_the_order_of_their_calls() -> None:
    """A receive from one source, called before one from any, gets that source's message."""
    async def main(transport: MPITransport) -> None:
        if transport.rank == 0:
            for _ in range(200):
                first = asyncio.ensure_future(transport.recv(1))
                second = asyncio.ensure_future(transport.recv())
                await transport.send(1, b"go")
                assert (await first).source == 1
                await transport.send(2, b"go")
                assert (await second).source == 2
        elif transport.rank < 3:
            for _ in range(200):
                await transport.recv(0)
                await transport.send(0, b"here")
        await transport.barrier()

    on_this_rank(main)


@pytest.mark.mpi(min_size=2)
def test_a_message_wakes_its_receiver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks of a machine need no naps: with some of minutes, which begin a tenth of a second after the last ring, none is late."""
    monkeypatch.setattr("node_comm.mpi_thread.NAP_SHARE", 1000)
    monkeypatch.setattr("node_comm.mpi_thread.LONGEST_NAP_BY_BELL", 300)

    async def main(transport: MPITransport) -> None:
        following, previous = (transport.rank + 1) % transport.size, (transport.rank - 1) % transport.size
        async with asyncio.timeout(60):
            for turn in range(4):
                if transport.rank == turn % transport.size:
                    await asyncio.sleep(0.5)  # the others sleep by now
                    await transport.send(following, b"go round")
                    await transport.recv(previous)
                else:
                    await transport.recv(previous)
                    await transport.send(following, b"go round")

    on_this_rank(main)


def test_a_header_longer_than_a_chunk_is_refused() -> None:
    async def main(transport: MPITransport) -> None:
        with pytest.raises(CommError, match="send large data as the buffer"):
            await transport.send(0, bytes(2 * MIB))

    on_this_rank(main, MIB)


def test_a_cancelled_call_ends_the_transport() -> None:
    """What was cancelled in mid-call may have taken a message with it: later calls say so instead of misbehaving."""
    async def main(transport: MPITransport) -> None:
        waiting, pending = (asyncio.ensure_future(transport.recv()) for _ in range(2))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        for call in (pending, transport.barrier(), transport.send(0, b"")):
            with pytest.raises(Disconnected, match="cancelled"):
                await call

    on_this_rank(main)


def test_many_disagreements_leave_the_world_usable() -> None:
    """S-COMM-08: long descriptions of many ranks are told apart and named."""
    async def main(transport: MPITransport) -> None:
        odd = transport.rank == transport.size - 1
        for _ in range(20):
            array = np.zeros((1,) * 30 + (2 + odd,))
            if transport.size > 1:
                with pytest.raises(BufferMismatch, match=f"rank 0 .*1, 2\\).*rank {transport.size - 1} .*1, 3\\)"):
                    await transport.reduce(array, array)
            await transport.barrier()

    on_this_rank(main)


def test_an_all_to_all_of_two_dtypes_is_refused() -> None:
    """S-COMM-02: also where all ranks agree about the two."""
    async def main(transport: MPITransport) -> None:
        if transport.size > 1:
            mixed = [np.zeros(2, np.float32 if dest else np.float64) for dest in range(transport.size)]
            out = [np.zeros(2, np.float32 if transport.rank else np.float64) for _ in range(transport.size)]
            with pytest.raises(BufferMismatch, match="alltoall of float64"):
                await transport.alltoall(mixed, out)
        await transport.barrier()

    on_this_rank(main)


def test_mpi_errors_keep_their_text() -> None:
    truncated = as_comm_error(MPI.Exception(MPI.ERR_TRUNCATE))
    assert type(truncated) is CommError
    assert "truncate" in str(truncated)
    assert isinstance(truncated.__cause__, MPI.Exception)
    for lost in (MPI.ERR_PROC_FAILED, MPI.ERR_REVOKED):
        assert isinstance(as_comm_error(MPI.Exception(lost)), Disconnected)
    other = ZeroDivisionError()
    assert as_comm_error(other) is other


def test_what_is_known_about_the_world() -> None:
    async def main(transport: MPITransport) -> None:
        assert (transport.rank, transport.size) == (MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size())
        assert "MPI" in transport.library_version
        assert "\0" not in transport.library_version
        assert transport.thread_level in ("serialized", "multiple")
        assert transport.processor == MPI.Get_processor_name()

    on_this_rank(main)


def test_shared_folder_comes_from_rank_0(mpi_tmp_path: Path) -> None:
    """S-PKG-03: all ranks see one folder."""
    (mpi_tmp_path / str(MPI.COMM_WORLD.Get_rank())).touch()
    MPI.COMM_WORLD.Barrier()
    assert len(list(mpi_tmp_path.iterdir())) == MPI.COMM_WORLD.Get_size()
    MPI.COMM_WORLD.Barrier()


@pytest.mark.parametrize("share_memory", [True, False])
@pytest.mark.parametrize("dtype", ["<i8", "<f4", "|u1"])
def test_large_reductions(share_memory: bool, dtype: str) -> None:
    """In memory that is shared, and through MPI: arrays of the transport's own and of others, into any kind of place."""
    async def main() -> None:
        transport = mpi.connect(share_memory=share_memory)
        count, kind = 700_001, np.dtype(dtype)

        def values(rank: int) -> np.ndarray:
            return (np.arange(count) * (rank + 1) % 50).astype(kind)

        parts = [values(rank) for rank in range(transport.size)]
        for root in range(transport.size):
            is_root = transport.rank == root
            for operation, expected in (("sum", sum(parts[1:], parts[0])), ("max", np.maximum.reduce(parts))):
                for own in (np.empty(count, kind), transport.allocate((count,), kind)):
                    for out in (transport.allocate((count,), kind), np.empty(count, kind), own):
                        own[:] = values(transport.rank)
                        await transport.reduce(own, out if is_root else None, root, operation)
                        if is_root:
                            assert (out == expected).all()
                        if not is_root or out is not own:
                            assert (own == values(transport.rank)).all()
        await transport.close()
        own[:] = 1  # valid after the transport as well

    asyncio.run(main())


def test_shared_memory_is_given_back() -> None:
    """Counted: a hundred reductions of arrays that come and go leave no more mapped, and no more open files, than ten."""
    async def main(transport: MPITransport) -> None:
        def held() -> tuple[int, int]:
            maps = Path("/proc/self/maps").read_text().count("node_comm rank")
            return maps, sum("node_comm rank" in os.readlink(entry) for entry in Path("/proc/self/fd").iterdir()
                             if entry.is_symlink())

        counts = []
        for number in range(100):
            array = transport.allocate((200_000 + 10_000 * (number % 7),), np.dtype(np.int64))
            array[:] = transport.rank
            await transport.reduce(array, array if transport.rank == 0 else None)
            if transport.rank == 0:
                assert array[-1] == sum(range(transport.size))
            del array
            counts.append(held())
        assert max(counts[20:]) <= max(counts[5:20])
        await transport.barrier()

    on_this_rank(main)
