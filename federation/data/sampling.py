"""The cohort of a round: how many clients, and which.

A sampler is a function `f(seed, round, clients, cohort_size) -> indices` in the table SAMPLERS, or the one of
`federation.data.availability`, which needs settings. `clients` is a Pool, or the clients' samples, int64[num_clients];
those without any are never drawn. The indices are distinct, sorted, int64, and a function of the arguments alone: round 7 can
be drawn without those before it, with the same result on every platform. Where fewer than `cohort_size` clients can be
drawn, all those are the cohort. All raise ConfigError for a cohort larger than the number of clients or below 1, and
where nobody has samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import cached_property, lru_cache
from types import MappingProxyType

import numpy as np

from federation.core.random import stream
from federation.data.draws import below, log, shuffled, uniforms
from federation.errors import ConfigError, DataError


class Pool:
    """The clients to draw from: what samplers know of all of them, found once and not in each round.

    `sizes`: samples of each client, int64[num_clients]; borrowed, not to be changed.
    """

    def __init__(self, sizes: np.ndarray) -> None:
        self.sizes = sizes

    @cached_property
    def eligible(self) -> np.ndarray | None:
        """Clients with samples, rising; None where that is all of them."""
        return None if self.sizes.all() else np.flatnonzero(self.sizes)

    @cached_property
    def num_eligible(self) -> int:
        return len(self.sizes) if self.eligible is None else len(self.eligible)

    @cached_property
    def ends(self) -> np.ndarray:
        """Running sums of `sizes`, float64: one addition after the other, the same everywhere."""
        return np.cumsum(self.sizes, dtype=np.float64)

    def named(self, places: np.ndarray) -> np.ndarray:
        """The clients at these places among those with samples."""
        return places if self.eligible is None else self.eligible[places]


Sampler = Callable[[int, int, np.ndarray | Pool, int], np.ndarray]


def cohort_size_of(fraction: float | Decimal | Fraction, num_clients: int) -> int:
    """The number of clients that `fraction` of `num_clients` means: the floor of the exact product, at least 1.

    A float counts as the decimal number that it is written as, so 0.29 of 100 is 29. Raises ConfigError unless
    0 < fraction <= 1 and num_clients is at least 1.
    """
    if isinstance(num_clients, bool) or not isinstance(num_clients, int | np.integer) or num_clients < 1:
        raise ConfigError(f"num_clients: {num_clients!r} is not a whole number of at least 1")
    share = exact_fraction(fraction)
    if share is None or not 0 < share <= 1:
        raise ConfigError(f"fraction: {fraction!r} is not a number above 0 and at most 1; "
                          f"for a fixed number of clients give cohort_size")
    return max(1, math.floor(share * int(num_clients)))


def over_selected(cohort_size: int, over_select: float | Decimal | Fraction) -> int:
    """The number of clients to draw so that `cohort_size` of them are in time: the ceiling of the exact product.

    A float counts as the decimal number that it is written as, so 1.1 times 50 is 55. Raises ConfigError for a factor
    below 1.
    """
    factor = exact_fraction(over_select)
    if factor is None or factor < 1:
        raise ConfigError(f"over_select: {over_select!r} is not a number of at least 1")
    return math.ceil(factor * cohort_size)


def exact_fraction(value: object) -> Fraction | None:
    """The decimal number that `value` is written as, exactly; None for what is not a finite real number."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | Decimal | Fraction | np.number):
        return None
    try:
        return as_written(value)
    except ValueError:  # nan, inf, complex
        return None


def as_written(number: object) -> Fraction:
    """The decimal number that `number` is written as, exactly; ValueError for what is not a finite real number."""
    return Fraction(str(number))


def exact_share(value: object, name: str) -> Fraction:
    """`value`, a share of samples of at least 0 and below 1, exactly; DataError, beginning with `name`, for others."""
    share = exact_fraction(value)
    if share is None or not 0 <= share < 1:
        raise DataError(f"{name}: {value!r} is not a number of at least 0 and below 1")
    return share


def draw_cohort(seed: int, round: int, num_clients: int, cohort_size: int,
                eligible: np.ndarray | None = None) -> np.ndarray:
    """The indices of the clients of round `round`: distinct, sorted, int64; a function of its arguments alone.

    Every set of `cohort_size` clients is equally likely. `eligible` (int64, distinct indices) limits the draw to
    clients that have samples; where fewer than `cohort_size` are left, all of them are the cohort. Time and memory
    are O(cohort_size), `eligible` aside. Raises ConfigError for a cohort larger than num_clients or below 1, and
    where nobody is eligible.
    """
    pool = num_clients if eligible is None else len(eligible)
    check_cohort_size(num_clients, cohort_size, pool)
    chosen = _distinct(stream(seed, "cohort", round), pool, min(cohort_size, pool))
    return np.sort(chosen if eligible is None else np.asarray(eligible, np.int64)[chosen])


def uniform(seed: int, round: int, clients: np.ndarray | Pool, cohort_size: int) -> np.ndarray:
    """Every cohort is equally likely. Time is O(cohort_size)."""
    pool = pool_of(clients)
    return draw_cohort(seed, round, len(pool.sizes), cohort_size, pool.eligible)


def weighted(seed: int, round: int, clients: np.ndarray | Pool, cohort_size: int) -> np.ndarray:
    """Clients one after the other, each with probability proportional to its samples, among those that are left.

    Draws with replacement are taken in their order, repeats passed over; that is the distribution wanted. Where few
    clients have most samples it may take for ever, so after 2 cohort_size draws the rest of the cohort are the clients
    with the smallest E_k / n_k, E_k exponential variates (Efraimidis and Spirakis, "Weighted random sampling with a
    reservoir", 2006): the same distribution, for O(num_clients) logarithms. Time is O(cohort_size log num_clients) else.
    """
    pool = pool_of(clients)
    check_cohort_size(len(pool.sizes), cohort_size, pool.num_eligible)
    if cohort_size >= pool.num_eligible:
        return pool.named(np.arange(pool.num_eligible))
    rng = stream(seed, "cohort", round)
    targets = uniforms(rng, 2 * cohort_size) * pool.ends[-1]
    rising = np.argsort(targets)  # neighbours are found in the same part of the cache
    drawn = np.empty(len(targets), np.int64)
    drawn[rising] = np.searchsorted(pool.ends, targets[rising], side="right")
    _, first = np.unique(drawn, return_index=True)
    chosen = drawn[np.sort(first)[:cohort_size]]
    if len(chosen) < cohort_size:
        rest = np.setdiff1d(pool.named(np.arange(pool.num_eligible)), chosen, assume_unique=True)
        keys = -log(uniforms(rng, len(rest))) / pool.sizes[rest]
        chosen = np.concatenate([chosen, rest[np.argsort(keys, kind="stable")[: cohort_size - len(chosen)]]])
    return np.sort(chosen)


def round_robin(seed: int, round: int, clients: np.ndarray | Pool, cohort_size: int) -> np.ndarray:
    """Clients in turn, in an order that is shuffled once: nobody is drawn again before everybody else has been.

    Round r (from 1) takes the places from (r - 1) * cohort_size on, and begins again after the last. The order, 8 bytes
    a client, is kept from round to round.
    """
    pool = pool_of(clients)
    check_cohort_size(len(pool.sizes), cohort_size, pool.num_eligible)
    size = min(cohort_size, pool.num_eligible)
    places = ((round - 1) * size % pool.num_eligible + np.arange(size)) % pool.num_eligible
    return np.sort(pool.named(_turns(seed, pool.num_eligible)[places]))


def pool_of(clients: np.ndarray | Pool) -> Pool:
    return clients if isinstance(clients, Pool) else Pool(clients)


@lru_cache(maxsize=1)
def _turns(seed: int, pool: int) -> np.ndarray:
    return shuffled(stream(seed, "round_robin"), pool)


def check_cohort_size(num_clients: int, cohort_size: int, pool: int) -> None:
    """Raise ConfigError where `cohort_size` is not from 1 to `num_clients`, or `pool`, those with samples, is 0."""
    if not 1 <= cohort_size <= num_clients:
        raise ConfigError(f"cohort_size: {cohort_size} clients cannot be drawn from {num_clients}; "
                          f"allowed are 1 to {num_clients}")
    if pool == 0:
        raise ConfigError(f"none of the {num_clients} clients has samples: check the partition (allow_empty)")


def _distinct(rng: np.random.Generator, pool: int, count: int) -> np.ndarray:
    """`count` distinct values of 0 .. pool-1, each set equally likely."""
    if 4 * count > pool:  # the permutation is O(count) then
        return shuffled(rng, pool)[:count]
    found = np.empty(0, np.int64)
    while len(found) < count:  # each pass draws at least two thirds of what is missing, so there are few
        found = np.unique(np.concatenate([found, below(rng, pool, count - len(found))]))
    return found


SAMPLERS: MappingProxyType[str, Sampler] = MappingProxyType({"uniform": uniform, "weighted": weighted,
                                                             "round_robin": round_robin})
