"""Messages in frames: what travels in a stream between machines, and what is refused of it.

A message is a *begin* frame (header, and what array follows), and the array's bytes in *piece* frames, each with a
checksum; *zipped* frames hold a piece made smaller. *Confirm* and *farewell* frames are those of a `Link`. Whoever decodes
decides about memory before it is taken: nothing here trusts a length.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec
import numpy as np

from node_comm.arrays import Description, as_bytes, check_writable, describe, packed, parse_dtype
from node_comm.errors import BufferMismatch, ProtocolError

BEGIN, PIECE, ZIPPED, CONFIRM, FAREWELL = range(5)
#: Bytes of an array in one frame; what a receiver has to have in memory beside the array itself.
PIECE_BYTES = 1 << 20
#: The longest header, and the longest frame.
MAX_HEADER = 1 << 22
MAX_FRAME = MAX_HEADER + 1024

_CRC_BYTES = 4
_MAX_DIMENSIONS = 32
_MAX_NAME = 64


class Begin(msgspec.Struct, frozen=True, array_like=True):
    """What goes ahead of a message's pieces."""

    header: bytes
    description: Description | None = None


class Adding(NamedTuple):
    """A place for an array that is to be added to what is there, piece by piece as it arrives.

    Where its sender is lost on the way, or it is wanted no more, `target` holds a part of it, and is of no use any more.
    """

    target: np.ndarray


class Discarded(NamedTuple):
    """A place for an array that nobody wants: its bytes are counted and forgotten."""


#: Where an array goes: one like it, a sum, nowhere; None for a new array.
Sink = np.ndarray | Adding | Discarded | None


class Whole(NamedTuple):
    """A message that is complete; `buffer` is the array it was written into, if any."""

    header: bytes
    buffer: np.ndarray | None


def confirmation(count: int) -> bytes:
    """The frame that says that so many have come."""
    return bytes([CONFIRM]) + count.to_bytes(8, "little")


class Outgoing:
    """A message as frames, each encoded when it is asked for. Those that were asked for last are kept, so that many
    streams that move along together share them. `buffer` is borrowed. With a `zip_level` (zstandard's, 1 to 19), pieces
    that it makes smaller travel zipped."""

    KEPT = 8

    def __init__(self, header: bytes, buffer: np.ndarray | None = None, zip_level: int | None = None) -> None:
        description = None if buffer is None else describe(buffer)
        self._zip_level = zip_level
        self._itemsize = 1 if description is None else parse_dtype(description.dtype).itemsize
        self._bytes = np.empty(0, np.uint8) if buffer is None else as_bytes(packed(buffer))
        self._begin = bytes([BEGIN]) + msgspec.msgpack.encode(Begin(bytes(header), description))
        self._kept: dict[int, bytes] = {}
        if len(self._begin) > MAX_HEADER:
            raise ProtocolError(f"a header of {len(header)} bytes is longer than {MAX_HEADER}; send large data as the buffer")

    def __len__(self) -> int:
        return 1 + math.ceil(self._bytes.size / PIECE_BYTES)

    def __getitem__(self, index: int) -> bytes:
        if index == 0:
            return self._begin
        frame = self._kept.get(index)
        if frame is None:
            piece = self._bytes[(index - 1) * PIECE_BYTES:index * PIECE_BYTES].data
            if not piece:
                raise IndexError(index)
            frame = self._kept[index] = self._encoded(piece)
            if len(self._kept) > self.KEPT:
                del self._kept[min(self._kept)]  # maybe this one, for a stream that is far behind
        return frame

    def __iter__(self) -> Iterator[bytes]:
        return (self[index] for index in range(len(self)))

    def _encoded(self, piece: memoryview) -> bytes:
        crc = zlib.crc32(piece).to_bytes(_CRC_BYTES, "little")
        if self._zip_level is not None:
            from node_comm.zipping import zipped  # only who zips needs zstandard

            small = zipped(piece, self._itemsize, self._zip_level)
            if len(small) < len(piece):
                return b"".join((bytes([ZIPPED]), crc, small))
        return b"".join((bytes([PIECE]), crc, piece))


class Assembler:
    """Puts frames together. `sink(header, description)` says where an array goes, and is asked again before each piece: once
    it says `Discarded`, nothing more is written. `most` is the largest new array, in bytes, that is made for one. Every method
    raises ProtocolError for what does not keep the protocol."""

    def __init__(self, sink: Callable[[bytes, Description], Sink], most: int) -> None:
        self._sink = sink
        self._most = most
        self._decoder = msgspec.msgpack.Decoder(Begin)
        self._begin: Begin | None = None
        self._left = 0
        self._done = 0
        self._array: np.ndarray | None = None
        self._flat: np.ndarray | None = None  # uint8, or for a sum its elements
        self._adds = False
        self._itemsize = 1

    def feed(self, frame: bytes) -> Whole | None:
        """Take the next frame; returns the message that it completes."""
        if not frame:
            raise ProtocolError("an empty frame")
        if frame[0] == BEGIN:
            self._take_begin(frame)
        elif frame[0] in (PIECE, ZIPPED):
            self._take_piece(frame)
        else:
            raise ProtocolError(f"a frame of unknown kind {frame[0]}")
        if self._begin is None or self._left:
            return None
        whole = Whole(self._begin.header, self._array)
        self._begin = self._array = self._flat = None
        return whole

    def _take_begin(self, frame: bytes) -> None:
        if self._begin is not None:
            raise ProtocolError(f"a new message while {self._left} bytes of the last one are missing")
        if len(frame) > MAX_HEADER:
            raise ProtocolError(f"a header of {len(frame)} bytes; {MAX_HEADER} are allowed")
        try:
            begin = self._decoder.decode(memoryview(frame)[1:])
            nbytes = 0 if begin.description is None else _checked_size(begin.description)
            if begin.description is not None:
                self._open(begin.header, begin.description, nbytes)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"malformed: {error}") from error
        except BufferMismatch as error:
            raise ProtocolError(str(error)) from error
        self._begin, self._left, self._done = begin, nbytes, 0

    def _open(self, header: bytes, description: Description, nbytes: int) -> None:
        sink = self._sink(header, description)
        self._itemsize = parse_dtype(description.dtype).itemsize
        self._adds = isinstance(sink, Adding)
        match sink:
            case Discarded():
                self._array = self._flat = None
            case Adding(target=target):
                check_writable(target, description)
                self._array, self._flat = None, target.reshape(-1)
            case np.ndarray():
                check_writable(sink, description)
                self._array, self._flat = sink, as_bytes(sink)
            case None:
                if nbytes > self._most:
                    raise ProtocolError(f"{description} ({nbytes} bytes) was not asked for; {self._most} bytes are allowed")
                self._array = np.empty(description.shape, parse_dtype(description.dtype))
                self._flat = as_bytes(self._array)

    def _take_piece(self, frame: bytes) -> None:
        data = memoryview(frame)[1 + _CRC_BYTES:]
        if frame[0] == ZIPPED:
            from node_comm.zipping import unzipped

            data = unzipped(data, self._itemsize, min(self._left, PIECE_BYTES))
        if self._begin is None or not data or len(data) > min(self._left, PIECE_BYTES):
            raise ProtocolError(f"a piece of {len(data)} bytes where {self._left} are missing")
        if zlib.crc32(data) != int.from_bytes(frame[1:1 + _CRC_BYTES], "little"):
            raise ProtocolError("a piece was damaged on its way")
        if self._begin.description is not None and isinstance(self._sink(self._begin.header, self._begin.description), Discarded):
            self._array = self._flat = None
        if self._flat is not None and self._adds:
            size = self._flat.itemsize
            if len(data) % size:
                raise ProtocolError(f"a piece of {len(data)} bytes in a sum of elements of {size}")
            part = self._flat[self._done // size:(self._done + len(data)) // size]
            with np.errstate(over="ignore", invalid="ignore"):  # a peer may send any numbers
                np.add(part, np.frombuffer(data, self._flat.dtype), out=part)
        elif self._flat is not None:
            self._flat[self._done:self._done + len(data)] = np.frombuffer(data, np.uint8)
        self._done += len(data)
        self._left -= len(data)


def _checked_size(description: Description) -> int:
    """The bytes of an array that is announced. Nothing is allocated for it yet."""
    shape = description.shape
    if len(description.dtype) > _MAX_NAME or len(shape) > _MAX_DIMENSIONS:
        raise ProtocolError(f"an array of {len(shape)} dimensions and dtype {description.dtype[:_MAX_NAME]!r}")
    if any(not 0 <= length < 2**40 for length in shape):
        raise ProtocolError(f"an array of shape {shape}")
    nbytes = description.nbytes
    if nbytes >= 2**46 or math.prod(length or 1 for length in shape) >= 2**46:
        raise ProtocolError(f"an array of shape {shape}, {nbytes} bytes")
    return nbytes
