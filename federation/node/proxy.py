"""The clients of a run, as the server knows them."""

from __future__ import annotations

import re

import msgspec
import numpy as np

from federation.data.sampling import Pool, Sampler
from federation.errors import FederationError


class ClientProxy(msgspec.Struct, frozen=True):
    """One client, seen from the server. `rank` is where it lives; None for a client that any rank can host."""

    client_id: str
    num_samples: int
    rank: int | None = None


class ClientTable:
    """Who can be asked to train: the clients of the shared partition, or those that ranks brought along.

    The order (and with it every index) is the same in every mode: by partition index, else by name, numbers in
    names counted as numbers. Memory is one array of sizes for the partition, and one entry for each client brought.
    """

    def __init__(self, sizes: np.ndarray | None = None) -> None:
        self._sizes = np.empty(0, np.int64) if sizes is None else sizes
        self._own: dict[str, ClientProxy] = {}
        self._sorted: list[str] | None = []
        self._pool: Pool | None = None

    def __len__(self) -> int:
        return len(self._own) or len(self._sizes)

    def __getitem__(self, index: int) -> ClientProxy:
        if self._own:
            return self._own[self._order[index]]
        return ClientProxy(partition_client(index), int(self._sizes[index]))

    def draw(self, sampler: Sampler, seed: int, round: int, count: int) -> list[ClientProxy]:
        """`count` clients for round `round`, in table order; fewer where `sampler` finds no more that it may draw."""
        return [self[index] for index in sampler(seed, round, self.pool, count).tolist()]

    def add(self, client: ClientProxy) -> None:
        """A rank brings a client of its own; its name must be new."""
        if client.client_id in self._own:
            raise FederationError(f"two clients are called {client.client_id!r}: every client needs a name of its own")
        if len(self._sizes):
            raise FederationError(f"{client.client_id!r} brings its own data, but this run has a shared partition of "
                                  f"{len(self._sizes)} clients: use one or the other")
        self._own[client.client_id] = client
        self._sorted = self._pool = None

    def remove_rank(self, rank: int) -> None:
        """The clients that `rank` brought are gone."""
        self._own = {name: client for name, client in self._own.items() if client.rank != rank}
        self._sorted = self._pool = None

    @property
    def pool(self) -> Pool:
        """What samplers know of all clients; another object once some have come or gone."""
        if self._pool is None:
            self._pool = Pool(self.sizes)
        return self._pool

    @property
    def sizes(self) -> np.ndarray:
        """Samples by client, int64, in table order; borrowed."""
        if self._own:
            return np.array([self._own[name].num_samples for name in self._order], np.int64)
        return self._sizes

    @property
    def _order(self) -> list[str]:
        """The names of those that were brought, sorted when somebody asks: a rank may bring thousands at once."""
        if self._sorted is None:
            self._sorted = sorted(self._own, key=natural)
        return self._sorted


def partition_client(index: int) -> str:
    """The name of client `index` of the shared partition."""
    return f"client_{index}"


def partition_index(client_id: str) -> int:
    """The index behind a name made by `partition_client`."""
    return int(client_id.removeprefix("client_"))


def natural(name: str) -> tuple[tuple[bool, int, str], ...]:
    """A sort key that puts client_9 before client_10."""
    parts = re.split(r"(\d+)", name)
    return tuple((part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts)
