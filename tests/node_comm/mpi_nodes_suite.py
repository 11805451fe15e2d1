"""MPI ranks of one machine that behave as if they were on several; `test_mpi_nodes.py` starts it with 4 to 6 ranks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import pytest
from mpi4py import MPI

from node_comm import mpi
from node_comm.launchers import PRETENDED_NODES
from node_comm.mpi import MPITransport
from node_comm.mpi_nodes import Nodes
from node_comm.mpi_shared import SharedMemory
from tests.node_comm.contract import CHECKS, CLOSING_CHECKS, Check, name_of

pytestmark = pytest.mark.mpi(min_size=4)

SIZE = MPI.COMM_WORLD.Get_size()
TWO = [SIZE // 2, SIZE - SIZE // 2]
#: Ranks of each machine.
SPLITS = {4: [TWO, [1, 3]], 6: [[2, 2, 2]]}.get(SIZE, [TWO])

machines = pytest.mark.parametrize("sizes", SPLITS, ids=str)


def on_machines(sizes: Sequence[int], monkeypatch: pytest.MonkeyPatch, main: Callable[[MPITransport], Awaitable[None]],
                max_chunk_bytes: int = mpi.MAX_CHUNK_BYTES) -> None:
    """Run `main` on a world of machines with so many ranks each."""
    monkeypatch.setenv(PRETENDED_NODES, ",".join(map(str, sizes)))

    async def whole() -> None:
        transport = mpi.connect(max_chunk_bytes)
        assert isinstance(transport._shared, Nodes)
        await main(transport)
        await transport.close()

    asyncio.run(whole())


@machines
@pytest.mark.parametrize("check", CHECKS + CLOSING_CHECKS, ids=name_of)
def test_contract(check: Check, sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    on_machines(sizes, monkeypatch, check)


@machines
@pytest.mark.parametrize(("dtype", "max_chunk_bytes"), [("<i8", 1 << 30), ("<i8", 99_991), ("<f4", 49_999)])
def test_large_reductions(dtype: str, max_chunk_bytes: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """To every rank, leader or not, in 3 and in 25 pieces: arrays of the transport's and of others, into any kind of place."""
    async def main(transport: MPITransport) -> None:
        count, kind = 300_001, np.dtype(dtype)
        parts = np.stack([(np.arange(count) * (rank + 1) % 40).astype(kind) for rank in range(transport.size)])
        mine, total = parts[transport.rank], parts.sum(0, kind)
        ours, others, result = transport.allocate((count,), kind), np.empty(count, kind), transport.allocate((count,), kind)
        for root in range(transport.size):
            is_root = transport.rank == root
            for own, out in ((ours, result), (others, result), (ours, others), (ours, ours), (others, others)):
                own[:] = mine
                await transport.reduce(own, out if is_root else None, root)
                if is_root:
                    assert (out == total).all()
                if not is_root or out is not own:
                    assert (own == mine).all()
            await transport.reduce(ours, ours if is_root else None, root, "max")
            if is_root:
                assert (ours == np.maximum(total, parts.max(0))).all()

    on_machines(sizes, monkeypatch, main, max_chunk_bytes)


def test_floating_point_is_combined_on_each_machine_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit: the ranks of a machine in their order, then the two sums, whose order makes no difference."""
    async def main(transport: MPITransport) -> None:
        parts = [np.random.default_rng(rank).standard_normal(500_000) * 10.0 ** (3 * rank) for rank in range(transport.size)]
        of_machines = []
        for first, size in zip((0, TWO[0]), TWO, strict=True):
            total = parts[first]
            for part in parts[first + 1:first + size]:
                total = total + part
            of_machines.append(total)
        in_rank_order = sum(parts[1:], parts[0])
        assert (in_rank_order != of_machines[0] + of_machines[1]).any()  # so that it matters
        out = np.empty(500_000)
        for root in range(transport.size):
            await transport.reduce(parts[transport.rank], out if transport.rank == root else None, root)
            if transport.rank == root:
                assert out.tobytes() == (of_machines[0] + of_machines[1]).tobytes()

    on_machines(TWO, monkeypatch, main)


def test_ranks_that_cannot_read_each_other_count_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second machine's probe fails: its ranks are machines of one, and sums are right."""
    first, rest = TWO
    probe = SharedMemory.probe.__func__  # type: ignore[attr-defined]

    def failing_there(cls: type[SharedMemory], comm: MPI.Intracomm) -> SharedMemory | None:
        found: SharedMemory | None = probe(cls, comm)
        return found if MPI.COMM_WORLD.Get_rank() < first else None

    monkeypatch.setattr(SharedMemory, "probe", classmethod(failing_there))

    async def main(transport: MPITransport) -> None:
        assert isinstance(transport._shared, Nodes)
        assert transport._shared._heads == [0] * first + list(range(first, first + rest))
        for root in range(transport.size):
            values = transport.allocate((300_001,), np.dtype(np.int64))
            values[:] = np.arange(300_001) + transport.rank
            await transport.reduce(values, values if transport.rank == root else None, root)
            total = np.arange(300_001) * transport.size + sum(range(transport.size))
            assert (values == (total if transport.rank == root else np.arange(300_001) + transport.rank)).all()

    on_machines(TWO, monkeypatch, main)


def test_machines_of_one_rank_reduce_by_mpi_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        transport = mpi.connect()
        assert transport._shared is None
        ones = np.ones(300_000)
        await transport.reduce(ones, ones if transport.rank == 0 else None)
        assert (ones == (SIZE if transport.rank == 0 else 1)).all()
        await transport.close()

    monkeypatch.setenv(PRETENDED_NODES, ",".join("1" * SIZE))
    asyncio.run(main())
