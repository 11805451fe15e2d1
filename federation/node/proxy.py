"""The clients of a run, as the server knows them."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from federation.data.sampling import cohort_size_of, draw_cohort
from federation.errors import FederationError


@dataclass(frozen=True)
class ClientProxy:
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
        self._order: list[str] = []

    def __len__(self) -> int:
        return len(self._order) or len(self._sizes)

    def __getitem__(self, index: int) -> ClientProxy:
        if self._order:
            return self._own[self._order[index]]
        return ClientProxy(partition_client(index), int(self._sizes[index]))

    def cohort(self, seed: int, round: int, cohort_size: int | None, fraction: float | None) -> list[ClientProxy]:
        """The clients of round `round`: `cohort_size` of them, or `fraction`, or all; those without samples left out."""
        size = cohort_size or cohort_size_of(fraction or 1.0, len(self))
        return [self[index] for index in draw_cohort(seed, round, len(self), size, self.eligible())]

    def add(self, client: ClientProxy) -> None:
        """A rank brings a client of its own; its name must be new."""
        if client.client_id in self._own:
            raise FederationError(f"two clients are called {client.client_id!r}: every client needs a name of its own")
        if len(self._sizes):
            raise FederationError(f"{client.client_id!r} brings its own data, but this run has a shared partition of "
                                  f"{len(self._sizes)} clients: use one or the other")
        self._own[client.client_id] = client
        self._order = sorted(self._own, key=natural)

    def remove_rank(self, rank: int) -> None:
        """The clients that `rank` brought are gone."""
        self._own = {name: client for name, client in self._own.items() if client.rank != rank}
        self._order = sorted(self._own, key=natural)

    def eligible(self) -> np.ndarray | None:
        """Indices of the clients that have samples, int64; None when all have."""
        sizes = np.array([self._own[name].num_samples for name in self._order]) if self._order else self._sizes
        return None if sizes.all() else np.flatnonzero(sizes)


def partition_client(index: int) -> str:
    """The name of client `index` of the shared partition."""
    return f"client_{index}"


def partition_index(client_id: str) -> int:
    """The index behind a name made by `partition_client`."""
    return int(client_id.removeprefix("client_"))


def natural(name: str) -> tuple[tuple[bool, int, str], ...]:
    """A sort key that puts client_9 before client_10."""
    parts = re.split(r"(\d+)", name)
    return tuple((part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts)
