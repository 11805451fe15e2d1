"""Who takes part: the ranks that have registered, and the clients that can be asked to train."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping

from federation.errors import FederationError, TooFewClients
from federation.node.protocol import Hello, Welcome
from federation.node.proxy import ClientProxy, ClientTable
from node_comm.message import Failure
from node_comm.node import Incoming, Node

logger = logging.getLogger(__name__)

PATIENCE = 30.0  #: seconds between lines in the log while something is waited for


class Members:
    """Those of a world whose ranks are all there from the start, or are waited for.

    `server_id` is told to who registers. Every rank's `setup` must equal this one. `hosts_clients`: whether rank 0 hosts
    clients beside the others; where there is no other it does.
    """

    def __init__(self, server_id: str, clients: ClientTable, setup: Mapping[str, str], hosts_clients: bool = False) -> None:
        self.clients = clients
        self.ranks: list[int] = []  # those that have registered, sorted
        self.hosts_clients = hosts_clients
        self._server_id = server_id
        self._setup = setup
        self._changed = asyncio.Event()

    def __contains__(self, rank: int) -> bool:
        return rank in self.ranks

    @property
    def hosting(self) -> list[int]:
        """Ranks that clients can be placed on; rank 0 only where asked for, or where there is no other."""
        return [0, *self.ranks] if self.hosts_clients or not self.ranks else self.ranks

    @property
    def evaluating(self) -> list[int]:
        """Ranks that evaluate the server's samples."""
        return self.hosting

    async def wait_for(self, node: Node, count: int, timeout: float | None) -> None:
        """Wait until every rank has registered and at least `count` clients are known; `node` brings them.

        Says every 30 s what is missing; TooFewClients after `timeout` seconds (None: wait for ever).
        """
        began = time.monotonic()
        while not self._is_complete(node, count):
            self._changed.clear()
            left = PATIENCE if timeout is None else min(PATIENCE, began + timeout - time.monotonic())
            state = f"{len(self.clients)} of {count} clients, ranks missing: {self._missing(node) or 'none'}"
            if left <= 0:
                raise TooFewClients(f"not enough clients after {timeout:g} s: {state}")
            try:
                async with asyncio.timeout(left):
                    await node.attend(self._changed.wait())
            except TimeoutError:
                logger.info("waiting for clients: %s", state)
        idle = len(self.hosting) - len(self.clients)
        if idle > 0:
            logger.info("%d ranks have no client to train: %d clients on %d ranks", idle, len(self.clients),
                        len(self.hosting))

    async def register(self, node: Node, incoming: Incoming, hello: Hello) -> None:
        """A rank introduces itself. Raises FederationError, which it is told, too, where it cannot take part."""
        differing = self._differing(hello.setup)
        try:
            if differing:
                raise FederationError(f"rank {incoming.source} ({hello.node_id}) differs from the server in "
                                      f"{differing}: start every rank from the same installation and file")
            for record in hello.clients:
                self.clients.add(ClientProxy(record.client_id, record.num_samples, incoming.source))
        except FederationError as error:
            await node.reply(incoming, Failure(reason=str(error)))
            raise
        self.ranks = sorted({*self.ranks, incoming.source})
        await self._welcome(node, incoming)

    def _differing(self, setup: Mapping[str, str]) -> str:
        """What is another in `setup` than here, in words."""
        return "; ".join(f"{key}: {self._setup.get(key)!r} here, {value!r} there"
                         for key, value in setup.items() if self._setup.get(key) != value)

    async def _welcome(self, node: Node, incoming: Incoming) -> None:
        await node.reply(incoming, Welcome(server_id=self._server_id))
        self._changed.set()

    def remove(self, rank: int) -> None:
        """`rank` takes part no more, nor do the clients that it has brought."""
        self.ranks = [known for known in self.ranks if known != rank]
        self.clients.remove_rank(rank)

    def _missing(self, node: Node) -> list[int]:
        return [rank for rank in range(1, node.transport.size) if rank not in self.ranks]

    def _is_complete(self, node: Node, count: int) -> bool:
        return not self._missing(node) and len(self.clients) >= count
