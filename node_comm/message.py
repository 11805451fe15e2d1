"""Typed messages: tagged msgspec structs, in a small envelope that pairs requests with replies."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

import msgspec

from node_comm.errors import CommError


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base of every message. Subclass it with typed fields; the class name is the tag on the wire."""


class Heartbeat(Message, frozen=True):
    """Says that its sender is alive, whatever it is computing."""


class Failure(Message, frozen=True):
    """The reply to a request whose handling raised, or the last word of a node that fails."""

    reason: str
    traceback: str = ""


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """`request` numbers a message that wants a reply; `reply` is the number that this one answers; 0 for none.

    `ahead` are messages that came before it, and want no reply.
    """

    request: int
    reply: int
    body: msgspec.Raw
    ahead: list[msgspec.Raw] = msgspec.field(default_factory=list)


class Codec:
    """Encodes and decodes a closed set of message types; anything else is refused."""

    def __init__(self, messages: Sequence[type[Message]]) -> None:
        self.types: tuple[type[Message], ...] = (Heartbeat, Failure, *messages)
        union: Any = functools.reduce(operator.or_, self.types)
        self._encoder = msgspec.msgpack.Encoder()
        self._envelope = msgspec.msgpack.Decoder(Envelope)
        self._body = msgspec.msgpack.Decoder(union)

    def encode(self, message: Message, request: int = 0, reply: int = 0, ahead: Sequence[Message] = ()) -> bytes:
        """The header bytes of `message`, and of those that go `ahead` of it."""
        return self._encoder.encode(Envelope(request, reply, self._raw(message), [self._raw(each) for each in ahead]))

    def _raw(self, message: Message) -> msgspec.Raw:
        if not isinstance(message, self.types):
            raise CommError(f"{type(message).__name__} is not a message of this node: "
                            f"{', '.join(kind.__name__ for kind in self.types)}")
        return msgspec.Raw(self._encoder.encode(message))

    def open(self, header: bytes) -> Envelope:
        """The envelope of a header that arrived; CommError for anything malformed."""
        try:
            return self._envelope.decode(header)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise CommError(f"malformed message: {error}") from error

    def body(self, envelope: Envelope) -> Message:
        """The message in `envelope`; CommError for an unknown type or a wrong field."""
        return self._message(envelope.body)

    def ahead(self, envelope: Envelope) -> list[Message]:
        """Those that came before it."""
        return [self._message(raw) for raw in envelope.ahead]

    def _message(self, raw: msgspec.Raw) -> Message:
        try:
            message: Message = self._body.decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise CommError(f"malformed message: {error}") from error
        return message
