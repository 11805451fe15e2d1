"""One peer of a star, over one stream after another: a message goes on where a cut has left it.

Frames are numbered by their order. The last ones are kept until the peer has confirmed them; where a stream breaks and the
next one comes, each end says how many frames it has, and the other writes on from there. Each frame is taken once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable

from node_comm.arrays import Description
from node_comm.errors import Disconnected, ProtocolError
from node_comm.transport import Received
from node_comm.wire import CONFIRM, FAREWELL, Assembler, Outgoing, Sink, confirmation

logger = logging.getLogger(__name__)

#: Frames that are written ahead of the peer's word that it has them; what a link keeps in memory at most.
WINDOW = 8
#: Frames after which the peer is told how many have come.
CONFIRM_EVERY = 2

Write = Callable[[bytes], Awaitable[None]]


class Link:
    """Messages to and from `peer`. `sink` and `most` are an Assembler's. Made in a running event loop; `end` it."""

    def __init__(self, peer: int, sink: Callable[[bytes, Description], Sink], most: int) -> None:
        self.peer = peer
        self.heard = time.monotonic()
        self.received = 0  # frames that have come
        self.has_left = False
        self.waiting = 0
        self.drained = asyncio.Event()
        self.drained.set()
        self.is_broken = False
        self._assembler = Assembler(sink, most)
        self._turn = asyncio.Lock()
        self._kept: deque[bytes] = deque()
        self._first = 0  # the number of the first frame kept
        self._next = 0  # the number of the next frame to write
        self._told = 0
        self._stream: Write | None = None
        self._ended = ""
        self._stirred, self._room, self._flushed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._writing = self._writer()

    def attach(self, stream: Write, has: int) -> None:
        """Go on over a stream whose far end has taken `has` frames of this one. Raises ProtocolError where it cannot have."""
        self._confirm(has)
        self._next, self._told = self._first, self.received
        self._stream = stream
        self._writing.cancel()  # it may hang in a stream of which this end does not know yet that it is cut
        if not self._ended:
            self._writing = self._writer()
        self._stirred.set()

    def detach(self) -> None:
        """The stream is gone. Messages wait for the next one."""
        self._stream = None

    def end(self, reason: str) -> None:
        """There will be no stream any more."""
        self._ended = self._ended or reason or "it has left"
        self._stream = None
        self._writing.cancel()
        self._room.set()
        self._flushed.set()

    async def send(self, outgoing: Outgoing) -> None:
        """Have a whole message written; returns when its last frame is in the window. A call that is cancelled half-way
        breaks the link. Raises Disconnected."""
        async with self._turn:
            if self.is_broken:
                raise Disconnected(f"rank {self.peer}: a message was cut off")
            has_begun = False
            try:
                for frame in outgoing:
                    await self._put(frame)
                    has_begun = True
            except Disconnected:
                raise
            except Exception as error:  # whatever goes wrong with a message, it is the link that is of no use any more
                self.is_broken = True
                raise Disconnected(f"rank {self.peer} is lost: {error}") from error
            except BaseException:
                self.is_broken = has_begun
                raise

    async def say_farewell(self) -> None:
        """Tell the peer, behind all else, that this end leaves for good."""
        await self._put(bytes([FAREWELL]))
        await self.flush()

    async def flush(self) -> None:
        """Wait until the stream has taken all that was sent, or the link has ended."""
        if self._next < self._first + len(self._kept) and not self._ended:
            self._flushed.clear()
            await self._flushed.wait()

    def feed(self, frame: bytes) -> Received | None:
        """A frame has come; returns the message that it completes. Raises ProtocolError."""
        self.heard = time.monotonic()
        if frame[:1] == bytes([CONFIRM]):
            self._confirm(int.from_bytes(frame[1:9], "little"))
            return None
        if frame == bytes([FAREWELL]):
            self.has_left = True
            return None
        whole = self._assembler.feed(frame)
        self.received += 1
        if self.received >= self._told + CONFIRM_EVERY:
            self._stirred.set()
        return None if whole is None else Received(self.peer, whole.header, whole.buffer)

    async def _put(self, frame: bytes) -> None:
        """Number a frame, once there is room for it."""
        while len(self._kept) >= WINDOW:
            self._check()
            self._room.clear()
            await self._room.wait()
        self._check()
        self._kept.append(frame)
        self._stirred.set()

    def _confirm(self, count: int) -> None:
        """The peer has taken `count` frames."""
        if not self._first <= count <= self._first + len(self._kept):
            raise ProtocolError(f"{count} frames are confirmed; {self._first} to {self._first + len(self._kept)} can be")
        while self._first < count:
            self._kept.popleft()
            self._first += 1
        self._room.set()

    def _writer(self) -> asyncio.Task[None]:
        return asyncio.create_task(self._write(), name=f"link to rank {self.peer}")

    async def _write(self) -> None:
        """Write what there is to write, as long as there is a stream; the only one that does."""
        while True:
            await self._stirred.wait()
            self._stirred.clear()
            while (stream := self._stream) is not None:
                if self.received >= self._told + CONFIRM_EVERY:
                    told, number, frame = self.received, self._next, confirmation(self.received)
                elif self._next < self._first + len(self._kept):
                    told, number, frame = self._told, self._next + 1, self._kept[self._next - self._first]
                else:
                    self._flushed.set()
                    break
                if await _written(stream, frame) and self._stream is stream:
                    self._told, self._next = told, number
                elif self._stream is stream:
                    self._stream = None

    def _check(self) -> None:
        if self._ended:
            raise Disconnected(f"rank {self.peer} is lost: {self._ended}")


def is_cancelled() -> bool:
    """Whether somebody has cancelled the present task; else a CancelledError is gRPC's, about a stream."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _written(stream: Write, frame: bytes) -> bool:
    """Whether the stream took it; where not, whoever reads it finds out why."""
    try:
        await stream(frame)
    except asyncio.CancelledError:
        if is_cancelled():
            raise
        return False  # gRPC's way to say that the other end has cancelled the stream
    except Exception as error:
        logger.debug("a stream has ended: %s", error)
        return False
    return True
