"""What both ends of a gRPC stream must agree on: the method, its metadata, options, and certificates."""

from __future__ import annotations

import ssl
from pathlib import Path

import msgspec

from node_comm.errors import Unavailable
from node_comm.wire import MAX_FRAME

METHOD, SERVICE = "Connect", "node_comm.Star"
#: Changes with the frames, and with what nodes say to each other.
VERSION = "2"
#: Seconds between pings of an idle stream; a server allows half of that, so that no client is ever thrown off for them.
PING_SECONDS = 20

OPTIONS = [
    ("grpc.max_receive_message_length", MAX_FRAME),
    ("grpc.max_send_message_length", MAX_FRAME),
    ("grpc.keepalive_time_ms", PING_SECONDS * 1000),
    ("grpc.keepalive_timeout_ms", PING_SECONDS * 500),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]
SERVER_OPTIONS = [
    *OPTIONS,
    ("grpc.so_reuseport", 0),  # else a second server takes half of the clients
    ("grpc.http2.min_recv_ping_interval_without_data_ms", PING_SECONDS * 500),
    # A client that receives much measures its line by pings of its own accord; on a busy machine they look too many.
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.max_metadata_size", 1 << 14),
]
CLIENT_OPTIONS = [
    *OPTIONS,
    ("grpc.enable_http_proxy", 0),  # a proxy for the web does not know the nodes of a cluster
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
]


class Certificates(msgspec.Struct, frozen=True):
    """Paths of PEM files: the authority to trust, and this side's certificate and key."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    def __bool__(self) -> bool:
        return bool(self.ca or self.cert or self.key)

    def read(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """The contents. Raises Unavailable that names a file which is missing, or cannot be read or used."""
        if (self.cert is None) != (self.key is None):
            raise Unavailable(f"TLS: a certificate and its key go together; given are cert={self.cert} and key={self.key}")
        contents = _contents(self.ca), _contents(self.cert), _contents(self.key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # gRPC says nothing of the reason
        try:
            what = f"{self.ca} cannot be used as the certificate of an authority"
            if self.ca is not None:
                context.load_verify_locations(self.ca)
            what = f"{self.cert} and {self.key} cannot be used as a certificate and its key"
            if self.cert is not None:
                context.load_cert_chain(self.cert, self.key, password="")  # else it asks at the terminal for a key's password
        except ssl.SSLError as error:
            raise Unavailable(f"TLS: {what}: {error}") from None
        return contents


def _contents(path: str | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise Unavailable(f"TLS: {path} cannot be read: {error.strerror or error}") from error
