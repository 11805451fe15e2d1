"""Figures of a running server for those who watch it: `/metrics` for Prometheus, `/health` for a supervisor, over HTTP."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from federation.errors import ConfigError


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nobody wants a line in the run's log for each look at it."""


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each watcher, which nobody waits for: one that connects and asks for nothing would hold up the run's end."""

    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class Monitor:
    """Serves `address` (host:port) from a thread, until `close`. `clients` tells how many clients there are at present.

    Raises ConfigError where prometheus_client is missing, or the address cannot be had.
    """

    def __init__(self, address: str, clients: Callable[[], int]) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, make_wsgi_app
        except ImportError as error:
            raise ConfigError("transport.monitor: prometheus_client is not installed; install the `metrics` extra") from error
        registry = CollectorRegistry()
        self._clients = clients
        self._round = 0
        self._last = Gauge("federation_round", "The last round that is recorded.", registry=registry)
        self._counters = {
            "rounds": Counter("federation_rounds", "Rounds recorded by this process.", registry=registry),
            "clients_failed": Counter("federation_clients_failed", "Clients that a round was done without.", registry=registry),
            "bytes_down": Counter("federation_bytes_down", "Bytes of weights for clients.", registry=registry),
            "bytes_up": Counter("federation_bytes_up", "Bytes of updates from clients.", registry=registry)}
        self._metric = Gauge("federation_metric", "A metric, by name, of the last round that had it.", ["name"], registry=registry)
        self._seconds = Gauge("federation_seconds", "Seconds of the last round, by phase.", ["phase"], registry=registry)
        Gauge("federation_clients", "Clients that are connected.", registry=registry).set_function(clients)
        self._metrics_app = make_wsgi_app(registry)
        host, _, port = address.rpartition(":")
        try:
            kind = _Server6 if host.startswith("[") else _Server
            self._server = make_server(host.strip("[]"), int(port), self._answer, kind, _Quiet)
        except OSError as error:
            raise ConfigError(f"transport.monitor: cannot listen on {address}: {error.strerror}") from None
        self._thread = threading.Thread(target=self._server.serve_forever, name="monitor", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_port)

    def record(self, row: Mapping[str, Any]) -> None:
        """Take in the record of a round."""
        self._round = int(row["round"])
        self._last.set(self._round)
        self._counters["rounds"].inc()
        for name in ("clients_failed", "bytes_down", "bytes_up"):
            self._counters[name].inc(row.get(name, 0))
        for name, value in row.items():
            if name != "seconds" and isinstance(value, int | float):
                self._metric.labels(name).set(value)
        self._seconds.clear()  # not every round has every phase
        for phase, seconds in row.get("seconds", {}).items():
            self._seconds.labels(phase).set(seconds)

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        match environ.get("PATH_INFO"):
            case "/metrics":
                answer: Iterable[bytes] = self._metrics_app(environ, start)
                return answer
            case "/health":
                start("200 OK", [("Content-Type", "application/json")])
                return [json.dumps({"round": self._round, "clients": self._clients()}).encode()]
        start("404 Not Found", [("Content-Type", "text/plain")])
        return [b"/metrics and /health\n"]
