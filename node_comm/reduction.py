"""The elementwise combination of several ranks' arrays, block by block, so that the partial result stays in cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from node_comm.transport import Operation

#: Bytes of a block: it must fit the second-level cache together with a block of one more array.
BLOCK_BYTES = 1 << 18

#: Elements at whose multiples a reduction is cut into slices; whatever is shorter than one, the root combines alone.
SLICE = 1 << 15

_COMBINE: dict[Operation, np.ufunc] = {"sum": np.add, "max": np.maximum, "min": np.minimum}


def combine(parts: Sequence[np.ndarray], out: np.ndarray, operation: Operation) -> None:
    """Combine `parts` in the order given into `out`, which may be one of them. All flat, of one dtype and length."""
    ufunc = _COMBINE[operation]
    length = max(1, BLOCK_BYTES // out.dtype.itemsize)
    # `out` may take the partial result unless it is a part that is still to be read.
    is_read_later = any(np.may_share_memory(out, part) for part in parts[2:])
    block = np.empty(min(length, out.size), out.dtype) if is_read_later else None
    for begin in range(0, out.size, length):
        end = min(begin + length, out.size)
        partial = out[begin:end] if block is None else block[: end - begin]
        if len(parts) == 1:
            np.copyto(partial, parts[0][begin:end])
        else:
            ufunc(parts[0][begin:end], parts[1][begin:end], out=partial)
        for part in parts[2:]:
            ufunc(partial, part[begin:end], out=partial)
        if block is not None:
            np.copyto(out[begin:end], partial)


def a_like(flat: np.ndarray | None, out: np.ndarray | None) -> np.ndarray:
    """What every rank of a reduction has one of: a flat array of its dtype and length."""
    like = out if flat is None else flat
    assert like is not None, "a rank that gives nothing is the root, which has out"
    return like


def neutral(like: np.ndarray, operation: str, length: int) -> np.ndarray:
    """So many elements that change nothing that they are combined with."""
    if operation == "sum":
        return np.zeros(length, like.dtype)
    if like.dtype.kind == "f":
        return np.full(length, -np.inf if operation == "max" else np.inf, like.dtype)
    limits = np.iinfo(like.dtype)
    return np.full(length, limits.min if operation == "max" else limits.max, like.dtype)


def slice_of(count: int, index: int, size: int) -> tuple[int, int]:
    """Begin and end of the slice of `count` elements that worker `index` of `size` combines; the first gets most."""
    units = -(-count // SLICE)
    begin, end = (-(-units * at // size) * SLICE for at in (index, index + 1))
    return min(begin, count), min(end, count)
