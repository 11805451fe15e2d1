"""The memory transport: the contract at several world sizes, and what only it does."""

from __future__ import annotations

import asyncio
import tracemalloc

import numpy as np
import pytest

from node_comm import AddressError, CommError, Disconnected, Transport, memory
from node_comm.node import Node
from tests.node_comm.contract import CHECKS, CLOSING_CHECKS, Check, name_of


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("check", CHECKS + CLOSING_CHECKS, ids=name_of)
def test_contract(check: Check, size: int) -> None:
    memory.run(check, size)


def test_run_returns_results_in_rank_order() -> None:
    async def main(transport: Transport, offset: int) -> int:
        return transport.rank + offset

    assert memory.run(main, 3, 10) == [10, 11, 12]


def test_run_raises_the_first_error_and_says_whose() -> None:
    """S-LIFE-01: the other ranks, which wait for the one that raised, are ended."""
    ended = []

    async def main(transport: Transport) -> None:
        if transport.rank == 1:
            raise ValueError("rank 1 cannot") from KeyError("because")
        try:
            await transport.barrier()
        finally:
            ended.append(transport.rank)

    with pytest.raises(ValueError, match="rank 1 cannot") as caught:
        memory.run(main, 3)
    assert caught.value.__notes__ == ["raised by rank 1 of 3"]
    assert isinstance(caught.value.__cause__, KeyError)
    assert sorted(ended) == [0, 2]


def test_payload_goes_straight_into_the_receivers_buffer() -> None:
    """The transport allocates nothing of the payload's size when the receiver gives `into`."""
    async def main() -> None:
        first, second = memory.world(2)
        source, target = np.ones(1_000_000), np.zeros(1_000_000)
        tracemalloc.start()
        try:
            await asyncio.gather(first.send(1, b"", source), second.recv(0, into=target))
            await asyncio.gather(first.broadcast(source), second.broadcast(target))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert target.all()
        assert peak < 1_000_000

    asyncio.run(main())


def test_send_waits_for_the_receiver() -> None:
    async def main() -> None:
        first, second = memory.world(2)
        sending = asyncio.create_task(first.send(1, b"", np.zeros(1)))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not sending.done()
        await second.recv()
        await sending

    asyncio.run(main())


def test_cancelled_send_is_not_received() -> None:
    """The buffer is the sender's again, so nobody may read it."""
    async def main() -> None:
        first, second = memory.world(2)
        sending = asyncio.create_task(first.send(1, b"cancelled", np.zeros(1)))
        await asyncio.sleep(0)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        await first.send(1, b"next")
        assert (await second.recv()).header == b"next"

    asyncio.run(main())


def test_message_of_a_cancelled_receiver_goes_to_the_next() -> None:
    async def main() -> None:
        first, second = memory.world(2)
        receiving = asyncio.create_task(second.recv())
        await asyncio.sleep(0)
        await first.send(1, b"one")  # handed to `receiving`, which does not run before it is cancelled
        receiving.cancel()
        await first.send(1, b"two")
        await asyncio.gather(receiving, return_exceptions=True)
        assert [(await second.recv()).header, (await second.recv()).header] == [b"one", b"two"]

    asyncio.run(main())


def test_cancelled_collective_breaks_the_world() -> None:
    """Its buffers are the caller's again: the others are told instead of reading them."""
    async def main() -> None:
        first, second = memory.world(2)
        entering = asyncio.create_task(first.broadcast(np.zeros(3)))
        sending = asyncio.create_task(second.send(0, b"not taken yet", np.zeros(3)))
        await asyncio.sleep(0)
        entering.cancel()
        await asyncio.gather(entering, return_exceptions=True)
        for call in (sending, second.broadcast(np.zeros(3))):
            with pytest.raises(Disconnected, match="rank 0 was cancelled in a broadcast"):
                await asyncio.wait_for(call, 10)
        for transport in (first, second):
            await transport.close()

    asyncio.run(main())


def test_peer_that_leaves_releases_everyone_who_waits_for_it() -> None:
    async def main() -> None:
        first, second, third = memory.world(3)
        await third.send(0, b"last words")
        calls = [asyncio.create_task(call) for call in (
            second.recv(2), second.send(2, b"", np.zeros(1)), second.barrier(), third.send(0, b"never", np.zeros(1)))]
        anything = asyncio.create_task(second.recv())
        await asyncio.sleep(0)
        await third.close()
        for call in calls:
            with pytest.raises(Disconnected, match="rank 2"):
                await call
        for call in (first.send(2, b""), first.barrier(), second.recv(2)):
            with pytest.raises(Disconnected, match="rank 2 has left"):
                await call
        assert (await first.recv(2)).header == b"last words"
        with pytest.raises(Disconnected):
            await first.recv(2)
        await first.send(1, b"still works")
        assert (await anything).header == b"still works"
        await first.close()
        with pytest.raises(Disconnected, match="all other ranks"):
            await second.recv()

    asyncio.run(main())


def test_node_that_stops_takes_no_offer_with_it() -> None:
    """Its receive is cancelled with an offer in hand, which can be put back nowhere: the sender is told all the same."""
    async def main() -> None:
        first, second = memory.world(2)
        node = Node(second, [])
        await node.start()
        await asyncio.sleep(0)
        sending = asyncio.create_task(first.send(1, b"", np.zeros(1)))
        stopping = asyncio.create_task(node.stop())
        await stopping
        with pytest.raises(Disconnected, match="rank 1 has left"):
            await asyncio.wait_for(sending, 20)

    asyncio.run(main())


def test_hub_grows_until_it_is_sealed() -> None:
    async def main() -> None:
        hub = memory.open_hub("server")
        server = memory.find_hub("server").join()
        early = hub.join()
        await early.send(0, b"hello")
        assert (await server.recv()).source == 1
        waiting = asyncio.create_task(server.recv())
        await asyncio.sleep(0)
        await early.close()  # others may still come, so the server goes on waiting
        late = memory.find_hub("server").join()
        assert (late.rank, late.size, server.size) == (2, 3, 3)
        await late.send(0, b"me too")
        assert (await waiting).source == 2
        with pytest.raises(CommError, match="seal it before"):
            await late.barrier()
        hub.seal()
        with pytest.raises(CommError, match="the run has started"):
            hub.join()
        await late.close()
        with pytest.raises(Disconnected):
            await server.recv()
        await server.close()
        with pytest.raises(AddressError):
            memory.find_hub("server")

    asyncio.run(main())


def test_names_of_hubs() -> None:
    first, second = memory.open_hub("alpha"), memory.open_hub("beta")
    try:
        with pytest.raises(CommError, match="'alpha' is open already"):
            memory.open_hub("alpha")
        with pytest.raises(AddressError, match=r"'gamma'.*'alpha', 'beta'"):
            memory.find_hub("gamma")
    finally:
        first.close()
        second.close()
    with pytest.raises(AddressError, match="none"):
        memory.find_hub("alpha")
    with pytest.raises(Disconnected):
        first.join()
    memory.open_hub("alpha").close()


def test_floating_point_sums_are_in_rank_order() -> None:
    values = [1e8, 1.0, -1e8]

    async def main(transport: Transport) -> float:
        out = np.zeros(1, np.float32)
        await transport.reduce(np.array([values[transport.rank]], np.float32), out, root=2)
        return float(out[0])

    expected = np.float32(np.float32(1e8) + np.float32(1)) - np.float32(1e8)
    assert memory.run(main, 3)[2] == float(expected)
