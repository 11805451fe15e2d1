"""The cohort of a round: how many clients, and which."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np

from federation.core.random import stream
from federation.data.draws import below, shuffled
from federation.errors import ConfigError


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


def exact_fraction(value: object) -> Fraction | None:
    """The decimal number that `value` is written as, exactly; None for what is not a finite real number."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | Decimal | Fraction | np.number):
        return None
    try:
        return Fraction(str(value))
    except ValueError:  # nan, inf, complex
        return None


def draw_cohort(seed: int, round: int, num_clients: int, cohort_size: int,
                eligible: np.ndarray | None = None) -> np.ndarray:
    """The indices of the clients of round `round`: distinct, sorted, int64; a function of its arguments alone.

    Every set of `cohort_size` clients is equally likely. `eligible` (int64, distinct indices) limits the draw to
    clients that have samples; where fewer than `cohort_size` are left, all of them are the cohort. Time and memory
    are O(cohort_size), `eligible` aside. Raises ConfigError for a cohort larger than num_clients or below 1, and
    where nobody is eligible.
    """
    if not 1 <= cohort_size <= num_clients:
        raise ConfigError(f"cohort_size: {cohort_size} clients cannot be drawn from {num_clients}; "
                          f"allowed are 1 to {num_clients}")
    pool = num_clients if eligible is None else len(eligible)
    if pool == 0:
        raise ConfigError(f"none of the {num_clients} clients has samples: check the partition (allow_empty)")
    chosen = _distinct(stream(seed, "cohort", round), pool, min(cohort_size, pool))
    return np.sort(chosen if eligible is None else np.asarray(eligible, np.int64)[chosen])


def _distinct(rng: np.random.Generator, pool: int, count: int) -> np.ndarray:
    """`count` distinct values of 0 .. pool-1, each set equally likely."""
    if 4 * count > pool:  # the permutation is O(count) then
        return shuffled(rng, pool)[:count]
    found = np.empty(0, np.int64)
    while len(found) < count:  # each pass draws at least two thirds of what is missing, so there are few
        drawn = np.concatenate([found, below(rng, pool, count - len(found))])
        _, first = np.unique(drawn, return_index=True)
        found = drawn[np.sort(first)]
    return found
