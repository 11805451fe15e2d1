"""Clients as they are: the users of a data set."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Literal

import numpy as np

from federation.core.random import stream
from federation.data.draws import shuffled, shuffled_by
from federation.data.partition import Partition, classes_of
from federation.data.partitioners.apportion import check_count
from federation.errors import DataError


def natural(labels: np.ndarray, num_clients: int, rng_seed: int, *, columns: Mapping[str, np.ndarray],
            column: str = "user", surplus: Literal["refuse", "merge", "drop"] = "refuse") -> Partition:
    """A client for each value of a column of the data set: a user, a writer, a hospital. In the order of the values.

    `columns` holds, under the name `column`, an integer for each sample, int64[n]. `surplus` says what happens where there
    are more users than clients: an error, users put together ("merge": the largest first, each to the smallest client so
    far, of equal ones the first), or only `num_clients` of them, drawn at random ("drop": the one case in which samples
    belong to nobody).

    Raises DataError where there is no such column, and where there are fewer users than clients.
    """
    check_count("num_clients", num_clients)
    if surplus not in ("refuse", "merge", "drop"):
        raise DataError(f"surplus: {surplus!r} is not one of refuse, merge, drop")
    if column not in columns:
        raise DataError(f"column: the data set has no column {column!r}; it has {', '.join(columns) or 'none'}")
    users, codes = classes_of(columns[column])
    if len(users) < num_clients or (len(users) > num_clients and surplus == "refuse"):
        more = "" if len(users) < num_clients else ", or surplus: merge or drop (in partitioner_config)"
        raise DataError(f"num_clients: {num_clients}, but the column {column!r} has {len(users)} users: set num_clients to "
                        f"{len(users)}{more}")
    rng = stream(rng_seed, "partition")
    if surplus == "drop" and len(users) > num_clients:
        chosen = np.sort(shuffled(rng, len(users))[:num_clients])
        samples = np.flatnonzero(np.isin(codes, chosen))
        order, offsets = shuffled_by(rng, np.searchsorted(chosen, codes[samples]), num_clients)
        return Partition(samples[order], offsets)
    owner = codes if len(users) == num_clients else _merged(np.bincount(codes), num_clients)[codes]
    return Partition(*shuffled_by(rng, owner, num_clients))


def _merged(sizes: np.ndarray, num_clients: int) -> np.ndarray:
    """The client of each user, int64[users]."""
    clients = [(0, client) for client in range(num_clients)]
    owner = np.empty(len(sizes), np.int64)
    for user in np.argsort(-sizes, kind="stable").tolist():
        size, client = clients[0]
        owner[user] = client
        heapq.heapreplace(clients, (size + int(sizes[user]), client))
    return owner
