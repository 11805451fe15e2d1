"""A client's end of a star over gRPC: one stream, which the client opens, so that only the server needs an address.

Importing this module loads grpc.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import ssl
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import msgspec

from node_comm.errors import CommError, Disconnected, ProtocolError, Unavailable
from node_comm.grpc_channel import CLIENT_OPTIONS, METHOD, SERVICE, VERSION, Certificates
from node_comm.link import is_cancelled
from node_comm.star import Star
from node_comm.transport import Transport

logger = logging.getLogger(__name__)

SERVER = 0
#: Seconds between two attempts: at first, and at most. Each is drawn from half of that upwards, lest all come at once.
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 10.0
#: Seconds that a server may take to read all that was written, once a client leaves.
CLOSE_SECONDS = 20.0
#: Seconds that one attempt may take.
ATTEMPT_SECONDS = 10.0

#: Answers of a server that another try would not change. ABORTED ends a stream that it had taken, of which gRPC may show nothing
#: but the end.
_FINAL = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.FAILED_PRECONDITION,
          grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ABORTED)
_TLS = re.compile(r"ssl|tls|certificate|handshake|peer name|hostname", re.IGNORECASE)


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """How a client reaches its server, and who it says it is.

    `patience` is how long it tries again, in seconds, when the server is not there (None: for ever).
    """

    address: str
    name: str
    certificates: Certificates = Certificates()
    #: TLS, with the system's authorities where `certificates` names none. None: where it names some.
    secure: bool | None = None
    token: str | None = None
    patience: float | None = 60.0
    most_bytes: int = 1 << 34
    #: Arrays travel zipped with this level of zstandard, where that makes them smaller.
    zip_level: int | None = None


class Refused(Unavailable):
    """The server does not let this client in; trying again would change nothing."""


class _Stream(NamedTuple):
    """A stream, and what the server has said at its beginning: `received` are the frames that it has of this client."""

    channel: grpc.aio.Channel
    call: Any
    rank: int
    session: str
    received: int
    patience: float

    async def close(self) -> None:
        self.call.cancel()
        await self.channel.close()


class GrpcClient(Star):
    """A rank above 0. `connect` makes it.

    A connection that is cut is made anew, and messages go on where they were, as long as the server waits for that. It is
    `recoverable`: after the loss of the server, `recover` begins anew, under another rank.
    """

    recoverable = True

    def __init__(self, way: Way, stream: _Stream) -> None:
        super().__init__(stream.rank, way.zip_level)
        self.size = stream.rank + 1
        self._way = way
        self._stream = stream
        self._leaving = False
        self._server = self._joined(SERVER, way.most_bytes)
        self._server.attach(stream.call.write, stream.received)
        self._reading = asyncio.ensure_future(self._read())

    def drop(self, rank: int, reason: str) -> None:
        """See Star."""
        self._leaving = True
        self._stream.call.cancel()
        self._lost(rank, reason)

    async def close(self) -> None:
        """Leave the server, once what was written has gone."""
        if self._closed:
            return
        self._closed = self._leaving = True
        self._mailbox.fail(lambda: Disconnected("this client has been closed"))
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._server.say_farewell()
                await self._stream.call.done_writing()
                await asyncio.wait({self._reading})
        except (TimeoutError, Disconnected, grpc.RpcError, asyncio.InvalidStateError):
            logger.debug("the stream had ended before")
        except asyncio.CancelledError:
            if is_cancelled():
                raise
        finally:  # also for who does not wait any longer: the server would take this client for one that is there
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
            self._lost(SERVER, "this client has been closed")
            await self._stream.close()

    async def recover(self) -> Transport:
        """See Transport: connect anew. Raises what `connect` raises."""
        await self.close()
        return await connect(self._way)

    async def _read(self) -> None:
        """Read one stream after the other."""
        why = None
        try:
            while why is None:
                why, cut = await self._read_stream()
                if why is None:
                    self._server.detach()
                    why = await self._resume(cut)
        except Exception as error:  # nobody else looks at what becomes of this task
            logger.exception("this client cannot go on")
            self._stream.call.cancel()
            why = f"this client cannot go on: {error!r}"
        self._mailbox.fail(lambda: Disconnected(why))
        self._lost(SERVER, why)  # last, as `on_lost` may raise

    async def _read_stream(self) -> tuple[str | None, str]:
        """Read to the end of the stream: why it was the last one, or None and how it was cut."""
        call, cut = self._stream.call, "it was cut"
        try:
            while (frame := await call.read()) is not grpc.aio.EOF:
                await self._arrived(self._server, frame)
        except CommError as error:
            call.cancel()
            return f"the server does not keep the protocol: {error}", ""
        except grpc.RpcError as error:
            cut = str(error.details())
        except asyncio.CancelledError:
            if is_cancelled():
                raise
        code = await call.code()
        if code in (grpc.StatusCode.OK, grpc.StatusCode.ABORTED):
            return f"the server has ended the connection: {await call.details() or 'no reason given'}", ""
        return ("this client has left", "") if self._leaving else (None, cut)

    async def _resume(self, cut: str) -> str | None:
        """Open the next stream, and go on where the last one was cut. Returns why not, where that cannot be."""
        old, why = self._stream, f"the connection to the server was lost: {cut}"
        logger.info("the connection was cut (%s); making it anew", cut)
        await old.close()
        deadline = time.monotonic() + old.patience
        pause = FIRST_PAUSE / 2
        while time.monotonic() < deadline and not self._leaving:
            try:
                self._stream = await _open(self._way, old.session, self._server.received)
                self._server.attach(self._stream.call.write, self._stream.received)
                return None
            except (Refused, ProtocolError) as error:
                return f"{why}; {error}"
            except Unavailable as error:
                logger.debug("not yet: %s", error)
            await asyncio.sleep(random.uniform(pause / 2, pause))
            pause = min(2 * pause, LONGEST_PAUSE / 10)
        return why


async def connect(way: Way) -> GrpcClient:
    """Open the stream, and try again with growing pauses while the server is not there.

    Raises Refused where the server says no, or TLS fails; Unavailable after `way.patience` seconds, and at once for
    certificates that cannot be used.
    """
    way.certificates.read()
    deadline = None if way.patience is None else time.monotonic() + way.patience
    pause, said = FIRST_PAUSE, ""
    while True:
        try:
            return GrpcClient(way, await _open(way))
        except Refused:
            raise
        except Unavailable as error:
            if str(error) != said:
                said = str(error)
                logger.info("%s; trying again", said)
            waiting = random.uniform(pause / 2, pause)
            if deadline is not None and time.monotonic() + waiting > deadline:
                raise Unavailable(f"no connection to {way.address} within {way.patience:g} s: {error}") from None
            await asyncio.sleep(waiting)
            pause = min(2 * pause, LONGEST_PAUSE)


async def _open(way: Way, session: str = "", received: int = 0) -> _Stream:
    """Open a stream: the first one, or the next one of a `session` of which so many frames have been received."""
    channel = _channel(way)
    metadata = [("client", way.name), ("version", VERSION)]
    if way.token is not None:
        metadata.append(("authorization", f"Bearer {way.token}"))
    if session:
        metadata += [("session", session), ("received", str(received))]
    call = channel.stream_stream(f"/{SERVICE}/{METHOD}")(metadata=metadata)
    try:
        async with asyncio.timeout(ATTEMPT_SECONDS):
            told = {key: value for key, value in await call.initial_metadata() or ()}
            if "rank" not in told:
                await call.read()  # raises what the server has to say
        return _Stream(channel, call, int(told["rank"]), str(told["session"]), int(told["received"]), float(told["patience"]))
    except (grpc.RpcError, TimeoutError, KeyError, ValueError) as error:
        reason = await _reason(way, call, error)
        call.cancel()
        await channel.close()
        raise reason from None


def _channel(way: Way) -> grpc.aio.Channel:
    if not _is_secure(way):
        return grpc.aio.insecure_channel(way.address, options=CLIENT_OPTIONS)
    ca, cert, key = way.certificates.read()
    credentials = grpc.ssl_channel_credentials(ca, key, cert)
    return grpc.aio.secure_channel(way.address, credentials, options=CLIENT_OPTIONS)


def _is_secure(way: Way) -> bool:
    return bool(way.certificates) if way.secure is None else way.secure


async def _reason(way: Way, call: Any, error: BaseException) -> Unavailable:
    """What to tell a person, and whether it is worth another try."""
    if not isinstance(error, grpc.RpcError):
        return Unavailable(f"no answer within {ATTEMPT_SECONDS:g} s; if the server uses TLS, this client needs `tls` as well")
    code, details = await call.code(), await call.details() or ""
    if code in _FINAL:
        return Refused(f"the server refuses this client: {details}")
    if code is grpc.StatusCode.UNAVAILABLE and _TLS.search(details):
        return Refused(f"TLS: {details}")
    # Twice, as a server that dies at that moment hangs up as well.
    if code is grpc.StatusCode.UNAVAILABLE and _is_secure(way) and await _is_turned_away(way) and await _is_turned_away(way):
        return Refused(f"TLS: the server ends the connection: {_certificate(way)}")
    return Unavailable(details or code.name)


async def _is_turned_away(way: Way) -> bool:
    """Whether the server hangs up once it has seen this client's certificate. gRPC tells neither side more than that."""
    certificates = way.certificates
    context = ssl.create_default_context(cafile=certificates.ca)
    context.set_alpn_protocols(["h2"])
    host, _, port = way.address.rpartition(":")
    try:
        if certificates.cert is not None:
            context.load_cert_chain(certificates.cert, certificates.key)
        async with asyncio.timeout(ATTEMPT_SECONDS):
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port), ssl=context)
            try:
                return not await reader.read(1)  # a server that has nothing against this client speaks first
            finally:
                writer.close()
    except (OSError, TimeoutError) as error:
        logger.debug("%s says nothing: %s", way.address, error)
    return False


def _certificate(way: Way) -> str:
    """What may be wrong with the certificate of this client."""
    from cryptography import x509  # with grpc in the extra, and needed for this sentence alone

    path = way.certificates.cert
    if path is None:
        return "it wants a certificate, and this client has none; give transport.tls.cert and key"
    certificate = x509.load_pem_x509_certificate(Path(path).read_bytes())
    until = certificate.not_valid_after_utc
    if until < datetime.now(UTC):
        return f"the certificate {path} has expired on {until:%Y-%m-%d}"
    return (f"it does not take the certificate {path} (issued by {certificate.issuer.rfc4514_string()}); is that the authority "
            "which the server trusts?")
