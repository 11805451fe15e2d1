"""The server's end of a star over gRPC: it listens, and says who may come in.

Importing this module loads grpc.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import grpc
import msgspec

from node_comm.errors import CommError, Disconnected, Unavailable
from node_comm.grpc_channel import METHOD, SERVER_OPTIONS, SERVICE, VERSION, Certificates
from node_comm.link import Link
from node_comm.star import Star

logger = logging.getLogger(__name__)

#: A client of a name that is taken replaces the one that has it, once that has been silent for so long (seconds).
REPLACE_AFTER = 12.0
#: How long streams may take to end when the server closes (seconds).
GRACE = 2.0
#: Of so many clients that have gone the names are kept, for what is still to be said about them.
NAMES_KEPT = 1000


class Door(msgspec.Struct, frozen=True, kw_only=True):
    """Where a server listens, and whom it lets in.

    `names` are those that may come (None: anyone). `token` is one secret for all, `tokens` one for each name. With `ca` in
    `certificates`, clients must show a certificate of that authority, made out to the name under which they come.
    `most_bytes` is the largest array that is taken of a client that was asked for one of unknown size.
    """

    address: str
    certificates: Certificates = Certificates()
    token: str | None = None
    tokens: Mapping[str, str] = {}
    names: Sequence[str] | None = None
    most_bytes: int = 1 << 30
    #: How long a client whose connection is cut may take to come back, and go on in the middle of a message.
    resume_seconds: float = 10.0
    #: Arrays travel zipped with this level of zstandard, where that makes them smaller.
    zip_level: int | None = None

    def refusal(self, name: str, token: str, certified: Sequence[str]) -> str:
        """Why a client does not come in; empty where it does. `certified` are the names in its certificate."""
        if not name or len(name) > 200 or not name.isprintable():
            return "it gives no name"
        if self.names is not None and name not in self.names:
            return f"{name!r} is not on the list of clients"
        wanted = self.tokens.get(name, self.token)
        if (wanted is not None or self.tokens) and not hmac.compare_digest(token.encode(), (wanted or "").encode() or b"\0"):
            return "its token is wrong" if token else "it shows no token"
        if self.certificates.ca and name not in certified:
            return f"its certificate is made out to {', '.join(certified) or 'nobody'}, not to {name!r}"
        return ""


class _Guest:
    """A client, from its first stream to its last."""

    def __init__(self, name: str, link: Link) -> None:
        self.name = name
        self.link = link
        self.session = secrets.token_urlsafe()
        self.ending: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        #: Of the stream that there is: who reads it, and what is done when another one takes its place.
        self.reading: asyncio.Task[str] | None = None
        self.replaced: asyncio.Future[None] | None = None
        self.expiry: asyncio.TimerHandle | None = None


class GrpcServer(Star):
    """Rank 0. `open` makes it; it belongs to the event loop that called it. `size` grows with each client that comes."""

    def __init__(self, door: Door) -> None:
        super().__init__(0, door.zip_level)
        self.size = 1
        self._door = door
        self._names: dict[int, str] = {}
        self._gone: deque[int] = deque()  # the ranks that have gone whose names are kept, oldest first
        self._guests: dict[int, _Guest] = {}  # by rank
        self._server: grpc.aio.Server | None = None

    @classmethod
    async def open(cls, door: Door) -> GrpcServer:
        """Listen. Raises Unavailable for an address that is taken, or is none, and for certificates that cannot be used."""
        ca, cert, key = door.certificates.read()
        if ca is not None and cert is None:
            raise Unavailable(f"TLS: a server needs a cert and key of its own; given is ca={door.certificates.ca} alone")
        transport = cls(door)
        server = grpc.aio.server(options=SERVER_OPTIONS)
        handler = grpc.stream_stream_rpc_method_handler(transport._serve)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
        try:
            if door.certificates:
                credentials = grpc.ssl_server_credentials([(key, cert)], ca, require_client_auth=ca is not None)
                server.add_secure_port(door.address, credentials)
            else:
                server.add_insecure_port(door.address)
        except RuntimeError as error:
            await server.stop(None)
            raise Unavailable(f"cannot listen on {door.address}: the address is in use by another program, or is not one of "
                              f"this machine ({error})") from None
        await server.start()
        transport._server = server
        return transport

    def name(self, rank: int) -> str:
        """The name under which `rank` has come."""
        return self._names.get(rank) or super().name(rank)

    def drop(self, rank: int, reason: str) -> None:
        """See Star. The client is told the reason, behind what was sent to it before."""
        guest = self._guests.get(rank)
        if guest is not None and not guest.ending.done():
            guest.ending.set_result(reason)
            if guest.replaced is None:  # there is no stream that could end
                self._end(guest, reason)

    async def close(self) -> None:
        """Stop listening, and end all streams."""
        if self._closed:
            return
        self._closed = True
        self._mailbox.fail(lambda: Disconnected("this server has been closed"))
        for rank in list(self._guests):
            self.drop(rank, "the server has been closed")
        if self._server is not None:
            await self._server.stop(GRACE)

    async def _serve(self, frames: AsyncIterator[bytes], context: Any) -> None:
        """One stream, from its first to its last frame."""
        metadata = {key: value for key, value in context.invocation_metadata() or ()}
        name = str(metadata.get("client", ""))
        session = str(metadata.get("session", ""))
        code, reason = self._refusal(name, metadata, context)
        if reason:
            logger.warning("refused a client (%s from %s): %s", name[:200] or "without a name", context.peer(), reason)
            await context.abort(code, reason)
        guest = self._known(name, session) if session else self._newcomer(name)
        if guest is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "its session is over")
        assert guest is not None
        why = await self._stream(guest, frames, context, str(metadata.get("received", "0")))
        if why is not None:
            self._end(guest, why)
            if why and not self._closed:
                await context.abort(grpc.StatusCode.ABORTED, why)

    async def _stream(self, guest: _Guest, frames: AsyncIterator[bytes], context: Any, has: str) -> str | None:
        """Serve a guest over this stream; returns why it was the last one, or None where another may come."""
        link = guest.link
        # First of all: while this one waits, the next may come, or the time for it run out.
        before, mine = guest.replaced, asyncio.get_running_loop().create_future()
        guest.replaced = mine
        if before is not None and not before.done():
            before.set_result(None)
        if guest.expiry is not None:
            guest.expiry.cancel()
        try:
            if guest.reading is not None:
                guest.reading.cancel()
                await asyncio.gather(guest.reading, return_exceptions=True)  # what it has read is counted now
            # Before anybody can write to it: gRPC allows one write at a time.
            await context.send_initial_metadata((
                ("rank", str(link.peer)), ("version", VERSION), ("session", guest.session), ("received", str(link.received)),
                ("patience", str(self._door.resume_seconds))))
            if mine.done():
                return None
            link.attach(context.write, int(has) if has.isdecimal() else -1)
            reading = guest.reading = asyncio.create_task(self._read(link, frames))
            try:
                await asyncio.wait({reading, guest.ending, mine}, return_when=asyncio.FIRST_COMPLETED)
                if guest.ending.done():
                    with suppress(TimeoutError):
                        async with asyncio.timeout(GRACE):
                            await link.flush()
                    return guest.ending.result()
                if not mine.done() and (link.has_left or reading.result()):
                    return reading.result()
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
        except CommError as error:
            return f"protocol: {error}"
        finally:
            if guest.replaced is mine:  # gRPC cancels this coroutine where a connection is lost
                self._suspend(guest)
        return None

    def _suspend(self, guest: _Guest) -> None:
        """The stream of a guest has ended. It may come back for a while, unless it was let go."""
        guest.replaced = None
        guest.link.detach()
        if guest.ending.done():
            self._end(guest, guest.ending.result())
        elif guest.link.peer in self._guests:
            guest.expiry = asyncio.get_running_loop().call_later(self._door.resume_seconds, self._end, guest,
                                                                 "its connection was lost")

    def _end(self, guest: _Guest, reason: str) -> None:
        if guest.expiry is not None:
            guest.expiry.cancel()
        if self._guests.pop(guest.link.peer, None) is not None:
            self._gone.append(guest.link.peer)
            while len(self._gone) > NAMES_KEPT:
                del self._names[self._gone.popleft()]
        self._lost(guest.link.peer, reason)

    def _known(self, name: str, session: str) -> _Guest | None:
        for guest in self._guests.values():
            if guest.name == name and hmac.compare_digest(guest.session.encode(), session.encode()):
                logger.info("%s (rank %d) is back, and goes on where its connection was cut", name, guest.link.peer)
                return guest
        return None

    def _newcomer(self, name: str) -> _Guest:
        rank, self.size = self.size, self.size + 1
        self._names[rank] = name
        guest = self._guests[rank] = _Guest(name, self._joined(rank, self._door.most_bytes))
        return guest

    async def _read(self, link: Link, frames: AsyncIterator[bytes]) -> str:
        """Read until the end of the stream; returns what was wrong with what came, if something was."""
        try:
            async for frame in frames:
                await self._arrived(link, frame)
        except CommError as error:
            logger.warning("%s (rank %d) breaks the protocol: %s", self.name(link.peer), link.peer, error)
            return f"protocol: {error}"
        except grpc.RpcError as error:
            logger.debug("%s (rank %d): %s", self.name(link.peer), link.peer, error)
        except Exception as error:  # where the client came back, it would send the same again
            logger.exception("%s (rank %d): what it sends cannot be taken", self.name(link.peer), link.peer)
            return f"the server cannot go on: {error!r}"
        return ""

    def _refusal(self, name: str, metadata: Mapping[str, Any], context: Any) -> tuple[Any, str]:
        codes = grpc.StatusCode
        if metadata.get("version") != VERSION:
            return codes.FAILED_PRECONDITION, (f"protocol version {metadata.get('version')} meets {VERSION} here: install the "
                                               "same version on both sides")
        certified = list(dict.fromkeys(
            text.decode(errors="replace") for key in ("x509_common_name", "x509_subject_alternative_name")
            for text in (context.auth_context() or {}).get(key, ())))
        token = str(metadata.get("authorization", "")).removeprefix("Bearer ")
        refusal = self._door.refusal(name, token, certified)
        if refusal:
            return codes.PERMISSION_DENIED, refusal
        if self._closed:
            return codes.UNAVAILABLE, "the server is closing"
        if "session" in metadata:
            return codes.OK, ""
        for rank, guest in list(self._guests.items()):
            if guest.name == name:
                if guest.replaced is not None and self.silence(rank) < REPLACE_AFTER:
                    return codes.ALREADY_EXISTS, f"{name!r} is connected already"
                reason = "its connection was lost, or silent, and a client of its name has come"
                self.drop(rank, reason)
                self._end(guest, reason)  # at once: it is not waited for until it hears so, as the other one says hello meanwhile
        return codes.OK, ""
