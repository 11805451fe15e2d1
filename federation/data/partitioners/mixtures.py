"""Label skew client by client: each draws its own mix of labels, and takes samples without replacement."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from federation.core.random import stream
from federation.data.draws import dirichlet_rows, exp, normals, shuffled, shuffled_by
from federation.data.partition import Partition, classes_of
from federation.data.partitioners.apportion import apportion, at_least, equal, least_size, number, owners
from federation.errors import DataError

#: Entries of the tables of mixes that are made at a time.
_BLOCK = 1 << 20

#: Mixes of some clients, in order of their turns: f(rows, available) -> float64[rows, classes] over the classes that have
#: samples left, bool[classes]; rows need not sum to 1.
Mixes = Callable[[slice, np.ndarray], np.ndarray]


def inner_dirichlet(labels: np.ndarray, num_clients: int, rng_seed: int, *, alpha: float = 0.5, sigma: float = 0.0,
                    min_size: int = 1) -> Partition:
    """Each client draws its mix of labels from Dirichlet(alpha, ..., alpha), and takes its number of samples by that mix.

    Sizes are equal, or with `sigma` in proportion to exp(sigma z), z standard normal, and at least `min_size`. Clients
    take turns in random order; what a class no longer has, its share is taken from the classes that are left, in
    proportion to the mix (Acar et al. 2021, "Federated learning based on dynamic regularization", appendix; there one
    sample at a time). The last clients get what is left.

    Raises DataError for labels that are not integers, alpha outside 1e-9 .. 1e9, sigma outside 0 .. 10, and too few
    samples.
    """
    alpha, sigma = number("alpha", alpha, 1e-9, 1e9), number("sigma", sigma, 0, 10)
    classes, codes = classes_of(labels)
    least = least_size(len(codes), num_clients, min_size, False)
    sizes = equal(len(codes), num_clients)
    if sigma:
        logs = sigma * normals(stream(rng_seed, "partition_sizes"), num_clients)
        sizes = at_least(apportion(exp(logs - logs.max()), np.array(len(codes))), least)
    concentration = np.full(len(classes), alpha)

    def draw(rng: np.random.Generator, count: int) -> Mixes:
        drawn = dirichlet_rows(rng, concentration, count)
        return lambda rows, available: drawn[rows] * available

    return _taken(codes, len(classes), sizes, draw, rng_seed)


def pachinko(labels: np.ndarray, num_clients: int, rng_seed: int, *, columns: Mapping[str, np.ndarray],
             alpha: float = 0.1, beta: float = 10.0, coarse: str = "coarse_label") -> Partition:
    """Two levels of label skew, for CIFAR-100 above all: over superclasses, and over the classes within each.

    Each client draws a mix of superclasses from Dirichlet(alpha, ...), and within each a mix of its classes from
    Dirichlet(beta, ...); it takes its samples by the product, without replacement. What a class no longer has is taken
    from others of its superclass, and what that no longer has from other superclasses (Pachinko allocation, Li and
    McCallum 2006; Reddi et al. 2021, appendix F). Clients are equally large, and take turns in random order.

    `columns` holds, under the name `coarse`, the superclass of each sample, int64[n]; classes that appear in several of
    them count apart. Raises DataError where there is no such column, for alpha or beta outside 1e-9 .. 1e9, and more
    clients than samples.
    """
    alpha, beta = number("alpha", alpha, 1e-9, 1e9), number("beta", beta, 1e-9, 1e9)
    if coarse not in columns:
        raise DataError(f"coarse: there is no column {coarse!r} of superclasses; the data set has "
                        f"{', '.join(columns) or 'no columns'}")
    fine, fine_codes = classes_of(labels)
    groups, group_codes = classes_of(columns[coarse])
    least_size(len(fine_codes), num_clients, 1, False)
    pairs, codes = np.unique(group_codes * len(fine) + fine_codes, return_inverse=True)
    group_of = pairs // len(fine)  # of each class within its superclass, rising
    starts = np.searchsorted(group_of, np.arange(len(groups)))

    def draw(rng: np.random.Generator, count: int) -> Mixes:
        roots = dirichlet_rows(rng, np.full(len(groups), alpha), count)[:, group_of]
        leaves = np.concatenate([dirichlet_rows(rng, np.full(size, beta), count) for size in np.bincount(group_of)], axis=1)

        def mixes(rows: slice, available: np.ndarray) -> np.ndarray:
            left: np.ndarray = leaves[rows] * available
            within = np.add.reduceat(left, starts, axis=1)
            mixed: np.ndarray = left / np.where(within > 0, within, 1)[:, group_of] * roots[rows]
            return mixed

        return mixes

    return _taken(codes, len(pairs), equal(len(codes), num_clients), draw, rng_seed)


def _taken(codes: np.ndarray, num_classes: int, sizes: np.ndarray, draw: Callable[[np.random.Generator, int], Mixes],
           rng_seed: int) -> Partition:
    """The partition in which clients, in random order, take `sizes` samples by the mixes that `draw` makes for them."""
    rng, mixes_rng = stream(rng_seed, "partition"), stream(rng_seed, "partition_mixes")
    turns = shuffled(rng, len(sizes))
    stock = np.bincount(codes, minlength=num_classes)
    block = max(1, _BLOCK // num_classes)
    counts = np.concatenate([_block(draw(mixes_rng, len(some)), sizes[some], stock)
                             for some in np.split(turns, range(block, len(turns), block))])
    order, _ = shuffled_by(rng, codes, num_classes)
    owner = owners(np.ascontiguousarray(counts.T), turns, len(order))
    return Partition(*shuffled_by(rng, owner, len(sizes), order))


def _block(mixes: Mixes, sizes: np.ndarray, stock: np.ndarray) -> np.ndarray:
    """What each of these clients takes of each class, int64[clients, classes], one after the other; out of `stock`.

    As many as there is enough for are served at once. Then comes one that takes the last sample of some class, so there
    are no more of these than classes.
    """
    counts = np.zeros((len(sizes), len(stock)), np.int64)
    at = 0
    while at < len(sizes):
        wanted = apportion(_mixed(mixes, slice(at, len(sizes)), stock), sizes[at:])
        is_enough = np.asarray((np.cumsum(wanted, axis=0) <= stock).all(axis=1))
        served = len(is_enough) if is_enough.all() else int(is_enough.argmin())
        counts[at : at + served] = wanted[:served]
        stock -= wanted[:served].sum(axis=0)
        at += served
        if at < len(sizes):
            row = slice(at, at + 1)
            while (missing := sizes[row] - counts[row].sum()) > 0:  # each pass ends it, or a class
                taken = np.minimum(apportion(_mixed(mixes, row, stock), missing)[0], stock)
                counts[at] += taken
                stock -= taken
            at += 1
    return counts


def _mixed(mixes: Mixes, rows: slice, stock: np.ndarray) -> np.ndarray:
    """Their mixes; of those that want nothing of what is there, the stock's own."""
    mixed = mixes(rows, stock > 0)
    return np.where(mixed.sum(axis=1, keepdims=True) > 0, mixed, stock)
