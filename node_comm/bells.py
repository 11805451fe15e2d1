"""Bells: what a rank's thread sleeps by, and what the other ranks of its machine wake it with.

A bell is a pipe. Other processes of the same user open it through ``/proc/<pid>/fd``, so that it has no name that a killed
process could leave behind. It carries no message: who is rung looks whether there is something for it.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

_BOOT = Path("/proc/sys/kernel/random/boot_id")
#: Far more than a bell holds between two looks; what is left rings once more, which does no harm.
_DRAIN_BYTES = 1 << 16
#: What select takes: descriptors below it (FD_SETSIZE).
_SELECTABLE = 1024


class Location(msgspec.Struct, frozen=True, array_like=True):
    """Where others find a bell. The path alone could lead to another pipe, of another container or machine."""

    boot: str
    path: str
    device: int
    inode: int


class Bells:
    """This rank's own bell, and those of other ranks as far as this one can ring them.

    `ring` is for any thread; `wait` and `ring_others` are for the one that sleeps.
    """

    def __init__(self, others: Mapping[int, int] | None = None, own: tuple[int, int] | None = None) -> None:
        """`others`: descriptors of other ranks' bells, by rank; `own`: both ends of this rank's. This object owns all of them."""
        self._others = dict(others or {})
        self._ear, self._rope = own or os.pipe()
        #: Whether every other rank rings this one, so that nothing new is missed by sleeping. Who arranges it says so.
        self.is_rung_by_all = False
        for descriptor in (self._ear, self._rope):
            os.set_blocking(descriptor, False)

    def location(self) -> Location | None:
        """For the other ranks; None where a process cannot open what another one has."""
        if not _BOOT.exists():
            return None
        status = os.fstat(self._rope)
        return Location(_BOOT.read_text().strip(), f"/proc/{os.getpid()}/fd/{self._rope}", status.st_dev, status.st_ino)

    def reach(self, locations: Sequence[Location | None]) -> bool:
        """Open the bells of the world's ranks, by rank, this one's among them; False if some cannot be rung from here."""
        mine = self.location()
        for rank, location in enumerate(locations):
            if location is not None and mine is not None and location != mine and location.boot == mine.boot:
                descriptor = _opened(location)
                if descriptor is not None:
                    self._others[rank] = descriptor
        return len(self._others) == len(locations) - 1

    def ring(self) -> None:
        """Wake the thread that sleeps by this rank's bell, now or when it next wants to sleep."""
        _pull(self._rope)

    def ring_others(self, ranks: Iterable[int] | None) -> None:
        """Wake `ranks` (None: all), as far as they can be rung from here."""
        for rank in self._others if ranks is None else ranks:
            if rank in self._others:
                _pull(self._others[rank])

    def wait(self, seconds: float | None) -> bool:
        """Sleep until somebody rings, or `seconds` have passed; whether somebody rang."""
        if not _is_rung(self._ear, seconds):
            return False
        os.read(self._ear, _DRAIN_BYTES)
        return True

    def of_survivors(self, ranks: Sequence[int]) -> Bells:
        """The bells of the world that follows this one, in which rank k is `ranks[k]` of this one. Takes all from this object."""
        successor = Bells({new: self._others.pop(old) for new, old in enumerate(ranks) if old in self._others},
                          (self._ear, self._rope))
        successor.is_rung_by_all = self.is_rung_by_all
        self._ear = self._rope = -1
        self.close()
        return successor

    def close(self) -> None:
        """Give everything back; nobody may sleep by it any more."""
        for descriptor in (self._ear, self._rope, *self._others.values()):
            if descriptor >= 0:
                os.close(descriptor)
        self._ear = self._rope = -1
        self._others.clear()


def _opened(location: Location) -> int | None:
    """A descriptor to ring with; None if what is there cannot be opened, or is another pipe."""
    try:
        descriptor = os.open(location.path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    status = os.fstat(descriptor)
    if (status.st_dev, status.st_ino) == (location.device, location.inode):
        return descriptor
    os.close(descriptor)
    return None


def _is_rung(ear: int, seconds: float | None) -> bool:
    if ear < _SELECTABLE:
        return bool(select.select([ear], [], [], seconds)[0])
    poll = select.poll()  # which sleeps a millisecond at least
    poll.register(ear, select.POLLIN)
    return bool(poll.poll(None if seconds is None else 1e3 * seconds))


def _pull(rope: int) -> None:
    # A full bell rings anyway; that of a process that has ended is heard by nobody.
    with contextlib.suppress(BlockingIOError, BrokenPipeError):
        os.write(rope, b"\0")
