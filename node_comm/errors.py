"""Everything that node_comm raises.

    CommError                       one class to catch
    +-- AddressError                no such rank or node
    +-- BufferMismatch              a buffer's dtype, shape or memory order does not fit
    +-- Unavailable                 the transport cannot work here (no MPI, wrong launcher, ...)
    +-- Timeout                     a peer did not answer in time
    +-- Disconnected                a peer is gone, or this end has been closed
"""


class CommError(Exception):
    """Base of every error of the communication layer."""


class AddressError(CommError):
    """A rank or a node name that does not exist in this world."""


class BufferMismatch(CommError):
    """A buffer cannot be sent, or does not fit what arrives; the message names both descriptions."""


class Unavailable(CommError):
    """The transport cannot be used here; the message says what is missing and what to do."""


class Timeout(CommError):
    """A peer did not answer in the time allowed."""


class Disconnected(CommError):
    """The peer has gone, or this end of the transport has been closed."""
