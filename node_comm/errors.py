"""Everything that node_comm raises.

    CommError                       one class to catch
    +-- AddressError                no such rank or node
    +-- BufferMismatch              a buffer's dtype, shape or memory order does not fit
    +-- Unavailable                 the transport cannot work here (no MPI, wrong launcher, ...)
    +-- ProtocolError               a peer does not keep to the protocol
    +-- Timeout                     a peer did not answer in time
    +-- Disconnected                a peer is gone, or this end has been closed
        +-- PeerFailed              a rank of a world of processes died or raised
"""

from __future__ import annotations

import signal


class CommError(Exception):
    """Base of every error of the communication layer."""


class AddressError(CommError):
    """A rank or a node name that does not exist in this world."""


class BufferMismatch(CommError):
    """A buffer cannot be sent, or does not fit what arrives; the message names both descriptions."""


class Unavailable(CommError):
    """The transport cannot be used here; the message says what is missing and what to do."""


class ProtocolError(CommError):
    """What a peer sends does not keep to the protocol; the peer is let go."""


class Timeout(CommError):
    """A peer did not answer in the time allowed."""


class Disconnected(CommError):
    """The peer has gone, or this end of the transport has been closed."""


class PeerFailed(Disconnected):
    """A rank's process has ended before its work was done.

    Attributes: `rank`; `exitcode`, negative for a signal; `traceback`, the text of its own, empty where there is none.
    """

    def __init__(self, rank: int, exitcode: int, traceback: str = "") -> None:
        self.rank = rank
        self.exitcode = exitcode
        self.traceback = traceback
        details = f"; its traceback:\n{traceback.rstrip()}" if traceback else ""
        super().__init__(f"rank {rank} {self.reason}{details}")

    @property
    def reason(self) -> str:
        """How it ended, e.g. ``was killed by SIGKILL``."""
        if self.exitcode >= 0:
            return f"ended too early with exit code {self.exitcode}"
        known = {number.value for number in signal.Signals}
        name = signal.Signals(-self.exitcode).name if -self.exitcode in known else f"signal {-self.exitcode}"
        return f"was killed by {name}"

    def __reduce__(self) -> tuple[type[PeerFailed], tuple[int, int, str]]:
        return type(self), (self.rank, self.exitcode, self.traceback)
