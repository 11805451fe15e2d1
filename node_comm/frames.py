"""The frames in the queues between processes: messages, collectives step by step, and the lives of the processes."""

from __future__ import annotations

import msgspec

from node_comm.agreement import Call
from node_comm.arrays import Description
from node_comm.segments import Location


class Frame(msgspec.Struct, frozen=True, array_like=True, tag=True, kw_only=True):
    """What travels in the queues."""

    source: int


class Post(Frame, frozen=True, array_like=True, tag=True, kw_only=True):
    """A message; its payload is inline (`data`) or at `place`, for an acknowledgement of `number`."""

    header: bytes
    description: Description | None = None
    data: bytes = b""
    place: Location | None = None
    number: int = 0


class Taken(Frame, frozen=True, array_like=True, tag=True, kw_only=True):
    """The payload of message `number` has been copied."""

    number: int


class Enter(Frame, frozen=True, array_like=True, tag=True, kw_only=True):
    """A rank enters collective `number`; its parts lie at `places`."""

    number: int
    call: Call
    places: tuple[Location, ...]


class Verdict(Frame, frozen=True, array_like=True, tag=True, kw_only=True):
    """All have entered collective `number`: the problem, or where the parts of every rank lie."""

    number: int
    problem: str
    places: tuple[tuple[Location, ...], ...]


class Done(Frame, frozen=True, array_like=True, tag=True, kw_only=True):
    """A rank has read and written all that it has to for collective `number`."""

    number: int


class Finished(Frame, frozen=True, array_like=True, tag=True, kw_only=True):
    """All are done with collective `number`."""

    number: int


class Forget(Frame, frozen=True, array_like=True, tag=True, kw_only=True):
    """Segment `number` of its sender is gone."""

    number: int


class Goodbye(Frame, frozen=True, array_like=True, tag=True, kw_only=True):
    """The sender has closed its transport; `completed` is the last collective that it completed."""

    completed: int


class Hello(Frame, frozen=True, array_like=True, tag=True, kw_only=True):
    """A child is ready."""


class Failed(Frame, frozen=True, array_like=True, tag=True, kw_only=True):
    """A piece of a child's traceback; `last` with the last one. `disconnected`: a peer was gone, who may be to blame."""

    text: str
    last: bool
    disconnected: bool


class Ended(Frame, frozen=True, array_like=True, tag=True, kw_only=True):
    """The parent's note to itself: the process of `source` has ended, and this is behind all that it ever sent."""

    exitcode: int


Report = Hello | Failed | Ended

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(
    Post | Taken | Enter | Verdict | Done | Finished | Forget | Goodbye | Hello | Failed | Ended).decode
