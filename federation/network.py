"""Modes server and client: a run across machines, over gRPC."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from federation.assemble import assemble, client_name
from federation.config import Config, TransportConfig
from federation.infra.threads import apply_threads
from federation.node.client import ClientNode
from federation.session import RunResult, Stopped, stop_signals
from node_comm.addresses import is_loopback
from node_comm.grpc_channel import Certificates
from node_comm.grpc_client import Way, connect
from node_comm.grpc_server import Door, GrpcServer

logger = logging.getLogger(__name__)

#: Of zstandard. Higher levels cost much time, and make the bits of trained numbers hardly smaller.
ZIP_LEVELS = {"none": None, "zstd": 1}

Lead = Callable[..., Awaitable[Any]]


def run_server(config: Config, resume: str | None, quiet: bool, lead: Lead) -> Any:
    """Listen, and run the trainer over the clients that come. Raises Unavailable where it cannot listen."""
    async def serve() -> Any:
        transport = await GrpcServer.open(door_of(config.transport))
        _warn(config.transport)
        try:
            return await lead(config, "server", transport, resume, quiet)
        finally:
            await transport.close()

    return asyncio.run(serve())


def run_client(config: Config, threads: int) -> RunResult:
    """Train for the server until the run is over, with `threads`; a connection that is lost is made anew.

    Raises Refused where the server says no, Unavailable where it is not there for `transport.patience` seconds, Timeout where
    it answers nothing for so long when this client comes, Stopped after a signal.
    """
    async def take_part() -> None:
        parts = assemble(config)
        apply_threads(threads)  # again, for the libraries that have come with the parts
        _warn(config.transport)
        client: ClientNode | None = None

        async def serve() -> None:
            nonlocal client
            client = parts.make_remote_client(await connect(way_of(config)))
            await client.serve()

        # Before the connection is there: a signal may come while the server is waited for.
        with stop_signals() as stop:
            serving = asyncio.ensure_future(serve())
            both: set[asyncio.Future[Any]] = {serving, stop}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                return serving.result()
            if client is not None:
                await client.stop()
        serving.cancel()
        raise Stopped(stop.result().name, None, is_client=True)

    asyncio.run(take_part())
    return RunResult(mode="client")


def door_of(transport: TransportConfig) -> Door:
    """Where the server of a configuration listens, and whom it lets in."""
    assert transport.address is not None
    token = None if transport.token is None else transport.token.reveal()
    return Door(address=transport.address, certificates=_certificates(transport), token=token, names=transport.clients,
                tokens={name: secret.reveal() for name, secret in transport.tokens.items()},
                most_bytes=transport.max_message_bytes, resume_seconds=transport.resume_seconds,
                zip_level=ZIP_LEVELS[transport.compression])


def way_of(config: Config) -> Way:
    """How the client of a configuration reaches its server."""
    transport = config.transport
    assert transport.address is not None
    token = None if transport.token is None else transport.token.reveal()
    certificates = _certificates(transport)
    secure = bool(certificates) or not (transport.insecure or is_loopback(transport.address))
    return Way(address=transport.address, name=client_name(config), certificates=certificates, secure=secure, token=token,
               patience=transport.patience, zip_level=ZIP_LEVELS[transport.compression])


def _certificates(transport: TransportConfig) -> Certificates:
    tls = transport.tls
    return Certificates(tls.ca, tls.cert, tls.key)


def _warn(transport: TransportConfig) -> None:
    if transport.insecure and not is_loopback(transport.address or ""):
        logger.warning("transport.insecure: weights and tokens go over the network in clear, and anyone may read and change them")
