"""A node: one rank's conversation with the others, over any transport.

A node reads its transport all the time. Replies go to whoever asked; everything else waits in `recv`. It tells the
others that it is alive, and remembers when it last heard from whom.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Coroutine, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from node_comm.arrays import Description
from node_comm.errors import CommError, Disconnected, ProtocolError, Timeout
from node_comm.message import Codec, Failure, Heartbeat, Message
from node_comm.star import Star
from node_comm.transport import Received, Transport
from node_comm.wire import Adding, Discarded, Sink

logger = logging.getLogger(__name__)

#: The largest array that a server takes from a client that was not asked for one, in bytes.
UNASKED_BYTES = 1 << 16

Result = TypeVar("Result")


class Incoming(NamedTuple):
    """A message that arrived; answer it with `Node.reply` if `request` is not 0."""

    source: int
    message: Message
    buffer: np.ndarray | None
    request: int


class Lost(Message, frozen=True):
    """Not sent by anybody: this node's note that a peer of an open world is gone."""

    reason: str


class RemoteFailure(CommError):
    """The peer raised while it handled a request; the message holds its reason and traceback."""


async def together(*work: Coroutine[Any, Any, None]) -> None:
    """Await all of `work`; the first error cancels the others, and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for part in work:
                group.create_task(part)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


def look_at(done: asyncio.Future[Any]) -> None:
    """Nobody wants to know what came of it: an error is not to be reported as forgotten."""
    if not done.cancelled():
        done.exception()


async def give_up(*work: asyncio.Future[Any]) -> None:
    """Cancel what of `work` is not done, and wait until it has ended; nobody wants to know what came of it."""
    for part in work:
        part.cancel()
    # Not those that cancel() said True of: what asyncio.gather gives says False as soon as all its parts are done, before it is.
    unfinished = [part for part in work if not part.done()]
    if unfinished:
        await asyncio.wait(unfinished)
    for part in work:
        look_at(part)


class _Pending(NamedTuple):
    dest: int
    future: asyncio.Future[tuple[Message, np.ndarray | None]]
    into: np.ndarray | Adding | None


class Node:
    """Messages of the types `messages` over `transport`, which the node owns and closes.

    With `heartbeat` seconds, `beat_to` ranks are told that this node lives, also while it computes elsewhere.
    """

    def __init__(self, transport: Transport, messages: Sequence[type[Message]], *, heartbeat: float | None = None,
                 beat_to: Sequence[int] = ()) -> None:
        self.transport = transport
        self.last_heard: dict[int, float] = {}
        self._codec = Codec(messages)
        self._heartbeat = heartbeat
        self._beat_to = tuple(beat_to)
        self._numbers = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._inbox: asyncio.Queue[Incoming | None] = asyncio.Queue()  # None: nothing comes any more
        self._tasks: list[asyncio.Task[None]] = []
        self._failure: BaseException | None = None
        self._held: dict[int, list[Message]] = {}  # what goes ahead of the next message, by destination
        self._attended: set[asyncio.Future[None]] = set()  # tell those who attend to something that this node has ended
        if isinstance(transport, Star):
            transport.sink, transport.on_lost = self._sink, self._lost

    async def start(self) -> None:
        """Begin to read the transport."""
        self._tasks = [asyncio.create_task(self._guard(self._pump()), name=f"node {self.transport.rank} pump")]
        if self._heartbeat is not None and self._beat_to:
            self._tasks.append(asyncio.create_task(self._guard(self._beat()), name=f"node {self.transport.rank} beat"))

    async def stop(self) -> None:
        """Stop reading and close the transport; pending requests raise Disconnected."""
        self.fail(Disconnected("this node has been stopped"))
        await self.transport.close()  # before reading ends: a receive that is cancelled may take what is being sent with it
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def send(self, dest: int, message: Message, buffer: np.ndarray | None = None) -> None:
        """Send `message` to rank `dest`; no reply is expected. `buffer` is borrowed until this returns."""
        await self.transport.send(dest, self._encoded(dest, message), buffer)

    def send_with_next(self, dest: int, message: Message) -> None:
        """Send `message` to rank `dest` as part of what is sent there next, ahead of it; `flush` sends it if nothing is.

        A frame costs each end a wake-up, which for a small message is most of what it costs. Not over a Star.
        """
        self._held.setdefault(dest, []).append(message)

    async def flush(self) -> None:
        """Send what `send_with_next` has left to be sent."""
        while self._held:
            dest, (*ahead, last) = self._held.popitem()
            await self.transport.send(dest, self._codec.encode(last, ahead=ahead))

    def encode(self, message: Message) -> bytes:
        """The header bytes of a message that wants no reply, for whoever sends it to many by the transport itself."""
        return self._codec.encode(message)

    async def request(self, dest: int, message: Message, buffer: np.ndarray | None = None, *,
                      into: np.ndarray | Adding | None = None, timeout: float | None = None,
                      ) -> tuple[Message, np.ndarray | None]:
        """Send `message` and wait for its reply: (message, array or None).

        The reply's array is written into `into` (over a Star, it can be added to a sum), or is a new one. Raises
        RemoteFailure when the peer raised, Timeout after `timeout` seconds, and what ended this node, if something did.
        Nothing is written into `into` after that; but over MPI, an array that has begun to come is written to its end: there
        `into` is not to be used again after a Timeout.
        """
        try:
            async with asyncio.timeout(timeout):
                return await (await self.ask(dest, message, buffer, into=into))
        except TimeoutError:
            raise Timeout(f"rank {dest} did not answer {type(message).__name__} within {timeout:g} s") from None

    async def ask(self, dest: int, message: Message, buffer: np.ndarray | None = None, *,
                  into: np.ndarray | Adding | None = None) -> asyncio.Future[tuple[Message, np.ndarray | None]]:
        """`request` in two steps: send `message`, and return the future that its reply comes in.

        `dest` gets what it is asked for one call after the other in their order; it may answer in any. Who cancels the
        future wants no reply any more; for `into`, see `request`. Raises what ended this node, if something did.
        """
        self._check_alive()
        number = next(self._numbers)
        future: asyncio.Future[tuple[Message, np.ndarray | None]] = asyncio.get_running_loop().create_future()
        self._pending[number] = _Pending(dest, future, into)
        future.add_done_callback(lambda done: self._forget(number, done))
        try:
            await self.transport.send(dest, self._encoded(dest, message, request=number), buffer)
        except BaseException:
            future.cancel()
            raise
        return future

    async def reply(self, incoming: Incoming, message: Message, buffer: np.ndarray | None = None) -> None:
        """Answer `incoming`; does nothing for a message that wants no answer."""
        if incoming.request:
            header = self._encoded(incoming.source, message, reply=incoming.request)
            await self.transport.send(incoming.source, header, buffer)

    async def recv(self) -> Incoming:
        """The next message that is no reply. Raises what ended this node, once everything before it is taken."""
        incoming = await self._inbox.get()
        if incoming is None:
            self._inbox.put_nowait(None)
            assert self._failure is not None, "nothing comes any more once this node has failed"
            raise self._failure
        return incoming

    async def attend(self, work: Awaitable[Result]) -> Result:
        """Await `work` (a collective, say), but no longer than this node lives: its failure ends the wait too."""
        waiting = asyncio.ensure_future(work)
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._attended.add(ended)
        try:
            if self._failure is None:
                both: set[asyncio.Future[Any]] = {waiting, ended}
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                self._check_alive()
            return await waiting
        finally:
            self._attended.discard(ended)
            waiting.cancel()
            waiting.add_done_callback(look_at)

    def fail(self, error: BaseException) -> None:
        """End this node with `error`: every pending and later call raises it."""
        if self._failure is None:
            self._failure = error
            self._inbox.put_nowait(None)
        for pending in self._pending.values():
            if not pending.future.done():
                pending.future.set_exception(self._failure)
        for ended in self._attended:
            if not ended.done():
                ended.set_result(None)

    def silence(self, rank: int) -> float:
        """Seconds since `rank` was last heard from; infinity if it never was."""
        heard = self.last_heard.get(rank)
        return float("inf") if heard is None else time.monotonic() - heard

    async def _pump(self) -> None:
        transport = self.transport
        while True:
            received = await transport.recv(into=self._destination)
            try:
                self._take(received)
            except CommError as error:
                if not isinstance(transport, Star):
                    raise
                logger.warning("rank %d: %s", received.source, error)
                transport.drop(received.source, f"protocol: {error}")

    def _encoded(self, dest: int, message: Message, request: int = 0, reply: int = 0) -> bytes:
        """The header of `message`, with what has waited for it."""
        return self._codec.encode(message, request, reply, self._held.pop(dest, ()))

    def _forget(self, number: int, future: asyncio.Future[tuple[Message, np.ndarray | None]]) -> None:
        """A question is settled, whether the asker waits for the answer or not."""
        del self._pending[number]
        look_at(future)

    def _destination(self, header: bytes, description: Description) -> np.ndarray | None:
        pending = self._waiting(self._codec.open(header).reply)
        return pending.into if pending is not None and isinstance(pending.into, np.ndarray) else None

    def _sink(self, source: int, header: bytes, description: Description) -> Sink:
        """Where an array goes that comes over a Star. A server takes none that it has not asked this peer for."""
        envelope = self._codec.open(header)
        pending = self._waiting(envelope.reply)
        if pending is not None and pending.dest == source:
            return pending.into
        if envelope.reply:
            return Discarded()  # the asker gave up, or it is the second answer, or to somebody else's question
        if self.transport.rank == 0 and description.nbytes > UNASKED_BYTES:
            raise ProtocolError(f"{description} was not asked for")
        return None

    def _waiting(self, number: int) -> _Pending | None:
        """The question `number`, if somebody still waits for its reply."""
        pending = self._pending.get(number)
        return None if pending is None or pending.future.done() else pending

    def _lost(self, rank: int, reason: str) -> None:
        """A peer of an open world is gone: nobody waits for it any more, and `recv` says so."""
        for pending in self._pending.values():
            if pending.dest == rank and not pending.future.done():
                pending.future.set_exception(Disconnected(f"rank {rank} is lost: {reason}"))
        self.last_heard.pop(rank, None)
        self._inbox.put_nowait(Incoming(rank, Lost(reason=reason), None, 0))

    def _take(self, received: Received) -> None:
        self.last_heard[received.source] = time.monotonic()
        envelope = self._codec.open(received.header)
        if envelope.ahead and isinstance(self.transport, Star):
            raise ProtocolError("several messages have come in one frame, which nobody sends over a network")
        for message in self._codec.ahead(envelope):
            self._inbox.put_nowait(Incoming(received.source, message, None, 0))
        message = self._codec.body(envelope)
        if isinstance(message, Heartbeat):
            return
        if not envelope.reply:
            self._inbox.put_nowait(Incoming(received.source, message, received.buffer, envelope.request))
            return
        pending = self._waiting(envelope.reply)
        if pending is None or pending.dest != received.source:
            return  # the asker gave up (time-out, cancellation); a late reply is nobody's
        if isinstance(message, Failure):
            pending.future.set_exception(RemoteFailure(
                f"rank {received.source}: {message.reason}" + (f"\n{message.traceback}" if message.traceback else "")))
        else:
            pending.future.set_result((message, received.buffer))

    async def _beat(self) -> None:
        assert self._heartbeat is not None
        header = self._codec.encode(Heartbeat())
        while True:
            await asyncio.sleep(self._heartbeat)
            for dest in self._beat_to:
                await self.transport.send(dest, header)

    async def _guard(self, work: Awaitable[None]) -> None:
        """Run `work`; whatever ends it ends the node, and everyone who waits on it is told."""
        try:
            await work
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self.fail(error)

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise self._failure
