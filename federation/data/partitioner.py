"""Which samples belong to which client: IID, Dirichlet by label, and a fixed number of labels a client.

A partitioner is a function `f(labels, num_clients, rng_seed, *, settings) -> Partition` in the table PARTITIONERS.
It gives every sample to exactly one client, is a function of its arguments alone (the same bits on every platform,
see `draws`), and never loops until luck strikes: what cannot be had is refused before anything is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import MappingProxyType
from typing import Any

import numpy as np

from federation.core.random import stream
from federation.data.draws import dirichlet_rows, shuffled, shuffled_by
from federation.data.partition import Partition, classes_of
from federation.errors import DataError


def iid(labels: np.ndarray, num_clients: int, rng_seed: int, *, min_size: int = 1,
        allow_empty: bool = False) -> Partition:
    """Samples dealt at random, whatever their labels; sizes differ by at most one, the first clients have more.

    Raises DataError where clients would have fewer than `min_size` samples, unless `allow_empty`.
    """
    num_samples = len(labels)
    _least_size(num_samples, num_clients, min_size, allow_empty)
    return Partition(shuffled(stream(rng_seed, "partition"), num_samples), _offsets(_equal(num_samples, num_clients)))


def dirichlet(labels: np.ndarray, num_clients: int, rng_seed: int, *, alpha: float = 0.5, min_size: int = 1,
              balanced: bool = False, allow_empty: bool = False) -> Partition:
    """Label skew: each class is shared out to the clients in proportions drawn from Dirichlet(alpha, ..., alpha).

    Small alpha: each class goes to few clients; large alpha: every client looks like the whole.
    `balanced`: the other way round. Each client draws its mix of labels from a Dirichlet whose mean is the mix of all
    samples (concentration alpha a class, where the classes are equally frequent), and all clients get equally many
    samples; as every sample is used, the mixes are fitted to the class sizes as far as that takes.
    `min_size`: clients that came out smaller are filled up to it with samples of the largest clients, chosen at
    random; no draw is repeated. `allow_empty` lets clients have no samples at all, and min_size must stay 1 then.

    Raises DataError for labels that are not integers, alpha outside 1e-9 .. 1e9, and num_clients x min_size above the
    number of samples.
    """
    if isinstance(alpha, bool) or not isinstance(alpha, int | float | np.number) or not 1e-9 <= alpha <= 1e9:
        raise DataError(f"alpha: {alpha!r} is not a number from 1e-9 to 1e9")
    classes, codes = classes_of(labels)
    least = _least_size(len(codes), num_clients, min_size, allow_empty)
    rng = stream(rng_seed, "partition")
    order, starts = shuffled_by(rng, codes, len(classes))
    totals = np.diff(starts)
    if balanced:
        shares: Iterable[np.ndarray] = _balanced_counts(rng, totals, num_clients, alpha)
    else:
        shares = _counts(rng, totals, num_clients, alpha)
    owner = np.concatenate([np.repeat(np.arange(num_clients), counts) for counts in shares])  # of those in `order`
    _fill_up(rng, owner, num_clients, least)
    return Partition(*shuffled_by(rng, owner, num_clients, order))


def label(labels: np.ndarray, num_clients: int, rng_seed: int, *, labels_per_client: int = 2) -> Partition:
    """Every client has samples of exactly `labels_per_client` classes, and every sample is used once.

    A class is cut into shards of equal size (to one sample), one for each client that holds it. The num_clients x
    labels_per_client shards are spread over the classes as evenly as their samples and the number of clients allow,
    larger classes taking what is left over; who holds which is drawn.

    Raises DataError for labels that are not integers; labels_per_client below 1 or above the number of classes; fewer
    shards than classes (listing, in label order, the classes that find no place); and more shards than can be made.
    """
    _check_count("num_clients", num_clients)
    _check_count("labels_per_client", labels_per_client)
    classes, codes = classes_of(labels)
    totals = np.bincount(codes, minlength=len(classes))
    shards = _shards(classes, totals, num_clients, labels_per_client)
    rng = stream(rng_seed, "partition")
    drawn = shuffled(rng, len(classes))
    queue = np.repeat(drawn, shards[drawn])
    holders = _deal(rng, queue, num_clients, labels_per_client)
    order, _ = shuffled_by(rng, codes, len(classes))
    by_class = np.split(holders[np.argsort(queue, kind="stable")], np.cumsum(shards)[:-1])
    owner = np.concatenate([np.repeat(mine, _equal(int(total), len(mine)))
                            for mine, total in zip(by_class, totals, strict=True)])  # of the samples in `order`
    return Partition(*shuffled_by(rng, owner, num_clients, order))


#: Name in a configuration (`data.partitioner`) -> function.
PARTITIONERS: MappingProxyType[str, Callable[..., Partition]] = MappingProxyType({
    "iid": iid,
    "dirichlet": dirichlet,
    "label": label,
})


def _least_size(num_samples: int, num_clients: int, min_size: int, allow_empty: bool) -> int:
    """The samples that every client must have, once it is certain that there are enough."""
    _check_count("num_clients", num_clients)
    _check_count("min_size", min_size)
    if not isinstance(allow_empty, bool):
        raise DataError(f"allow_empty: {allow_empty!r} is neither true nor false")
    if allow_empty:
        if min_size > 1:
            raise DataError(f"allow_empty: true and min_size: {min_size} contradict each other; drop one of them")
        return 0
    if num_clients * min_size > num_samples:
        raise DataError(f"{num_clients} clients of at least {min_size} samples need {num_clients} x {min_size} = "
                        f"{num_clients * min_size} > {num_samples} samples; use fewer clients, a smaller min_size, "
                        f"or allow_empty: true")
    return int(min_size)


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise DataError(f"{name}: {value!r} is not a whole number of at least 1")


def _offsets(sizes: np.ndarray) -> np.ndarray:
    offsets = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    return offsets


def _equal(total: int, parts: int) -> np.ndarray:
    """`total` in `parts` sizes that differ by at most one, larger ones first."""
    sizes = np.full(parts, total // parts, np.int64)
    sizes[: total % parts] += 1
    return sizes


def _apportion(proportions: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Whole counts that sum to `totals` along the last axis, each less than one from its proportion of it.

    The running sum is rounded, not each count, so nothing is lost.
    """
    running = np.cumsum(proportions, axis=-1)
    bounds = np.floor(running / running[..., -1:] * totals[..., None] + 0.5).astype(np.int64)
    return np.diff(bounds, axis=-1, prepend=0)


def _counts(rng: np.random.Generator, totals: np.ndarray, num_clients: int, alpha: float) -> Iterator[np.ndarray]:
    """For each class, its samples at each client, int64[clients], in proportions drawn from Dirichlet(alpha, ...)."""
    at_once = max(1, (1 << 20) // num_clients)  # many classes in one draw where clients are few: calls cost most then
    concentration = np.full(num_clients, float(alpha))
    for start in range(0, len(totals), at_once):
        some = totals[start : start + at_once]
        yield from _apportion(dirichlet_rows(rng, concentration, len(some)), some)


def _balanced_counts(rng: np.random.Generator, totals: np.ndarray, num_clients: int, alpha: float) -> np.ndarray:
    """int64[classes, clients]: samples of each class for each client, with rows that sum to `totals` and columns to
    equal sizes, near mixes of labels drawn from a Dirichlet."""
    sizes = _equal(int(totals.sum()), num_clients)
    concentration = alpha * len(totals) * (totals / totals.sum())
    mixes = np.ascontiguousarray(dirichlet_rows(rng, concentration, num_clients).T)
    for _ in range(100):  # iterative proportional fitting, which converges as no entry is 0; what it leaves is moved
        mixes = np.maximum(mixes, 1e-12)
        mixes *= (totals / (mixes * sizes).sum(axis=1))[:, None]
        mixes /= mixes.sum(axis=0)
        if np.abs((mixes * sizes).sum(axis=1) - totals).max() < 0.5:
            break
    counts = np.ascontiguousarray(_apportion(mixes.T, sizes).T)
    excess = counts.sum(axis=1) - totals
    while excess.any():  # they sum to 0, and each pass settles one of them for good
        donor, taker = int(excess.argmax()), int(excess.argmin())
        amount = int(min(excess[donor], -excess[taker]))
        running = np.cumsum(counts[donor])
        moved = np.diff(running * amount // running[-1], prepend=0)
        counts[donor] -= moved
        counts[taker] += moved
        excess[donor] -= amount
        excess[taker] += amount
    return counts


def _fill_up(rng: np.random.Generator, owner: np.ndarray, num_clients: int, least: int) -> None:
    """Give samples of the largest clients to those with fewer than `least`, in place: `owner` is the client of each."""
    sizes = np.bincount(owner, minlength=num_clients)
    missing = np.maximum(least - sizes, 0)
    total = int(missing.sum())
    if total == 0:
        return
    low, high = least, int(sizes.max())  # the highest level such that what stands above it is enough
    while low < high:
        level = (low + high + 1) // 2
        low, high = (level, high) if np.maximum(sizes - level, 0).sum() >= total else (low, level - 1)
    given = np.maximum(sizes - low, 0)
    given[np.flatnonzero(given)[: int(given.sum()) - total]] -= 1
    order, offsets = shuffled_by(rng, owner, num_clients)
    ends = np.repeat(offsets[1:] - _offsets(given)[1:], given)
    owner[order[ends + np.arange(total)]] = np.repeat(np.arange(num_clients), missing)


def _shards(classes: np.ndarray, totals: np.ndarray, num_clients: int, labels_per_client: int) -> np.ndarray:
    """Shards of each class, int64[classes]: at least 1, at most one a client and one a sample."""
    wanted = num_clients * labels_per_client
    if labels_per_client > len(classes):
        raise DataError(f"labels_per_client: {labels_per_client} > {len(classes)}, the number of classes in the data")
    if wanted < len(classes):
        left = [int(value) for value in classes[wanted:]]
        raise DataError(f"{num_clients} clients x {labels_per_client} labels = {wanted} < {len(classes)} classes: "
                        f"{len(left)} classes cannot be placed: {_listed(left)}; use more clients or labels_per_client")
    most = np.minimum(totals, num_clients)
    if int(most.sum()) < wanted:
        scarce = np.flatnonzero(totals < num_clients)
        which = _listed([f"label {classes[code]}: {totals[code]}" for code in scarce])
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


def _listed(items: list[Any], limit: int = 20) -> str:
    text = ", ".join(map(str, items[:limit]))
    return text if len(items) <= limit else f"{text} and {len(items) - limit} more"
