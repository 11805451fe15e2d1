"""The star over gRPC: messages, who comes in, what happens to who is lost; in one event loop, over loopback."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from federation.certs import Authority
from node_comm import Disconnected, Unavailable
from node_comm.arrays import Description
from node_comm.grpc_channel import METHOD, SERVICE, VERSION, Certificates
from node_comm.grpc_client import GrpcClient, Refused, Way, connect
from node_comm.grpc_server import Door, GrpcServer
from node_comm.link import WINDOW, Link
from node_comm.node import Node
from node_comm.wire import PIECE_BYTES, Adding, Outgoing, Sink
from tests.node_comm.contract import Word
from tests.system.proxy import Proxy


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.asynccontextmanager
async def world(count: int, **door: object) -> AsyncIterator[tuple[GrpcServer, list[GrpcClient]]]:
    """A server and `count` clients."""
    address = f"127.0.0.1:{free_port()}"
    server = await GrpcServer.open(Door(address=address, **door))
    clients = [await connect(Way(address=address, name=f"client_{index}", patience=5)) for index in range(count)]
    while len(server.ranks) < count:  # a client knows its rank a little before the server counts it in
        await asyncio.sleep(0.001)
    try:
        yield server, clients
    finally:
        for client in clients:
            await client.close()
        await server.close()


def run(test):
    """A coroutine test, in a loop of its own."""
    asyncio.run(asyncio.wait_for(test, 60))


def test_messages_in_both_directions():
    """S-COMM-01, S-COMM-04: in order, whole; arrays in any memory order, of any dtype."""
    async def test() -> None:
        async with world(2) as (server, clients):
            assert [client.rank for client in clients] == [1, 2]
            assert (server.size, server.ranks, server.name(2)) == (3, [1, 2], "client_1")
            big = np.asfortranarray(np.random.default_rng(1).normal(size=(700, 900)))
            for client in clients:
                for number in range(20):
                    await client.send(0, b"%d" % number)
                await client.send(0, b"big", big)
            for rank in (1, 2):
                assert [(await server.recv(rank)).header for _ in range(20)] == [b"%d" % number for number in range(20)]
                assert ((await server.recv(rank)).buffer == big).all()
            await server.send(1, b"", np.float16(3))
            received = await clients[0].recv()
            assert (received.source, received.buffer.dtype, received.buffer.shape) == (0, np.float16, ())
            await server.send(0, b"to itself")
            assert (await server.recv()).header == b"to itself"

    run(test())


def test_large_messages_face_each_other():
    """S-COMM-06 and S-COMM-09: 50 MB both ways at once, frames below any limit."""
    async def test() -> None:
        async with world(2) as (server, clients):
            array = np.random.default_rng(0).integers(0, 255, 50_000_000).astype(np.uint8)
            got = await asyncio.gather(
                server.send_all([1, 2], b"down", array), *(client.send(0, b"up", array) for client in clients),
                *(client.recv() for client in clients), server.recv(), server.recv())
            assert got[0] == {}
            assert all((received.buffer == array).all() for received in got[3:])

    run(test())


def test_what_was_written_before_a_client_left_arrives(monkeypatch):
    """However long the server takes to read it (found by the benchmark: a second was not enough)."""
    async def test() -> None:
        async with world(1) as (server, [client]):
            arrived = server._arrived

            async def slowly(link, frame):
                await asyncio.sleep(0.15)
                await arrived(link, frame)

            monkeypatch.setattr(server, "_arrived", slowly)
            array = np.arange(10 * PIECE_BYTES, dtype=np.uint8)
            sending = asyncio.ensure_future(client.send(0, b"last words", array))
            received = asyncio.ensure_future(server.recv())
            await sending
            await client.close()
            assert ((await received).buffer == array).all()

    run(test())


def test_a_farewell_that_is_not_waited_for_ends_the_connection_all_the_same():
    """The server need not find out by the client's silence."""
    async def test() -> None:
        async with world(1, resume_seconds=0.0) as (server, [client]):
            client._server.detach()  # nothing that is written goes any more
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.close(), 0.05)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(20):
                    while server.ranks:
                        await asyncio.sleep(0.001)
            assert (server.ranks, client._reading.done()) == ([], True)

    run(test())


def test_sums_are_added_up_as_they_come():
    async def test() -> None:
        async with world(3) as (server, clients):
            total = np.zeros(300_000, np.int64)
            server.sink = lambda peer, header, description: Adding(total)
            await asyncio.gather(*(client.send(0, b"", np.full(300_000, client.rank)) for client in clients),
                                 *(server.recv() for _ in clients))
            assert (total == 6).all()

    run(test())


@pytest.mark.parametrize("adds", [False, True], ids=["an array", "a sum"])
def test_a_reply_that_is_given_up_half_way_is_written_no_further(monkeypatch, adds):
    """Who cancels the question, or is told that it timed out, can use its array for something else at once."""
    async def test() -> None:
        async with world(1) as (server, [client]):
            target, begun, goes_on, arrived = np.zeros(3 * PIECE_BYTES, np.uint8), asyncio.Event(), asyncio.Event(), server._arrived

            async def stops_half_way(link, frame):
                await arrived(link, frame)
                if target.any():
                    begun.set()
                    await goes_on.wait()

            monkeypatch.setattr(server, "_arrived", stops_half_way)
            asks, answers = Node(server, [Word]), Node(client, [Word])
            await asks.start()
            await answers.start()
            reply = await asks.ask(1, Word(), into=Adding(target) if adds else target)
            answering = asyncio.ensure_future(answers.reply(await answers.recv(), Word(), np.ones(3 * PIECE_BYTES, np.uint8)))
            await begun.wait()
            reply.cancel()
            assert target.sum() == PIECE_BYTES
            target[:] = 0
            goes_on.set()
            await answering
            await answers.send(0, Word())
            assert (await asks.recv()).source == 1
            assert not target.any()
            await answers.stop()
            await asks.stop()

    run(test())


def test_a_message_that_is_cut_off_is_the_loss_of_its_receiver(monkeypatch):
    """Whatever went wrong, and at the server's own end, too: the client learns of it, and does not wait for the rest."""
    async def test() -> None:
        async with world(1) as (server, [client]):
            monkeypatch.setattr("node_comm.wire.zlib.crc32", lambda data: 1 / 0)
            with pytest.raises(Disconnected, match="division by zero"):
                await server.send(1, b"", np.zeros(10))
            monkeypatch.undo()
            with pytest.raises(Disconnected, match="cut off"):
                await client.recv()
            assert server.ranks == []

    run(test())


def test_a_message_that_waits_for_its_turn_costs_no_connection(monkeypatch):
    """Cancelled behind a long one that is on its way: nothing of it has gone, and the long one goes on."""
    async def test() -> None:
        async with world(1) as (server, [client]):
            reads, arrived = asyncio.Event(), server._arrived

            async def held_back(link, frame):
                await reads.wait()
                await arrived(link, frame)

            monkeypatch.setattr(server, "_arrived", held_back)
            long = asyncio.ensure_future(client.send(0, b"long", np.zeros(2 * WINDOW * PIECE_BYTES, np.uint8)))
            short = asyncio.ensure_future(client.send(0, b"short"))
            while len(client._server._kept) < WINDOW:
                await asyncio.sleep(0.001)
            short.cancel()
            await asyncio.gather(short, return_exceptions=True)
            reads.set()
            await long
            await client.send(0, b"then")
            assert [(await server.recv()).header for _ in range(2)] == [b"long", b"then"]

    run(test())


def test_a_client_that_hangs_up_while_it_is_written_to():
    """gRPC cancels the writer then; that must not look as if somebody had cancelled the server's task."""
    async def test() -> None:
        async with world(2, resume_seconds=0) as (server, clients):
            asyncio.get_running_loop().call_later(0.05, clients[0]._stream.call.cancel)
            weights = np.zeros(200_000_000, np.uint8)
            failed, _ = await asyncio.gather(server.send_all([1, 2], b"", weights), clients[1].recv())
            assert list(failed) == [1]

    run(test())


@pytest.mark.parametrize("zip_level", [None, 1])
def test_a_transfer_that_is_cut_goes_on_where_it_was(zip_level):
    """S-LIFE-10: cut four times, in both directions; every message arrives, once, in order, and is not sent again as a whole."""
    async def test() -> None:
        server = await GrpcServer.open(Door(address=f"127.0.0.1:{free_port()}", zip_level=zip_level))
        lost: list[int] = []
        server.on_lost = lambda rank, reason: lost.append(rank)
        array = np.random.default_rng(0).integers(0, 255, 24 * PIECE_BYTES, np.uint8)
        # The kernel and gRPC hold some megabytes on the way, hence the slow line: what is lost in them is sent again.
        cuts = (9_000_000, 14_000_000, 30_000_000, 35_000_000)
        with Proxy(server._door.address, bytes_per_second=200_000_000, cuts=cuts) as proxy:
            client = await connect(Way(address=proxy.address, name="client_0", zip_level=zip_level))
            while not server.ranks:
                await asyncio.sleep(0.001)
            got = await asyncio.gather(server.send(1, b"down", array), client.send(0, b"up", array), server.send(1, b"then"),
                                       client.recv(), server.recv(), client.recv())
            assert [each.header for each in got[3:]] == [b"down", b"up", b"then"]
            assert (got[3].buffer == array).all()
            assert (got[4].buffer == array).all()
            assert (proxy.cut, lost, client.rank, server.ranks) == (4, [], 1, [1])
            assert proxy.passed < 1.9 * 2 * array.nbytes
            await client.close()
        await server.close()

    run(test())


def test_a_stream_that_takes_nothing_holds_up_no_other():
    """As where the client's end of a connection is cut, and the server does not know yet: its write waits for ten seconds."""
    async def test() -> None:
        link = Link(1, lambda header, description: None, 0)
        written: list[bytes] = []

        async def hangs(frame: bytes) -> None:
            await asyncio.Event().wait()

        async def takes(frame: bytes) -> None:
            written.append(frame)

        link.attach(hangs, 0)
        await link.send(Outgoing(b"down"))
        await turns()
        link.attach(takes, 0)
        await turns()
        assert written == list(Outgoing(b"down"))
        link.end("")

    run(test())


def test_whose_connection_is_cut_has_some_seconds():
    """It is lost then, with what was on its way; a client of its name that begins anew before takes its place at once."""
    async def test() -> None:
        async with world(2, resume_seconds=0.5) as (server, clients):
            lost: list[tuple[int, str]] = []
            server.on_lost = lambda rank, reason: lost.append((rank, reason))
            for client in clients:
                client._leaving = True  # so that it does not come back
                client._stream.call.cancel()
            await asyncio.sleep(0.1)
            assert lost == []
            again = await connect(Way(address=server._door.address, name="client_1"))
            assert [rank for rank, _ in lost] == [2]
            await asyncio.sleep(0.6)
            assert lost[1:] == [(1, "its connection was lost")]
            await again.send(0, b"anew")
            assert (await server.recv()).source == 3
            await again.close()

    run(test())


@pytest.mark.parametrize(("session", "name", "received"), [("guess", "client_0", 0), (None, "client_1", 0), (None, "client_0", 7)],
                         ids=["another session", "another name", "frames that were never sent"])
def test_nobody_goes_on_for_somebody_else(session, name, received):
    """S-SEC-03: with the session's secret and the name of before, and not ahead of what was sent."""
    from node_comm.grpc_client import _open

    async def test() -> None:
        async with world(1) as (server, [client]):
            with pytest.raises((Refused, grpc.RpcError)) as caught:
                stream = await _open(Way(address=server._door.address, name=name), session or client._stream.session, received)
                await stream.call.read()
            said = caught.value.details() if isinstance(caught.value, grpc.RpcError) else str(caught.value)
            assert ("7 frames are confirmed; 0 to 0 can be" if received else "session is over") in said
            if not received:
                await client.send(0, b"undisturbed")
                assert (await server.recv()).header == b"undisturbed"

    run(test())


def test_a_stream_that_ends_before_its_beginning_is_seen_is_not_tried_again():
    """gRPC may drop the metadata of a call whose end comes right behind them."""
    async def test() -> None:
        calls = []

        async def ends(frames, context):
            calls.append(1)
            await context.abort(grpc.StatusCode.ABORTED, "protocol: enough")

        server, handler = grpc.aio.server(), grpc.stream_stream_rpc_method_handler(ends)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            with pytest.raises(Refused, match="protocol: enough"):
                await connect(Way(address=f"127.0.0.1:{port}", name="client_0", patience=5))
        finally:
            await server.stop(None)
        assert calls == [1]

    run(test())


def test_what_is_kept_for_another_try_is_bounded():
    """A link keeps the frames of its window, whatever is sent while there is no stream."""
    async def test() -> None:
        async with world(1) as (server, [client]):
            await client.send(0, b"first")
            await server.recv()
            link = server._links[1]
            link.detach()
            sending = [asyncio.ensure_future(server.send(1, b"x" * 10)) for _ in range(100)]
            await asyncio.sleep(0.05)
            assert len(link._kept) == WINDOW
            assert sum(each.done() for each in sending) <= WINDOW
            server.drop(1, "enough")
            ended = await asyncio.gather(*sending, return_exceptions=True)
            assert {type(each) for each in ended if each is not None} == {Disconnected}

    run(test())


@pytest.mark.parametrize("how", ["close", "cancel"])
def test_a_client_that_is_lost_is_lost_alone(how):
    """S-LIFE-10: in the middle of a message, too; `on_lost` says so, and the others do not notice."""
    async def test() -> None:
        async with world(3, resume_seconds=0) as (server, clients):
            lost: list[tuple[int, str]] = []
            server.on_lost = lambda rank, reason: lost.append((rank, reason))
            if how == "close":
                await clients[0].close()
            else:
                outgoing = Outgoing(b"half of it", np.zeros(3 * PIECE_BYTES, np.uint8))
                await clients[0]._stream.call.write(outgoing[0])
                await clients[0]._stream.call.write(outgoing[1])
                clients[0]._stream.call.cancel()
            while not lost:
                await asyncio.sleep(0.01)
            assert lost[0][0] == 1
            assert server.ranks == [2, 3]
            with pytest.raises(Disconnected, match="rank 1"):
                await server.send(1, b"x")
            assert list(await server.send_all([1, 2, 3], b"to all")) == [1]
            assert (await clients[1].recv()).header == b"to all"

    run(test())


def test_a_client_that_is_dropped_is_told_why_and_may_come_back():
    async def test() -> None:
        async with world(1) as (server, [client]):
            server.drop(1, "no more of this")
            with pytest.raises(Disconnected, match="no more of this"):
                await client.recv()
            again = await client.recover()
            await again.send(0, b"here I am")
            assert (await server.recv()).header == b"here I am"
            assert (again.rank, server.ranks) == (2, [2])
            await again.close()

    run(test())


def test_who_breaks_the_protocol_is_let_go(caplog):
    """S-SEC-01, S-SEC-02: garbage, and a pickle, end their own stream; the log names who and why."""
    async def test() -> None:
        async with world(3) as (server, clients):
            await clients[0]._stream.call.write(b"\x80\x04\x95 a pickle")
            await clients[1]._stream.call.write(Outgoing(b"", np.zeros(10))[1])
            for client in clients[:2]:
                with pytest.raises(Disconnected, match="protocol"):
                    await client.recv()
            assert server.ranks == [3]
            await clients[2].send(0, b"all well")
            assert (await server.recv()).header == b"all well"

    run(test())
    assert "client_0 (rank 1) breaks the protocol: a frame of unknown kind 128" in caplog.text
    assert "client_1 (rank 2) breaks the protocol: a piece of 80 bytes where 0 are missing" in caplog.text


@pytest.mark.parametrize("end", ["client", "server"])
def test_an_end_that_cannot_take_what_comes_is_lost(caplog, end):
    """Not the protocol is broken, but this end has no memory for it, say: nobody waits for ever, and the log has the traceback."""
    def no_memory(peer: int, header: bytes, description: Description) -> Sink:
        raise MemoryError("no room")

    async def test() -> None:
        async with world(2) as (server, clients):
            if end == "client":
                clients[0].sink = no_memory
                await server.send(1, b"", np.zeros(10))
            else:
                server.sink = no_memory
                await clients[0].send(0, b"", np.zeros(10))
            with pytest.raises(Disconnected, match=f"{end} cannot go on: MemoryError"):
                await clients[0].recv()
            with pytest.raises(Disconnected):
                await clients[0].send(0, b"x")
            await clients[1].send(0, b"undisturbed")
            assert (await server.recv()).header == b"undisturbed"
            assert end == "client" or server.ranks == [2]

    run(test())
    assert "Traceback" in caplog.text


def test_recv_ends_whatever_becomes_of_the_word_about_a_loss():
    """What `on_lost` raises is no reason to wait for ever."""
    def fail(rank: int, reason: str) -> None:
        raise ValueError(reason)

    async def test() -> None:
        async with world(1) as (server, [client]):
            client.on_lost = fail
            server.drop(1, "no more of this")
            with pytest.raises(Disconnected, match="no more of this"):
                await client.recv()

    run(test())


def test_a_peer_that_is_not_listened_to_is_held_back():
    """Messages that nobody takes do not fill the memory: a client's 65th small one waits."""
    async def test() -> None:
        async with world(1) as (server, [client]):
            writing = asyncio.ensure_future(send_many(client, 4000))
            await asyncio.sleep(1.0)
            waiting = sum(1 for _ in server._mailbox._items)
            assert waiting == 64
            for number in range(4000):
                assert (await server.recv()).header[:4] == b"%04d" % number
            await writing

    async def send_many(client: GrpcClient, count: int) -> None:
        for number in range(count):
            await client.send(0, b"%04d" % number + b"x" * 1000)

    run(test())


def test_a_slow_client_is_dropped_by_the_deadline(monkeypatch):
    """It stalls: reads nothing. The others have their weights, and memory stays (gRPC's windows alone)."""
    async def test() -> None:
        async with world(1) as (server, [client]):
            way = Way(address=server._door.address, name="stalls", patience=5)
            stalled = await connect(way)
            while len(server.ranks) < 2:
                await asyncio.sleep(0.001)
            monkeypatch.setattr(stalled, "_arrived", lambda link, frame: asyncio.sleep(60))
            weights = np.zeros(60_000_000, np.uint8)
            failed, _ = await asyncio.gather(server.send_all([1, 2], b"", weights, timeout=3.0), client.recv())
            assert list(failed) == [2]
            assert "longer than 3 s" in failed[2]
            stalled._reading.cancel()
            await stalled.close()

    run(test())


# Who comes in


@pytest.mark.parametrize(("door", "way", "reason"), [
    (dict(token="secret"), dict(), "shows no token"),
    (dict(token="secret"), dict(token="guess"), "token is wrong"),
    (dict(tokens={"client_0": "a", "client_1": "b"}), dict(token="b"), "token is wrong"),
    (dict(tokens={"client_1": "b"}), dict(token=""), "shows no token"),
    (dict(names=["client_1"]), dict(), "not on the list"),
    (dict(), dict(name=""), "gives no name"),
    (dict(), dict(name="x" * 300), "gives no name"),
])
def test_refusals(caplog, door, way, reason):
    """S-SEC-03: at once, with the reason at both ends."""
    async def test() -> None:
        address = f"127.0.0.1:{free_port()}"
        server = await GrpcServer.open(Door(address=address, **door))
        with pytest.raises(Refused, match=reason):
            await connect(Way(**{"address": address, "name": "client_0", "patience": 30.0} | way))
        assert server.ranks == []
        await server.close()

    run(test())
    assert reason in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(("door", "way"), [
    (dict(token="secret"), dict(token="secret")),
    (dict(token="secret", tokens={"client_0": "own"}), dict(token="own")),
    (dict(names=["client_0"]), dict()),
])
def test_admissions(door, way):
    async def test() -> None:
        address = f"127.0.0.1:{free_port()}"
        server = await GrpcServer.open(Door(address=address, **door))
        client = await connect(Way(**{"address": address, "name": "client_0"} | way))
        await client.send(0, b"here")
        assert (await server.recv()).source == 1
        await client.close()
        await server.close()

    run(test())


def test_a_name_is_taken_once():
    """S-LIFE-09: refused while the first one lives; when that has gone, the second takes its place."""
    async def test() -> None:
        async with world(1) as (server, [client]):
            way = Way(address=server._door.address, name="client_0", patience=0.5)
            with pytest.raises(Unavailable, match="connected already"):
                await connect(way)
            await client.close()
            second = await connect(Way(address=way.address, name="client_0", patience=10))
            await second.send(0, b"here")
            assert (await server.recv()).source == second.rank
            assert server.ranks == [second.rank]
            await second.close()

    run(test())


def test_who_takes_the_place_of_a_silent_client_finds_it_gone(monkeypatch):
    """S-LIFE-09: not only when that, which does not hear any more, has been told: it says hello before."""
    monkeypatch.setattr("node_comm.grpc_server.REPLACE_AFTER", 0.0)

    async def test() -> None:
        async with world(1) as (server, _):
            lost: list[int] = []
            server.on_lost = lambda rank, reason: lost.append(rank)
            link = server._links[1]
            link.detach()  # what is written from now on is not taken
            await server.send(1, b"not taken")
            again = await connect(Way(address=server._door.address, name="client_0"))
            assert lost == [1]
            await asyncio.wait_for(link.flush(), 20)
            await again.close()

    run(test())


class Context:
    """What gRPC gives to who serves a stream; the first answer waits for `gate`."""

    def __init__(self, gate: asyncio.Event | None = None) -> None:
        self.gate = gate
        self.written: list[bytes] = []

    async def send_initial_metadata(self, metadata: object) -> None:
        if self.gate is not None:
            await self.gate.wait()

    async def write(self, frame: bytes) -> None:
        self.written.append(frame)


async def turns() -> None:
    """Let the loop do what there is to do."""
    for _ in range(30):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def streams():
    """A server, a client of it with one stream, the tasks that serve its streams, and what makes one more."""
    server = GrpcServer(Door(address=""))
    guest = server._newcomer("client_0")
    tasks: list[asyncio.Task] = []

    async def silence() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    def serve(context: Context) -> None:
        tasks.append(asyncio.create_task(server._stream(guest, silence(), context, "0")))

    serve(Context())
    await turns()
    try:
        yield server, guest, tasks, serve
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        server._end(guest, "")


def test_two_streams_that_come_at_once_to_go_on():
    """The later one counts, also where the earlier one is answered after it: the client has given that up."""
    async def test() -> None:
        async with streams() as (server, _, tasks, serve):
            given_up, last = Context(asyncio.Event()), Context()
            serve(given_up)
            serve(last)
            await turns()
            given_up.gate.set()
            await turns()
            await server.send(1, b"for the last one")
            await turns()
            assert (len(given_up.written), len(last.written)) == (0, 1)
            assert [task.done() for task in tasks] == [True, True, False]

    run(test())


def test_a_stream_that_comes_in_the_last_moment():
    """The time for it does not run out while it waits for the end of the one before."""
    async def test() -> None:
        async with streams() as (server, guest, tasks, serve):
            tasks[0].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            guest.expiry.cancel()
            guest.expiry = asyncio.get_running_loop().call_later(0, server._end, guest, "its connection was lost")
            context = Context()
            serve(context)
            await turns()
            await server.send(1, b"still there")
            await turns()
            assert len(context.written) == 1

    run(test())


def test_who_is_let_go_and_hangs_up_is_gone_at_once():
    """It is not waited for: what it has been told, or would have been, is that it need not come back."""
    async def test() -> None:
        async with streams() as (server, guest, tasks, _):
            guest.link.detach()  # nothing that is written goes any more
            await server.send(1, b"not taken")
            server.drop(1, "it has failed")
            await turns()
            tasks[0].cancel()  # as gRPC does
            await turns()
            assert server.ranks == []

    run(test())


def test_another_version_is_refused(monkeypatch):
    async def test() -> None:
        async with world(0) as (server, _):
            monkeypatch.setattr("node_comm.grpc_client.VERSION", "0")
            with pytest.raises(Refused, match=f"protocol version 0 meets {VERSION}"):
                await connect(Way(address=server._door.address, name="old"))

    run(test())


def test_a_port_that_is_taken():
    """S-COMM-10: a second server, and any other program; the first is not disturbed."""
    async def test() -> None:
        async with world(1) as (server, [client]):
            with pytest.raises(Unavailable, match=f"cannot listen on {server._door.address}"):
                await GrpcServer.open(server._door)
            await client.send(0, b"still here")
            assert (await server.recv()).header == b"still here"
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            with pytest.raises(Unavailable, match="in use"):
                await GrpcServer.open(Door(address=f"127.0.0.1:{other.getsockname()[1]}"))

    run(test())


def test_nobody_listens():
    """S-LIFE-10: within its patience, and it says where it tried."""
    async def test() -> None:
        with pytest.raises(Unavailable, match=r"no connection to 127.0.0.1:9 within 1 s"):
            await connect(Way(address="127.0.0.1:9", name="lonely", patience=1))

    run(test())


def test_proxies_of_the_web_are_not_asked(monkeypatch):
    """S-COMM-11: http_proxy leads nowhere."""
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)

    async def test() -> None:
        async with world(1) as (server, [client]):
            await client.send(0, b"direct")
            assert (await server.recv()).header == b"direct"

    run(test())


def test_pings_suit_both_ends():
    """S-COMM-12: a client never pings more often than the server allows; both come from one place."""
    from node_comm.grpc_channel import CLIENT_OPTIONS, SERVER_OPTIONS

    client, server = dict(CLIENT_OPTIONS), dict(SERVER_OPTIONS)
    assert client["grpc.keepalive_time_ms"] >= 2 * server["grpc.http2.min_recv_ping_interval_without_data_ms"]
    assert client["grpc.http2.max_pings_without_data"] == 0
    assert server["grpc.http2.max_ping_strikes"] == 0  # found by eight clients of 100 MB each: "Too many pings"


# Certificates


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Path:
    """Of one authority: server, client_0, an expired client_0; and of another: client_0."""
    folder = tmp_path_factory.mktemp("certificates")
    authority, other = Authority(), Authority("somebody else")
    from cryptography.hazmat.primitives import serialization

    for name, who in (("ca", authority), ("other_ca", other)):
        (folder / f"{name}.pem").write_bytes(who.certificate.public_bytes(serialization.Encoding.PEM))
    for name, (certificate, key) in {
            "server": authority.sign("localhost", ["localhost"]), "client_0": authority.sign("client_0"),
            "client_1": authority.sign("client_1"), "expired": authority.sign("client_0", days=-1),
            "stranger": other.sign("client_0"), "expired_server": authority.sign("localhost", ["localhost"], days=-1)}.items():
        (folder / f"{name}.pem").write_bytes(certificate)
        (folder / f"{name}.key").write_bytes(key)
    return folder


def pem(folder: Path, ca: str | None, name: str | None) -> Certificates:
    return Certificates(ca and f"{folder}/{ca}.pem", name and f"{folder}/{name}.pem", name and f"{folder}/{name}.key")


async def try_tls(folder: Path, server: tuple, client: tuple, host: str = "localhost", name: str = "client_0") -> None:
    port = free_port()
    listening = await GrpcServer.open(Door(address=f"localhost:{port}", certificates=pem(folder, *server)))
    try:
        there = await connect(Way(address=f"{host}:{port}", name=name, certificates=pem(folder, *client), patience=4))
        await there.send(0, b"hello")
        assert (await listening.recv()).header == b"hello"
        await there.close()
    finally:
        await listening.close()


@pytest.mark.parametrize(("server", "client"), [((None, "server"), ("ca", None)), (("ca", "server"), ("ca", "client_0"))],
                         ids=["server's alone", "both sides"])
def test_tls(certificates, server, client):
    run(try_tls(certificates, server, client))


@pytest.mark.parametrize(("server", "client", "more", "words"), [
    ((None, "server"), ("other_ca", None), {}, "TLS: .*CERTIFICATE_VERIFY_FAILED"),
    ((None, "server"), ("ca", None), {"host": "127.0.0.1"}, "TLS: .*(127.0.0.1|name)"),
    ((None, "expired_server"), ("ca", None), {}, "TLS: .*expired"),
    (("ca", "server"), ("ca", "client_1"), {}, "made out to client_1, not to 'client_0'"),
    (("ca", "server"), ("ca", "stranger"), {}, "TLS: .*does not take the certificate .*stranger.pem .*somebody else"),
    (("ca", "server"), ("ca", "expired"), {}, r"TLS: .*expired.pem has expired on 20\d\d-"),
    (("ca", "server"), ("ca", None), {}, "TLS: .*this client has none"),
    ((None, "server"), (None, None), {}, "no connection"),
    ((None, None), ("ca", None), {}, "TLS: "),
    ((None, "server"), ("absent", None), {}, "TLS: .*absent.pem cannot be read"),
], ids=["unknown authority", "another host", "expired server", "another client's", "other authority's client", "expired client",
        "no certificate", "client without TLS", "server without TLS", "missing file"])
def test_certificates_that_do_not_do(certificates, server, client, more, words):
    """S-SEC-04: within the client's patience, with a message that names what is wrong; nobody goes on without TLS."""
    with pytest.raises(Unavailable, match=words):
        run(try_tls(certificates, server, client, **more))


@pytest.mark.parametrize("end", ["server", "client"])
@pytest.mark.parametrize(("ca", "cert", "key", "words"), [
    ("ca.pem", "garbage.pem", "server.key", "garbage.pem and .*server.key cannot be used"),
    ("ca.pem", "server.pem", "garbage.pem", "server.pem and .*garbage.pem cannot be used"),
    ("ca.pem", "server.pem", "client_0.key", "server.pem and .*client_0.key cannot be used .*mismatch"),
    ("garbage.pem", "server.pem", "server.key", "garbage.pem cannot be used as the certificate of an authority"),
    (None, "server.pem", None, "given are cert=.*server.pem and key=None"),
    (None, None, "server.key", "given are cert=None and key=.*server.key"),
], ids=["garbage as certificate", "garbage as key", "another's key", "garbage as authority", "no key", "a key alone"])
def test_certificates_that_cannot_be_used(certificates, end, ca, cert, key, words):
    """S-SEC-04: at once, before an address is opened or tried, and it is the files that are named."""
    (certificates / "garbage.pem").write_text("garbage")
    given = Certificates(*(name and f"{certificates}/{name}" for name in (ca, cert, key)))

    async def test() -> None:
        address = f"localhost:{free_port()}"
        if end == "server":
            await GrpcServer.open(Door(address=address, certificates=given))
        else:
            await connect(Way(address=address, name="client_0", certificates=given, patience=None))

    with pytest.raises(Unavailable, match=f"TLS: .*{words}"):
        run(test())


def test_a_server_needs_a_certificate_of_its_own(certificates):
    """S-SEC-04: an authority alone is enough for a client only."""
    with pytest.raises(Unavailable, match=r"TLS: a server needs .*cert and key .*ca\.pem"):
        run(GrpcServer.open(Door(address=f"localhost:{free_port()}", certificates=pem(certificates, "ca", None))))


def test_nothing_but_grpc_modules_load_grpc():
    done = subprocess.run([sys.executable, "-c", "import sys, federation, node_comm.node, federation.assemble; "
                                                 "sys.exit('grpc' in sys.modules)"], check=False)
    assert done.returncode == 0
    assert (SERVICE, METHOD) == ("node_comm.Star", "Connect")
