"""A client's end of a star over gRPC: one stream, which the client opens, so that only the server needs an address.

Importing this module loads grpc.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from typing import Any

import grpc
import msgspec

from node_comm.errors import CommError, Disconnected, Unavailable
from node_comm.grpc_channel import CLIENT_OPTIONS, METHOD, SERVICE, VERSION, Certificates
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


class Refused(Unavailable):
    """The server does not let this client in; trying again would change nothing."""


class GrpcClient(Star):
    """A rank above 0. `connect` makes it. It is `recoverable`: after a loss, `recover` connects anew, under another rank."""

    recoverable = True

    def __init__(self, way: Way, channel: grpc.aio.Channel, call: Any, rank: int) -> None:
        super().__init__(rank)
        self.size = rank + 1
        self._way = way
        self._channel = channel
        self._call = call
        self._reading = asyncio.ensure_future(self._read(self._joined(SERVER, call.write, way.most_bytes)))

    def drop(self, rank: int, reason: str) -> None:
        """See Star."""
        self._call.cancel()
        self._lost(rank, reason)

    async def close(self) -> None:
        """Leave the server, once what was written has gone."""
        if self._closed:
            return
        self._closed = True
        self._mailbox.fail(lambda: Disconnected("this client has been closed"))
        try:
            async with asyncio.timeout(1.0):
                await self._call.done_writing()
        except (TimeoutError, grpc.RpcError, asyncio.InvalidStateError):
            logger.debug("the stream had ended before")
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
        await asyncio.wait({self._reading}, timeout=CLOSE_SECONDS)
        self._reading.cancel()
        self._call.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._channel.close()

    async def recover(self) -> Transport:
        """See Transport: connect anew. Raises what `connect` raises."""
        await self.close()
        return await connect(self._way)

    async def _read(self, link: Any) -> None:
        why = "the server has ended the connection"
        try:
            while (frame := await self._call.read()) is not grpc.aio.EOF:
                await self._arrived(link, frame)
            if details := await self._call.details():
                why = f"the server has ended the connection: {details}"
        except grpc.RpcError as error:
            why = f"the connection to the server was lost: {error.details()}"
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            why = "the connection to the server was cut"  # gRPC's way to say that the call has been cancelled
        except CommError as error:
            why = f"the server does not keep the protocol: {error}"
            self._call.cancel()
        self._lost(SERVER, why)
        self._mailbox.fail(lambda: Disconnected(why))


async def connect(way: Way) -> GrpcClient:
    """Open the stream, and try again with growing pauses while the server is not there.

    Raises Refused where the server says no, or TLS fails; Unavailable after `way.patience` seconds.
    """
    deadline = None if way.patience is None else time.monotonic() + way.patience
    pause, said = FIRST_PAUSE, ""
    while True:
        try:
            return await _attempt(way)
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


async def _attempt(way: Way) -> GrpcClient:
    channel = _channel(way)
    metadata = [("client", way.name), ("version", VERSION)]
    if way.token is not None:
        metadata.append(("authorization", f"Bearer {way.token}"))
    call = channel.stream_stream(f"/{SERVICE}/{METHOD}")(metadata=metadata)
    try:
        async with asyncio.timeout(ATTEMPT_SECONDS):
            told = {key: value for key, value in await call.initial_metadata() or ()}
            if "rank" not in told:
                await call.read()  # raises what the server has to say
        return GrpcClient(way, channel, call, int(told["rank"]))
    except (grpc.RpcError, TimeoutError, KeyError, ValueError) as error:
        reason = await _reason(call, error)
        call.cancel()
        await channel.close()
        raise reason from None


def _channel(way: Way) -> grpc.aio.Channel:
    if not (way.certificates if way.secure is None else way.secure):
        return grpc.aio.insecure_channel(way.address, options=CLIENT_OPTIONS)
    ca, cert, key = way.certificates.read()
    credentials = grpc.ssl_channel_credentials(ca, key, cert)
    return grpc.aio.secure_channel(way.address, credentials, options=CLIENT_OPTIONS)


async def _reason(call: Any, error: BaseException) -> Unavailable:
    """What to tell a person, and whether it is worth another try."""
    if not isinstance(error, grpc.RpcError):
        return Unavailable(f"no answer within {ATTEMPT_SECONDS:g} s; if the server uses TLS, this client needs `tls` as well")
    code, details = await call.code(), await call.details() or ""
    final = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.FAILED_PRECONDITION)
    if code in final:
        return Refused(f"the server refuses this client: {details}")
    if code is grpc.StatusCode.UNAVAILABLE and _TLS.search(details):
        return Refused(f"TLS: {details}")
    return Unavailable(details or code.name)
