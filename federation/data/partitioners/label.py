"""Label skew: a fixed number of classes, or of shards, a client."""

from __future__ import annotations

import numpy as np

from federation.core.random import stream
from federation.data.draws import shuffled, shuffled_by
from federation.data.partition import Partition, classes_of
from federation.data.partitioners.apportion import check_count, equal, listed
from federation.errors import DataError


def label(labels: np.ndarray, num_clients: int, rng_seed: int, *, labels_per_client: int = 2) -> Partition:
    """Every client has samples of exactly `labels_per_client` classes, and every sample is used once.

    A class is cut into shards of equal size (to one sample), one for each client that holds it. The num_clients x
    labels_per_client shards are spread over the classes as evenly as their samples and the number of clients allow,
    larger classes taking what is left over; who holds which is drawn.

    Raises DataError for labels that are not integers; labels_per_client below 1 or above the number of classes; fewer
    shards than classes (listing, in label order, the classes that find no place); and more shards than can be made.
    """
    check_count("num_clients", num_clients)
    check_count("labels_per_client", labels_per_client)
    classes, codes = classes_of(labels)
    totals = np.bincount(codes, minlength=len(classes))
    shards = _shards(classes, totals, num_clients, labels_per_client)
    rng = stream(rng_seed, "partition")
    drawn = shuffled(rng, len(classes))
    queue = np.repeat(drawn, shards[drawn])
    holders = _deal(rng, queue, num_clients, labels_per_client)
    order, _ = shuffled_by(rng, codes, len(classes))
    by_class = np.split(holders[np.argsort(queue, kind="stable")], np.cumsum(shards)[:-1])
    owner = np.concatenate([np.repeat(mine, equal(int(total), len(mine)))
                            for mine, total in zip(by_class, totals, strict=True)])  # of the samples in `order`
    return Partition(*shuffled_by(rng, owner, num_clients, order))


def shards(labels: np.ndarray, num_clients: int, rng_seed: int, *, shards_per_client: int = 2) -> Partition:
    """Samples sorted by label and cut into num_clients x shards_per_client pieces, of which each client gets
    `shards_per_client` at random (McMahan et al. 2017, section 3).

    Pieces differ by at most one sample; most hold one label, those at a border two or more. Unlike with `label`, a client
    may get several pieces of one label. Raises DataError for labels that are not integers, and more shards than samples.
    """
    check_count("num_clients", num_clients)
    check_count("shards_per_client", shards_per_client)
    classes, codes = classes_of(labels)
    wanted = num_clients * shards_per_client
    if wanted > len(codes):
        raise DataError(f"{num_clients} clients x {shards_per_client} shards = {wanted} > {len(codes)} samples; use fewer "
                        f"clients or shards_per_client")
    rng = stream(rng_seed, "partition")
    order, _ = shuffled_by(rng, codes, len(classes))
    holders = np.empty(wanted, np.int64)
    holders[shuffled(rng, wanted)] = np.repeat(np.arange(num_clients), shards_per_client)
    owner = np.repeat(holders, equal(len(codes), wanted))
    return Partition(*shuffled_by(rng, owner, num_clients, order))


def _shards(classes: np.ndarray, totals: np.ndarray, num_clients: int, labels_per_client: int) -> np.ndarray:
    """Shards of each class, int64[classes]: at least 1, at most one a client and one a sample."""
    wanted = num_clients * labels_per_client
    if labels_per_client > len(classes):
        raise DataError(f"labels_per_client: {labels_per_client} > {len(classes)}, the number of classes in the data")
    if wanted < len(classes):
        left = [int(value) for value in classes[wanted:]]
        raise DataError(f"{num_clients} clients x {labels_per_client} labels = {wanted} < {len(classes)} classes: "
                        f"{len(left)} classes cannot be placed: {listed(left)}; use more clients or labels_per_client")
    most = np.minimum(totals, num_clients)
    if int(most.sum()) < wanted:
        scarce = np.flatnonzero(totals < num_clients)
        which = listed([f"label {classes[code]}: {totals[code]}" for code in scarce])
        raise DataError(f"{num_clients} clients x {labels_per_client} labels = {wanted} shards, but only "
                        f"{int(most.sum())} can be made: a class has at most one shard a sample ({which}) and one a "
                        f"client; use fewer clients or labels_per_client")
    low, high = 1, num_clients  # the highest level to which all classes can be filled
    while low < high:
        level = (low + high + 1) // 2
        low, high = (level, high) if np.minimum(most, level).sum() <= wanted else (low, level - 1)
    shards: np.ndarray = np.minimum(most, low)
    open_classes = np.flatnonzero(most > low)
    larger = open_classes[np.argsort(-totals[open_classes], kind="stable")]
    shards[larger[: wanted - int(shards.sum())]] += 1
    return shards


def _deal(rng: np.random.Generator, queue: np.ndarray, num_clients: int, rounds: int) -> np.ndarray:
    """A client for each shard of `queue` (its class): in each of `rounds` stretches every client gets one shard.

    The shards of a class are neighbours in the queue and no more than the clients, so only the class that straddles
    two stretches could reach a client twice: its shards go to clients that do not hold it yet.
    """
    holders = np.empty(len(queue), np.int64)
    for start in range(0, len(queue), num_clients):
        clients = shuffled(rng, num_clients)
        stretch = queue[start : start + num_clients]
        if start and stretch[0] == queue[start - 1]:
            before = slice(start - num_clients, start)
            free = np.ones(num_clients, bool)
            free[holders[before][queue[before] == stretch[0]]] = False
            first = clients[free[clients]][: int((stretch == stretch[0]).sum())]
            rest = np.ones(num_clients, bool)
            rest[first] = False
            clients = np.concatenate([first, clients[rest[clients]]])
        holders[start : start + num_clients] = clients
    return holders
