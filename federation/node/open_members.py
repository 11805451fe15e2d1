"""Who takes part in an open world: clients come over a network, with their own data, and go."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from federation.errors import FederationError
from federation.node.members import Members
from federation.node.protocol import Hello
from federation.node.proxy import ClientProxy, ClientTable
from node_comm import CommError
from node_comm.message import Failure
from node_comm.node import Incoming, Node
from node_comm.star import Star

logger = logging.getLogger(__name__)

#: The most samples that a client may say it has.
MOST_SAMPLES = 2**40
#: The most characters of a client's name.
LONGEST_NAME = 400


class OpenMembers(Members):
    """See Members. Who registers is a newcomer until `admit`. `expected` clients are waited for at first; later, as many as
    a round needs. What a client's `setup` names must be as it is here, where it is known here."""

    def __init__(self, server_id: str, setup: Mapping[str, str], expected: int = 0) -> None:
        super().__init__(server_id, ClientTable(), setup)
        self._expected = expected
        self._newcomers: dict[int, list[ClientProxy]] = {}
        self._introduced: set[int] = set()
        #: Newcomers wait until a round that is done again is over, unless it has too few without them: one who spoils each attempt
        #: and comes back for the next would end the run.
        self.repeats = False

    def __contains__(self, rank: int) -> bool:
        return rank in self.ranks or rank in self._newcomers

    @property
    def hosting(self) -> list[int]:
        """All that have a client."""
        return self.ranks

    @property
    def evaluating(self) -> list[int]:
        """The server's rank alone: a network's clients see none of its samples."""
        return [0]

    async def wait_for(self, node: Node, count: int, timeout: float | None) -> None:
        """See Members."""
        await super().wait_for(node, max(count, self._expected), timeout)
        self._expected = 0

    async def register(self, node: Node, incoming: Incoming, hello: Hello) -> None:
        """Let a client in from the next round on, or let it go with the reason; nothing that it says ends the server."""
        star = node.transport
        assert isinstance(star, Star)
        rank, name = incoming.source, star.name(incoming.source)
        if rank in self._introduced:  # not answered: the server would wait for a client that reads nothing
            raise CommError("it introduces itself twice")
        if len(self._introduced) > 2 * len(star.ranks):
            self._introduced &= {*star.ranks}  # nobody comes back under the same rank
        self._introduced.add(rank)
        try:
            self._check(name, hello)
        except FederationError as error:
            logger.warning("%s (rank %d) is not let in: %s", name, rank, error)
            await node.reply(incoming, Failure(reason=str(error)))
            star.drop(rank, str(error))
            return
        self._newcomers[rank] = [ClientProxy(record.client_id, record.num_samples, rank) for record in hello.clients]
        await self._welcome(node, incoming)
        logger.info("%s (rank %d) is here with %s", name, rank, ", ".join(
            f"{record.client_id} ({record.num_samples} samples)" for record in hello.clients) or "no client")

    def admit(self) -> None:
        """Newcomers take part from now on."""
        for rank, clients in sorted(self._newcomers.items()):
            for client in clients:
                self.clients.add(client)
            self.ranks = sorted({*self.ranks, rank})
        self._newcomers.clear()

    def remove(self, rank: int) -> None:
        """See Members."""
        self._newcomers.pop(rank, None)
        super().remove(rank)

    def _missing(self, node: Node) -> list[int]:
        return []

    def _is_complete(self, node: Node, count: int) -> bool:
        if not self.repeats or len(self.clients) < count:
            self.admit()
        return super()._is_complete(node, count)

    def _check(self, name: str, hello: Hello) -> None:
        differing = self._differing({key: value for key, value in hello.setup.items() if key in self._setup})
        if differing:
            raise FederationError(f"it differs from the server in {differing}")
        here = {self.clients[index].client_id for index in range(len(self.clients))}
        here |= {client.client_id for clients in self._newcomers.values() for client in clients}
        for record in hello.clients:
            if record.client_id in here:
                raise FederationError(f"there is a client {record.client_id!r} already")
            if record.client_id != name and not record.client_id.startswith(f"{name}/"):
                raise FederationError(f"it brings {record.client_id!r}; the clients of {name!r} are called {name!r} or "
                                      f"{name}/...")
            if len(record.client_id) > LONGEST_NAME or not record.client_id.isprintable():
                raise FederationError(f"it brings a client with a name of {len(record.client_id)} characters ({LONGEST_NAME} are "
                                      "allowed), or of some that cannot be printed")
            if not 0 <= record.num_samples <= MOST_SAMPLES:
                raise FederationError(f"{record.client_id!r} has {record.num_samples} samples; 0 to {MOST_SAMPLES} are "
                                      "allowed")
            here.add(record.client_id)
