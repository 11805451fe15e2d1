"""Whole numbers of samples: shared out without losing one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from federation.data.draws import shuffled_by
from federation.errors import DataError


def least_size(num_samples: int, num_clients: int, min_size: int, allow_empty: bool) -> int:
    """The samples that every client must have, once it is certain that there are enough."""
    check_count("num_clients", num_clients)
    check_count("min_size", min_size)
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


def check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise DataError(f"{name}: {value!r} is not a whole number of at least 1")


def offsets_of(sizes: np.ndarray) -> np.ndarray:
    """Where each client's samples begin, and the last one's end: int64[clients + 1]."""
    offsets = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    return offsets


def equal(total: int, parts: int) -> np.ndarray:
    """`total` in `parts` sizes that differ by at most one, larger ones first."""
    sizes = np.full(parts, total // parts, np.int64)
    sizes[: total % parts] += 1
    return sizes


def apportion(proportions: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Whole counts that sum to `totals` along the last axis, each less than one from its proportion of it.

    The running sum is rounded, not each count, so nothing is lost.
    """
    running = np.cumsum(proportions, axis=-1)
    bounds = np.floor(running / running[..., -1:] * totals[..., None] + 0.5).astype(np.int64)
    return np.diff(bounds, axis=-1, prepend=0)


def fill_up(rng: np.random.Generator, owner: np.ndarray, num_clients: int, least: int) -> None:
    """Give samples of the largest clients to those with fewer than `least`, in place: `owner` is the client of each."""
    sizes = np.bincount(owner, minlength=num_clients)
    missing = np.maximum(least - sizes, 0)
    total = int(missing.sum())
    if total == 0:
        return
    given = _surplus(sizes, least, total)
    order, offsets = shuffled_by(rng, owner, num_clients, only=given > 0)
    ends = np.repeat(offsets[1:] - offsets_of(given)[1:], given)
    owner[order[ends + np.arange(total)]] = np.repeat(np.arange(num_clients), missing)


def _surplus(sizes: np.ndarray, least: int, total: int) -> np.ndarray:
    """What each of `sizes` gives so that `total` come together and the largest come down to one level."""
    low, high = least, int(sizes.max())  # the highest level such that what stands above it is enough
    while low < high:
        level = (low + high + 1) // 2
        low, high = (level, high) if np.maximum(sizes - level, 0).sum() >= total else (low, level - 1)
    given: np.ndarray = np.maximum(sizes - low, 0)
    given[np.flatnonzero(given)[: int(given.sum()) - total]] -= 1
    return given


def at_least(sizes: np.ndarray, least: int) -> np.ndarray:
    """`sizes` with those below `least` raised to it, at the cost of the largest; the sum stays."""
    missing = int(np.maximum(least - sizes, 0).sum())
    if missing == 0:
        return sizes
    raised: np.ndarray = np.maximum(sizes, least) - _surplus(sizes, least, missing)
    return raised


def number(name: str, value: object, low: float, high: float) -> float:
    """`value` as a float; DataError unless it is a number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not low <= value <= high:
        raise DataError(f"{name}: {value!r} is not a number from {low:g} to {high:g}")
    return float(value)


def owners(counts: Iterable[np.ndarray], holders: np.ndarray, total: int) -> np.ndarray:
    """The holder of each of `total` samples, int64: group after group, `counts` of each group (int64[holders]) for each of
    `holders`, in order."""
    owner = np.empty(total, np.int64)
    filled = 0
    for group in counts:
        part = np.repeat(holders, group)
        owner[filled : filled + len(part)] = part
        filled += len(part)
    return owner


def listed(items: list[Any], limit: int = 20) -> str:
    text = ", ".join(map(str, items[:limit]))
    return text if len(items) <= limit else f"{text} and {len(items) - limit} more"
