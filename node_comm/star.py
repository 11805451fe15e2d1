"""A world in the shape of a star: a server, rank 0, and clients that come and go, each with a stream of its own.

Ranks are given in the order of arrival, and never twice. A client that is lost, or breaks the protocol, is the loss of its
own link alone: `on_lost` says so, and the world goes on. There are no collectives; what a server tells many is encoded
once (`send_all`), and what many bring can be added up as it comes (`wire.Adding`).
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence

import numpy as np

from node_comm.arrays import Description, Into
from node_comm.errors import AddressError, CommError, Disconnected, Unavailable
from node_comm.link import Link
from node_comm.mailbox import Mailbox
from node_comm.transport import Operation, Received, Transport
from node_comm.wire import Outgoing, Sink

#: Messages of one peer that wait to be received; its stream is not read on while there are more.
MOST_WAITING = 64


class Star(Transport):
    """What the server's end and a client's have in common."""

    #: Told of each peer that is lost, with the reason, behind all that it has sent.
    on_lost: Callable[[int, str], None] | None = None
    #: Says where an array that a peer sends is to be written, by (peer, header, description); see `wire.Sink`.
    sink: Callable[[int, bytes, Description], Sink] | None = None

    def __init__(self, rank: int, zip_level: int | None = None) -> None:
        self.rank = rank
        self._zip_level = zip_level
        self._links: dict[int, Link] = {}
        self._mailbox: Mailbox[Received] = Mailbox(growing=True)
        self._closed = False

    @property
    def ranks(self) -> list[int]:
        """The peers that are there."""
        return sorted(self._links)

    async def send(self, dest: int, header: bytes, buffer: np.ndarray | None = None) -> None:
        """See Transport."""
        if dest == self.rank:
            self._check_alive()
            self._mailbox.deliver(dest, Received(dest, bytes(header), None if buffer is None else np.array(buffer, order="C")))
            return
        await self._write(dest, Outgoing(header, buffer, self._zip_level))

    async def send_all(self, ranks: Sequence[int], header: bytes, buffer: np.ndarray | None = None,
                       timeout: float | None = None) -> dict[int, str]:
        """Send one message to many, encoded once. Returns who did not take it within `timeout` seconds, and why; these are lost.
        """
        outgoing = Outgoing(header, buffer, self._zip_level)
        failed: dict[int, str] = {}

        async def one(rank: int) -> None:
            try:
                async with asyncio.timeout(timeout):
                    await self._write(rank, outgoing)
            except TimeoutError:
                failed[rank] = f"took longer than {timeout:g} s to take a message"
                self.drop(rank, failed[rank])
            except CommError as error:
                failed[rank] = str(error)

        await asyncio.gather(*map(one, ranks))
        return failed

    async def recv(self, source: int | None = None, into: Into = None) -> Received:
        """See Transport. Arrays are written where `sink` says, when they arrive; `into` is not asked."""
        self._check_alive()
        if source is not None and 0 <= source < self.size and source != self.rank and not self._mailbox.holds(source):
            self._link(source)  # raises for one that has gone
        _, received = await self._mailbox.take(source)
        link = self._links.get(received.source)
        if link is not None:
            link.waiting -= 1
            if link.waiting < MOST_WAITING:
                link.drained.set()
        return received

    def name(self, rank: int) -> str:
        """The name of a peer, for people."""
        return f"rank {rank}"

    @abstractmethod
    def drop(self, rank: int, reason: str) -> None:
        """Let `rank` go: its stream ends, with `reason`."""

    def silence(self, rank: int) -> float:
        """Seconds since the last frame of `rank`."""
        link = self._links.get(rank)
        return float("inf") if link is None else time.monotonic() - link.heard

    async def _write(self, rank: int, outgoing: Outgoing) -> None:
        """A message that is cut off leaves the peer waiting for its rest: it is lost then, whoever's fault that is."""
        link = self._link(rank)
        try:
            await link.send(outgoing)
        except BaseException:
            if link.is_broken:
                self.drop(rank, "a message to it was cut off")
            raise

    def _joined(self, rank: int, most: int) -> Link:
        def sink(header: bytes, description: Description) -> Sink:
            return None if self.sink is None else self.sink(rank, header, description)

        link = self._links[rank] = Link(rank, sink, most)
        self._mailbox.expect(rank)
        return link

    async def _arrived(self, link: Link, frame: bytes) -> None:
        received = link.feed(frame)
        if received is not None:
            link.waiting += 1
            self._mailbox.deliver(link.peer, received)
            if link.waiting >= MOST_WAITING:
                link.drained.clear()
                await link.drained.wait()

    def _lost(self, rank: int, reason: str) -> None:
        link = self._links.pop(rank, None)
        if link is not None:
            link.end(reason)
            self._mailbox.leave(rank)
            self._mailbox.forget(rank)  # as it comes back under another rank, and others come for ever
            if self.on_lost is not None:
                self.on_lost(rank, reason)

    def _link(self, rank: int) -> Link:
        self._check_alive()
        if rank not in self._links:
            raise Disconnected(f"rank {rank} is not there") if 0 <= rank < self.size else AddressError(
                f"there has been no rank {rank} in this world (0 to {self.size - 1})")
        return self._links[rank]

    def _check_alive(self) -> None:
        if self._closed:
            raise Disconnected("this end of the connection has been closed")

    # No collectives

    async def broadcast(self, buffer: np.ndarray, root: int = 0) -> None:
        """Not here: `send_all`."""
        raise _no_collectives()

    async def reduce(self, buffer: np.ndarray | None, out: np.ndarray | None = None, root: int = 0,
                     operation: Operation = "sum") -> None:
        """Not here: requests whose replies are added up, see `wire.Adding`."""
        raise _no_collectives()

    async def gather(self, buffer: np.ndarray, out: Sequence[np.ndarray] | None = None, root: int = 0) -> None:
        """Not here."""
        raise _no_collectives()

    async def alltoall(self, buffers: Sequence[np.ndarray], out: Sequence[np.ndarray]) -> None:
        """Not here: clients do not reach each other."""
        raise _no_collectives()

    async def barrier(self) -> None:
        """Not here."""
        raise _no_collectives()


def _no_collectives() -> Unavailable:
    return Unavailable("clients of a server come and go, so there are no collectives among them: use messages")
