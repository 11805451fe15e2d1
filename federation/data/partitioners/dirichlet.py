"""Label skew: classes shared out in proportions from a Dirichlet distribution."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from federation.core.random import stream
from federation.data.draws import dirichlet_rows, shuffled_by
from federation.data.partition import Partition, classes_of
from federation.data.partitioners.apportion import apportion, equal, fill_up, least_size, number, owners


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
    alpha = number("alpha", alpha, 1e-9, 1e9)
    classes, codes = classes_of(labels)
    least = least_size(len(codes), num_clients, min_size, allow_empty)
    rng = stream(rng_seed, "partition")
    order, starts = shuffled_by(rng, codes, len(classes))
    totals = np.diff(starts)
    if balanced:
        shares: Iterable[np.ndarray] = _balanced_counts(rng, totals, num_clients, alpha)
    else:
        shares = _counts(rng, totals, num_clients, alpha)
    owner = owners(shares, np.arange(num_clients), len(order))
    fill_up(rng, owner, num_clients, least)
    return Partition(*shuffled_by(rng, owner, num_clients, order))


def _counts(rng: np.random.Generator, totals: np.ndarray, num_clients: int, alpha: float) -> Iterator[np.ndarray]:
    """For each class, its samples at each client, int64[clients], in proportions drawn from Dirichlet(alpha, ...)."""
    at_once = max(1, (1 << 20) // num_clients)  # many classes in one draw where clients are few: calls cost most then
    concentration = np.full(num_clients, float(alpha))
    for start in range(0, len(totals), at_once):
        some = totals[start : start + at_once]
        yield from apportion(dirichlet_rows(rng, concentration, len(some)), some)


def _balanced_counts(rng: np.random.Generator, totals: np.ndarray, num_clients: int, alpha: float) -> np.ndarray:
    """int64[classes, clients]: samples of each class for each client, with rows that sum to `totals` and columns to
    equal sizes, near mixes of labels drawn from a Dirichlet."""
    sizes = equal(int(totals.sum()), num_clients)
    concentration = alpha * len(totals) * (totals / totals.sum())
    mixes = np.ascontiguousarray(dirichlet_rows(rng, concentration, num_clients).T)
    for _ in range(100):  # iterative proportional fitting, which converges as no entry is 0; what it leaves is moved
        mixes = np.maximum(mixes, 1e-12)
        mixes *= (totals / (mixes * sizes).sum(axis=1))[:, None]
        mixes /= mixes.sum(axis=0)
        if np.abs((mixes * sizes).sum(axis=1) - totals).max() < 0.5:
            break
    counts = np.ascontiguousarray(apportion(mixes.T, sizes).T)
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
