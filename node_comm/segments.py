"""Shared memory without names: nothing to unlink, so nothing is left behind, whoever is killed and when.

A segment is a memfd of its owner, which other processes of the same user open through ``/proc/<pid>/fd``. Where the
system has no memfd (macOS), it is a temporary file that its owner unlinks when it closes the segment.

The owner keeps a pool of segments and uses them again and again; readers keep what they have mapped until the owner
says that a segment is gone. In a steady state nothing is opened, mapped or allocated.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import tempfile
import weakref
from collections import deque
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import msgspec
import numpy as np

from node_comm.arrays import Description, parse_dtype
from node_comm.errors import CommError, Disconnected, Unavailable

#: Whether the system has memory files without names.
NAMELESS = hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd")

#: Every array begins at a multiple of this many bytes.
ALIGNMENT = 64

_SMALLEST = mmap.PAGESIZE
_ADVICE = "Let this process have more open files (ulimit -n) or more memory (ulimit -v, vm.max_map_count)"


class Location(msgspec.Struct, frozen=True, array_like=True):
    """Bytes of a segment, as another process finds them."""

    owner: int
    number: int
    path: str
    nbytes: int
    offset: int

    def map(self) -> mmap.mmap:
        """The whole segment in this process; Disconnected when its owner is gone, Unavailable where the system refuses it."""
        try:
            descriptor = self._open()
            try:
                return mmap.mmap(descriptor, self.nbytes)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise Unavailable(f"the memory of rank {self.owner} ({self.nbytes} bytes) cannot be mapped: {error}. "
                              f"{_ADVICE}") from error

    def read(self, nbytes: int) -> bytes:
        """A copy of the first `nbytes`."""
        with self.map() as memory:
            return memory[self.offset:self.offset + nbytes]

    def _open(self) -> int:
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except (FileNotFoundError, PermissionError) as error:
            if isinstance(error, FileNotFoundError) or self._is_of_a_dead_process():
                raise Disconnected(f"the memory of rank {self.owner} is gone: its process has ended or left") from None
            raise Unavailable(f"the memory of rank {self.owner} cannot be opened ({error}): all processes of a world "
                              "must run as one user, who may open /proc/<pid>/fd") from error
        except OSError as error:
            if error.errno not in (errno.ENXIO, errno.EISDIR):  # a socket, a folder
                raise
        else:
            if os.fstat(descriptor).st_size == self.nbytes:
                return descriptor
            os.close(descriptor)
        raise Disconnected(f"the memory of rank {self.owner} is gone: {self.path} is another file now")

    def _is_of_a_dead_process(self) -> bool:
        """Whether the owner has given up its memory, but is not reaped yet: until then root owns all that it had open."""
        if not self.path.startswith("/proc/"):
            return False
        try:
            return b"VmSize" not in (Path(self.path).parents[1] / "status").read_bytes()
        except OSError as error:
            return error.errno in (errno.ENOENT, errno.ESRCH)  # reaped meanwhile


class Place(msgspec.Struct, frozen=True, array_like=True):
    """An array that others read where it lies. `live`: the owner's segments, where nobody hears otherwise that one is gone."""

    location: Location
    description: Description
    live: list[int] | None = None

    def encode(self) -> bytes:
        """For `decode` in another process."""
        return _ENCODER.encode(self)

    @staticmethod
    def decode(encoded: bytes) -> Place:
        """What was encoded; CommError where it is nothing of the kind."""
        try:
            return _DECODER.decode(encoded)
        except msgspec.MsgspecError as error:
            raise CommError(f"this is no place of an array: {error}") from None


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Place)


class Segment:
    """Memory of this process that others can map. `readers` are the ranks that may have done so.

    Raises Unavailable where the system refuses it.
    """

    def __init__(self, owner: int, number: int, nbytes: int, nameless: bool = NAMELESS) -> None:
        self.owner = owner
        self.number = number
        self.nbytes = max(nbytes, 1)
        self.readers: set[int] = set()
        self._nameless = nameless
        self._descriptor = -1
        try:
            if nameless:
                self._descriptor = os.memfd_create(f"node_comm rank {owner} number {number}")
                self.path = f"/proc/{os.getpid()}/fd/{self._descriptor}"
            else:
                self._descriptor, self.path = tempfile.mkstemp(prefix="node_comm-")
            os.ftruncate(self._descriptor, self.nbytes)
            self.memory = mmap.mmap(self._descriptor, self.nbytes)
        except OSError as error:
            self.close()
            raise Unavailable(f"rank {owner} gets no shared memory of {self.nbytes} bytes: {error}. {_ADVICE}") from error

    def location(self, offset: int) -> Location:
        """How others find the byte at `offset`."""
        return Location(self.owner, self.number, self.path, self.nbytes, offset)

    def close(self) -> None:
        """Give it back to the system, as soon as nobody has it mapped."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            if not self._nameless:
                os.unlink(self.path)


class _Allocated:
    """A segment that holds one array of the user's, for as long as a view of it lives."""

    def __init__(self, segment: Segment, dropped: deque[int]) -> None:
        self.segment = segment
        self.address = np.frombuffer(segment.memory, np.uint8).ctypes.data
        finalizer = weakref.finalize(segment.memory, dropped.append, segment.number)
        finalizer.atexit = False
        del segment.memory  # only the user's arrays keep it


class SegmentPool:
    """The segments that rank `owner` writes. `retire(segment)` is called before one of them is closed.

    At most `idle_limit` unused segments are kept; the one that was unused longest goes first.
    """

    def __init__(self, owner: int, idle_limit: int, retire: Callable[[Segment], None]) -> None:
        self._owner = owner
        self._idle_limit = idle_limit
        self._retire = retire
        self._number = 0
        self._idle: list[Segment] = []  # the one used last comes last
        self._lent: dict[int, Segment] = {}
        self._allocated: dict[int, _Allocated] = {}
        self._dropped: deque[int] = deque()  # filled by finalizers, in whatever thread drops the last array

    def lend(self, nbytes: int) -> Segment:
        """A segment of at least `nbytes`, for `give_back`."""
        self._collect()
        wanted = max(_SMALLEST, 1 << (nbytes - 1).bit_length() if nbytes else 0)
        for index in reversed(range(len(self._idle))):
            if self._idle[index].nbytes == wanted:
                segment = self._idle.pop(index)
                break
        else:
            segment = self._new(wanted)
        self._lent[segment.number] = segment
        return segment

    def give_back(self, segment: Segment) -> None:
        """`segment` may be used for something else."""
        if self._lent.pop(segment.number, None) is None:
            return  # the pool has been closed meanwhile
        self._idle.append(segment)
        if len(self._idle) > self._idle_limit:
            self._end(self._idle.pop(0))

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array in a segment of its own, which goes when the array and all its views are gone."""
        self._collect()
        segment = self._new(math.prod(shape) * dtype.itemsize)
        array: np.ndarray = np.ndarray(shape, dtype, segment.memory)
        self._allocated[segment.number] = _Allocated(segment, self._dropped)
        return array

    def find(self, array: np.ndarray) -> tuple[Segment, int] | None:
        """The segment and offset of a C-ordered array that lies in memory from `allocate`."""
        self._collect()  # the address of an array that is gone may be another's by now
        if not array.flags.c_contiguous:
            return None
        address = array.ctypes.data
        for allocated in self._allocated.values():
            offset = address - allocated.address
            if 0 <= offset <= allocated.segment.nbytes - array.nbytes:
                return allocated.segment, offset
        return None

    def place_for(self, array: np.ndarray) -> tuple[Segment, int, bool]:
        """The segment and offset of `array`, or of a segment that is lent for it; and whether it is lent."""
        found = self.find(array)
        return (*found, False) if found is not None else (self.lend(array.nbytes), 0, True)

    def view(self, location: Location, description: Description) -> np.ndarray:
        """An array in a segment that is lent at present."""
        return view(self._lent[location.number].memory, location.offset, description)

    @property
    def numbers(self) -> list[int]:
        """Of all segments that there are."""
        return [*(segment.number for segment in self._idle), *self._lent, *self._allocated]

    def close(self) -> None:
        """Close every segment; arrays from `allocate` stay valid."""
        for segment in [*self._idle, *self._lent.values(), *(entry.segment for entry in self._allocated.values())]:
            segment.close()
        self._idle.clear()
        self._lent.clear()
        self._allocated.clear()

    def _new(self, nbytes: int) -> Segment:
        self._number += 1
        return Segment(self._owner, self._number, nbytes)

    def _collect(self) -> None:
        """Close the segments of arrays that nobody has any more."""
        while self._dropped:
            allocated = self._allocated.pop(self._dropped.popleft(), None)
            if allocated is not None:
                self._end(allocated.segment)

    def _end(self, segment: Segment) -> None:
        self._retire(segment)
        segment.close()


class Mappings:
    """Segments of other ranks, mapped into this process until their owner says that they are gone."""

    def __init__(self) -> None:
        self._mapped: dict[tuple[int, int], mmap.mmap] = {}

    def view(self, location: Location, description: Description) -> np.ndarray:
        """The array at `location`; Disconnected when the owner is gone."""
        key = (location.owner, location.number)
        if key not in self._mapped:
            self._mapped[key] = location.map()
        return view(self._mapped[key], location.offset, description)

    def read(self, place: Place) -> np.ndarray:
        """The array at `place`, read-only; Disconnected when the owner is gone."""
        if place.live is not None:
            self.keep(place.location.owner, place.live)
        array = self.view(place.location, place.description)
        array.flags.writeable = False
        return array

    def forget(self, owner: int, number: int) -> None:
        """A segment is gone."""
        self._mapped.pop((owner, number), None)

    def keep(self, owner: int, numbers: Collection[int]) -> None:
        """All but these segments of a rank are gone."""
        for key in [key for key in self._mapped if key[0] == owner and key[1] not in numbers]:
            del self._mapped[key]

    def forget_owner(self, owner: int) -> None:
        """A rank is gone."""
        for key in [key for key in self._mapped if key[0] == owner]:
            del self._mapped[key]

    def close(self) -> None:
        """Unmap all."""
        self._mapped.clear()


def view(memory: mmap.mmap, offset: int, description: Description) -> np.ndarray:
    """The array of that description at that offset."""
    array: np.ndarray = np.ndarray(description.shape, parse_dtype(description.dtype), memory, offset)
    return array


def offsets(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Aligned offsets for arrays of `sizes` bytes one after the other, and the bytes of all."""
    begins, end = [], 0
    for nbytes in sizes:
        begins.append(end)
        end += -(-nbytes // ALIGNMENT) * ALIGNMENT
    return begins, end
