"""A model over loopback to and from eight clients: our star, raw gRPC streams, and raw sockets, in one run.

    python benchmarks/bench_grpc.py [--clients 8] [--megabytes 100] [--repeats 3] [--json FILE]

Down: the server gives the model to all; up: every client sends one, and the server adds them up (ours; the raw ones only
receive them). Each side is a process of its own, on the cores of one machine, so that figures are ratios. The server's peak
memory is what its process grew by, as a multiple of the model, which itself is one of them, as is the sum.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from node_comm.grpc_channel import OPTIONS
from node_comm.grpc_client import Way, connect
from node_comm.grpc_server import Door, GrpcServer
from node_comm.wire import Adding

HERE = Path(__file__).resolve()
PIECE = 1 << 20


class Ours:
    """The transport: `send_all` down, sums up."""

    def __init__(self, address: str, nbytes: int, clients: int) -> None:
        self.address, self.clients = address, clients
        self.model = np.ones(nbytes // 4, np.float32)
        self.total = np.zeros_like(self.model)

    async def open(self) -> None:
        self.server = await GrpcServer.open(Door(address=self.address))
        self.server.sink = lambda peer, header, description: Adding(self.total)

    async def ready(self) -> None:
        while len(self.server.ranks) < self.clients:
            await asyncio.sleep(0.01)

    async def down(self) -> None:
        await self.server.send_all(self.server.ranks, b"", self.model)
        for _ in range(self.clients):
            await self.server.recv()

    async def up(self) -> None:
        await self.server.send_all(self.server.ranks, b"up")
        for _ in range(self.clients):
            await self.server.recv()

    async def close(self) -> None:
        await self.server.close()

    @staticmethod
    async def client(address: str, name: str, nbytes: int, repeats: int) -> None:
        client = await connect(Way(address=address, name=name))
        target = np.empty(nbytes // 4, np.float32)
        client.sink = lambda peer, header, description: target
        for _ in range(repeats):
            await client.recv()
            await client.send(0, b"got it")
            await client.recv()
            await client.send(0, b"", target)
        await client.close()


class Streams:
    """gRPC's own streams of bytes, in pieces of the same size."""

    def __init__(self, address: str, nbytes: int, clients: int) -> None:
        self.address, self.nbytes, self.clients = address, nbytes, clients
        self.model = bytes(nbytes)
        self.contexts: list[Any] = []
        self.end = asyncio.Event()

    async def open(self) -> None:
        self.server = grpc.aio.server(options=OPTIONS)
        handler = grpc.stream_stream_rpc_method_handler(self._serve)
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Raw", {"Go": handler}),))
        self.server.add_insecure_port(self.address)
        await self.server.start()

    async def _serve(self, frames: Any, context: Any) -> None:
        await context.send_initial_metadata(())
        self.contexts.append(context)  # a write that began before the metadata is out would fail
        await self.end.wait()

    async def ready(self) -> None:
        while len(self.contexts) < self.clients:
            await asyncio.sleep(0.01)

    async def down(self) -> None:
        async def one(context: Any) -> None:
            for start in range(0, self.nbytes, PIECE):
                await context.write(self.model[start:start + PIECE])
            await context.read()

        await asyncio.gather(*map(one, self.contexts))

    async def up(self) -> None:
        async def one(context: Any) -> None:
            await context.write(b"up")
            left = self.nbytes
            while left:
                left -= len(await context.read())

        await asyncio.gather(*map(one, self.contexts))

    async def close(self) -> None:
        self.end.set()
        await self.server.stop(1)

    @staticmethod
    async def client(address: str, name: str, nbytes: int, repeats: int) -> None:
        async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
            call = channel.stream_stream("/Raw/Go")()
            await call.initial_metadata()
            model = bytes(nbytes)
            for _ in range(repeats):
                left = nbytes
                while left:
                    left -= len(await call.read())
                await call.write(b"got it")
                await call.read()
                for start in range(0, nbytes, PIECE):
                    await call.write(model[start:start + PIECE])
            await call.read()  # until the server has ended


class Sockets:
    """asyncio's sockets."""

    def __init__(self, address: str, nbytes: int, clients: int) -> None:
        self.nbytes, self.clients = nbytes, clients
        self.host, port = address.split(":")
        self.port = int(port)
        self.model = bytes(nbytes)
        self.buffer = bytearray(nbytes)
        self.peers: list[socket.socket] = []

    async def open(self) -> None:
        self.listening = socket.create_server((self.host, self.port))
        self.listening.setblocking(False)

    async def ready(self) -> None:
        while len(self.peers) < self.clients:
            peer, _ = await asyncio.get_running_loop().sock_accept(self.listening)
            peer.setblocking(False)
            self.peers.append(peer)

    async def down(self) -> None:
        loop = asyncio.get_running_loop()

        async def one(peer: socket.socket) -> None:
            await loop.sock_sendall(peer, self.model)
            await loop.sock_recv(peer, 1)

        await asyncio.gather(*map(one, self.peers))

    async def up(self) -> None:
        loop = asyncio.get_running_loop()

        async def one(peer: socket.socket) -> None:
            await loop.sock_sendall(peer, b"u")
            await receive(loop, peer, self.buffer)

        await asyncio.gather(*map(one, self.peers))

    async def close(self) -> None:
        for peer in (*self.peers, self.listening):
            peer.close()

    @staticmethod
    async def client(address: str, name: str, nbytes: int, repeats: int) -> None:
        loop, (host, port) = asyncio.get_running_loop(), address.split(":")
        peer = socket.create_connection((host, int(port)))
        peer.setblocking(False)
        buffer = bytearray(nbytes)
        for _ in range(repeats):
            await receive(loop, peer, buffer)
            await loop.sock_sendall(peer, b"g")
            await loop.sock_recv(peer, 1)
            await loop.sock_sendall(peer, buffer)


async def receive(loop: asyncio.AbstractEventLoop, peer: socket.socket, buffer: bytearray) -> None:
    """Fill `buffer`."""
    view = memoryview(buffer)
    while view:
        view = view[await loop.sock_recv_into(peer, view):]


KINDS: dict[str, Any] = {"ours": Ours, "gRPC": Streams, "sockets": Sockets}


async def serve(kind: str, address: str, nbytes: int, clients: int, repeats: int) -> dict[str, Any]:
    """The server's process; it starts its clients."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    server = KINDS[kind](address, nbytes, clients)
    await server.open()
    there = [subprocess.Popen([sys.executable, str(HERE), "--client", kind, address, str(index), str(nbytes), str(repeats)])
             for index in range(clients)]
    await server.ready()
    found: dict[str, Any] = {"down": [], "up": []}
    for _ in range(repeats):
        for way in ("down", "up"):
            began = time.perf_counter()
            await getattr(server, way)()
            found[way].append(time.perf_counter() - began)
    await server.close()
    found["memory"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / nbytes
    for process in there:
        process.wait(30)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--client", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--server", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.client:
        kind, address, name, nbytes, repeats = given.client
        asyncio.run(KINDS[kind].client(address, name, int(nbytes), int(repeats)))
        return
    nbytes = given.megabytes * 1_000_000
    if given.server:
        print(json.dumps(asyncio.run(serve(given.server[0], given.server[1], nbytes, given.clients, given.repeats))), flush=True)
        return
    results = {}
    print("| | down, MB/s | up, MB/s | server's memory, models |\n| --- | --- | --- | --- |")
    for kind in KINDS:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        line = [sys.executable, str(HERE), "--server", kind, address, "--clients", str(given.clients), "--megabytes",
                str(given.megabytes), "--repeats", str(given.repeats)]
        done = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True)
        found = results[kind] = json.loads(done.stdout)
        rate = {way: given.clients * given.megabytes / statistics.median(found[way]) for way in ("down", "up")}
        print(f"| {kind} | {rate['down']:.0f} | {rate['up']:.0f} | {found['memory']:.2f} |", flush=True)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
