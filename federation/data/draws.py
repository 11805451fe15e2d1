"""Random draws of the data layer, made of raw generator bits and of exactly rounded arithmetic alone.

NumPy keeps the raw bits of a counter-based generator for ever, but neither its permutations nor its normal and gamma
variates, and its logarithms differ in the last place between processors. What follows needs no more than those bits,
integers, and + - * / sqrt, which IEEE 754 rounds exactly: a seed gives the same draws on every platform and version.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np

from federation.errors import DataError

Real = TypeVar("Real", float, np.ndarray)

_BLOCK = 1 << 13  # variates made at a time, so that intermediate results stay in the cache
_KEYS = 1 << 16  # keys made at a time
_LN2_HIGH = float.fromhex("0x1.62e42feep-1")  # its low bits are zero, so that k * _LN2_HIGH is exact for |k| < 2^20
_LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
_LOG_4 = float.fromhex("0x1.62e42fefa39efp+0")


def uniforms(rng: np.random.Generator, count: int) -> np.ndarray:
    """float64[count] in the open interval (0, 1), 52 bits each."""
    raw = np.asarray(rng.bit_generator.random_raw(count), np.uint64)
    return ((raw >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def below(rng: np.random.Generator, limit: int, count: int) -> np.ndarray:
    """int64[count], each of 0 .. limit-1 equally likely but for one part in 2^53 / limit."""
    raw = np.asarray(rng.bit_generator.random_raw(count), np.uint64)
    return np.floor((raw >> np.uint64(11)).astype(np.float64) * 2.0**-53 * limit).astype(np.int64)


def shuffled(rng: np.random.Generator, count: int) -> np.ndarray:
    """A random permutation of 0 .. count-1, int64."""
    return _sort_items(rng, count)


def shuffled_by(rng: np.random.Generator, group: np.ndarray, num_groups: int,
                items: np.ndarray | None = None, only: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Bring items of the same group together, each group in random order.

    `group` holds 0 .. num_groups-1 for each of `items`, a permutation of 0 .. n-1 (in that order where None). Returns
    `order` (int64, the items) and `offsets` (int64[num_groups + 1]): group g has order[offsets[g]:offsets[g + 1]].
    `only`, bool[num_groups], leaves the other groups empty; those named are as they would be without it.
    """
    order = _sort_items(rng, len(group), items, group, num_groups, only)
    sizes = np.bincount(group, minlength=num_groups)
    offsets = np.zeros(num_groups + 1, np.int64)
    np.cumsum(sizes if only is None else sizes * only, out=offsets[1:])
    return order, offsets


def _sort_items(rng: np.random.Generator, count: int, items: np.ndarray | None = None,
                group: np.ndarray | None = None, num_groups: int = 1, only: np.ndarray | None = None) -> np.ndarray:
    # One 64-bit key an item: its group, random bits, the item. Sorting integers is several times faster than a
    # shuffle of that length, which misses the cache at each step.
    index_bits = max(count - 1, 0).bit_length()
    group_bits = (num_groups - 1).bit_length()
    random_bits = 64 - group_bits - index_bits
    if random_bits < 8:
        raise DataError(f"{count} samples in {num_groups} groups are too many: at most 2^56 samples times groups")
    keys = np.empty(count, np.uint64)
    filled = 0
    for start in range(0, count, _KEYS):  # in pieces, which stay in the cache
        part = slice(start, min(start + _KEYS, count))
        made = np.asarray(rng.bit_generator.random_raw(part.stop - start), np.uint64)
        made >>= np.uint64(64 - random_bits)
        made <<= np.uint64(index_bits)
        made |= np.arange(start, part.stop, dtype=np.uint64) if items is None else items[part].view(np.uint64)
        if group is not None and group_bits:
            made |= group[part].astype(np.uint64) << np.uint64(64 - group_bits)
        if only is not None and group is not None:
            made = made[only[group[part]]]
        keys[filled : filled + len(made)] = made
        filled += len(made)
    keys = keys[:filled]
    keys.sort()
    keys &= np.uint64((1 << index_bits) - 1)
    return keys.view(np.int64)


def normals(rng: np.random.Generator, count: int) -> np.ndarray:
    """float64[count] of standard normal variates (Marsaglia's polar method)."""
    out = np.empty(count)
    filled = 0
    while filled < count:
        pairs = min(count - filled, _BLOCK) * 2 // 3 + 8  # pi / 4 of them are accepted
        a, b = 2 * uniforms(rng, pairs) - 1, 2 * uniforms(rng, pairs) - 1
        square = a * a + b * b
        inside = square < 1
        a, b, square = a[inside], b[inside], square[inside]
        radius = np.sqrt(-2 * log(square) / square)
        both = np.stack([a * radius, b * radius], axis=1).reshape(-1)[: count - filled]
        out[filled : filled + len(both)] = both
        filled += len(both)
    return out


def dirichlet_rows(rng: np.random.Generator, concentration: np.ndarray, count: int) -> np.ndarray:
    """float64[count, k]: each row a draw of Dirichlet(concentration), float64[k] of numbers above 0.

    The gamma variates behind it are kept as logarithms, so that a concentration of 0.001, whose variates underflow,
    gives proportions and not 0 / 0. A proportion may still be 0, but not all of a row.
    """
    logs = _log_gammas(rng, np.tile(np.asarray(concentration, np.float64), count)).reshape(count, -1)
    logs -= logs.max(axis=1, keepdims=True)
    weights = exp(logs)
    proportions: np.ndarray = weights / np.cumsum(weights, axis=1)[:, -1:]
    return proportions


def _log_gammas(rng: np.random.Generator, shape: np.ndarray) -> np.ndarray:
    """Logarithms of Gamma(shape) variates, float64 like `shape`.

    Gamma(a) is Gamma(a + 1) * U^(1/a). Gamma(a + 1) comes from Cheng's algorithm GB, a rejection from the log-logistic
    distribution that accepts more than two draws of three for every a.
    """
    out = np.empty_like(shape)
    pending = np.arange(len(shape))
    while len(pending):
        rejected = []
        for start in range(0, len(pending), _BLOCK):
            block = pending[start : start + _BLOCK]
            a = shape[block] + 1
            rate = np.sqrt(2 * a - 1)
            v = uniforms(rng, len(a))
            logistic = log(v / (1 - v)) / rate
            x = a * exp(logistic)
            accepted = a - _LOG_4 + (a + rate) * logistic - x >= log(uniforms(rng, len(a)) * (v * v))
            out[block] = log(a) + logistic
            rejected.append(block[~accepted])
        pending = np.concatenate(rejected)
    for start in range(0, len(shape), _BLOCK):
        part = out[start : start + _BLOCK]
        part += log(uniforms(rng, len(part))) / shape[start : start + _BLOCK]
    return out


def log(x: np.ndarray) -> np.ndarray:
    """The natural logarithm of float64 values above 0, within 2 units in the last place, the same bits everywhere."""
    mantissa, exponent = np.frexp(x)
    small = mantissa < 0.7071067811865476
    return _scaled_log(np.where(small, 2 * mantissa, mantissa), (exponent - small).astype(np.float64))


def log_of(x: float) -> float:
    """As `log`, the same bits for one number in a twentieth of the time."""
    mantissa, exponent = math.frexp(x)
    small = mantissa < 0.7071067811865476
    return _scaled_log(2 * mantissa if small else mantissa, float(exponent - small))


def _scaled_log(mantissa: Real, exponent: Real) -> Real:
    s = (mantissa - 1) / (mantissa + 1)
    square = s * s
    tail = square * (1 / 21)
    for power in range(19, 1, -2):  # log(m) = 2 (s + s^3/3 + s^5/5 + ...), |s| < 0.172
        tail = (tail + 1 / power) * square
    logarithm: Real = exponent * _LN2_HIGH + (2 * s + (2 * s * tail + exponent * _LN2_LOW))
    return logarithm


def exp(x: np.ndarray) -> np.ndarray:
    """The exponential of float64 values, within 2 units in the last place, the same bits everywhere; 0 below -700."""
    clipped = np.clip(x, -700.0, 700.0)
    k = np.rint(clipped * 1.4426950408889634)
    exponential: np.ndarray = np.where(x < -700.0, 0.0, np.ldexp(_reduced_exp(clipped, k), k.astype(np.int32)))
    return exponential


def exp_of(x: float) -> float:
    """As `exp`, the same bits for one number in a twentieth of the time."""
    clipped = min(x, 700.0)
    k = round(clipped * 1.4426950408889634)
    return 0.0 if x < -700.0 else math.ldexp(_reduced_exp(clipped, float(k)), k)


def _reduced_exp(x: Real, k: Real) -> Real:
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    total = 1 + r / 14
    for n in range(13, 0, -1):
        total = 1 + total * r / n
    return total
