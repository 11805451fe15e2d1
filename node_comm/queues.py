"""Multiprocessing queues of small frames, one inbox for each rank, without locks.

Like `multiprocessing.SimpleQueue`, an inbox is a pipe with one reader and many writers, made and handed to children
by multiprocessing. SimpleQueue guards its pipe by two named semaphores, which a killed writer leaves locked and a
killed parent leaves behind. Here a frame is at most PIPE_BUF bytes, which the system writes whole or not at all, so
that no lock is needed. A longer one (a large header) is left in shared memory, and its place is sent instead.

A thread for each rank always empties its inbox, so that no `put` waits for what another rank's event loop is doing.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import select
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection

import msgspec

from node_comm.errors import CommError, Disconnected
from node_comm.segments import Location, Segment

_LENGTH = struct.Struct("!I")

#: Bytes of the longest frame that fits the queue itself.
MAX_FRAME = select.PIPE_BUF - _LENGTH.size - 1

_PLAIN, _SPILLED, _TAKEN, _STOP = (bytes([kind]) for kind in range(4))


class _Spilled(msgspec.Struct, frozen=True, array_like=True):
    """Where a frame lies that was too long for the queue."""

    source: int
    number: int
    nbytes: int
    location: Location


class Queues:
    """One rank's end of a world's queues: `reader` is its own inbox, `writers[k]` the inbox of rank k. Owns both."""

    def __init__(self, rank: int, reader: Connection, writers: Sequence[Connection]) -> None:
        self.rank = rank
        self._reader = reader
        self._writers = writers
        self._numbers = itertools.count(1)
        self._spills: dict[int, tuple[int, Segment]] = {}
        self._thread: threading.Thread | None = None
        self._drained = asyncio.Event()
        self._drained.set()

    def start(self, handle: Callable[[bytes], None], fail: Callable[[CommError], None]) -> None:
        """Hand every frame that arrives to `handle`, in the running event loop, in order; errors go to `fail`."""
        loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._read, args=(loop, handle, fail), daemon=True,
                                        name=f"rank {self.rank} inbox")
        self._thread.start()

    def put(self, dest: int, frame: bytes) -> None:
        """Put `frame` into the inbox of rank `dest`; Disconnected if nobody reads it any more."""
        if len(frame) <= MAX_FRAME:
            self._write(dest, _PLAIN + frame)
            return
        segment = Segment(self.rank, next(self._numbers), len(frame))
        segment.memory[: len(frame)] = frame
        self._spills[segment.number] = (dest, segment)
        self._drained.clear()
        spilled = _Spilled(self.rank, segment.number, len(frame), segment.location(0))
        try:
            self._write(dest, _SPILLED + msgspec.msgpack.encode(spilled))
        except Disconnected:
            self._release(segment.number)
            raise

    async def drain(self) -> None:
        """Wait until all that was put aside for others has been read by them."""
        await self._drained.wait()

    def forget(self, dest: int | None = None) -> None:
        """Rank `dest` (or, left out, every rank) is gone: do not wait until it has read."""
        for number in [number for number, (rank, _) in self._spills.items() if dest is None or rank == dest]:
            self._release(number)

    def close(self) -> None:
        """Stop the thread and close the queues; may be called twice."""
        self.forget()
        if self._reader.closed:
            return
        if self._thread is not None:
            self._write(self.rank, _STOP)
            self._thread.join()
        self._reader.close()
        for writer in self._writers:
            writer.close()

    def _write(self, dest: int, frame: bytes) -> None:
        try:
            os.write(self._writers[dest].fileno(), _LENGTH.pack(len(frame)) + frame)
        except BrokenPipeError:
            raise Disconnected(f"the process of rank {dest} has ended") from None

    def _read(self, loop: asyncio.AbstractEventLoop, handle: Callable[[bytes], None],
              fail: Callable[[CommError], None]) -> None:
        """The thread: split what arrives into frames and hand them to the loop. It never writes, so never waits."""
        try:
            for frame in self._frames():
                kind, body = frame[:1], frame[1:]
                if kind == _PLAIN:
                    loop.call_soon_threadsafe(handle, body)
                elif kind == _SPILLED:
                    spilled = msgspec.msgpack.decode(body, type=_Spilled)
                    try:
                        loop.call_soon_threadsafe(handle, spilled.location.read(spilled.nbytes))
                    except Disconnected:
                        continue  # its sender has ended, which is reported by who watches it
                    except CommError as error:
                        loop.call_soon_threadsafe(fail, error)
                    loop.call_soon_threadsafe(self._acknowledge, spilled)
                elif kind == _TAKEN:
                    loop.call_soon_threadsafe(self._release, _LENGTH.unpack(body)[0])
                else:
                    return
        except RuntimeError:
            if not loop.is_closed():
                raise

    def _frames(self) -> Iterator[bytes]:
        pending = bytearray()
        while chunk := os.read(self._reader.fileno(), 1 << 16):
            pending += chunk
            begin = 0
            while len(pending) - begin >= _LENGTH.size:
                end = begin + _LENGTH.size + _LENGTH.unpack_from(pending, begin)[0]
                if end > len(pending):
                    break
                yield bytes(pending[begin + _LENGTH.size:end])
                begin = end
            del pending[:begin]

    def _acknowledge(self, spilled: _Spilled) -> None:
        if not self._reader.closed:
            with contextlib.suppress(Disconnected):  # who has gone waits for nothing
                self._write(spilled.source, _TAKEN + _LENGTH.pack(spilled.number))

    def _release(self, number: int) -> None:
        spill = self._spills.pop(number, None)
        if spill is not None:
            spill[1].close()
        if not self._spills:
            self._drained.set()
