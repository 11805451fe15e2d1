"""The native loops, behind checked doors: exact fixed-point sums of arrays, and what goes with them.

Every function takes NumPy arrays in C order, in native byte order, of one of `DTYPES`; any shape, any alignment.
Whatever else is given is refused before a single element is touched:

- TypeError for something that is not a NumPy array, another dtype, another memory order, a read-only destination;
- ValueError for shapes that differ, a destination that overlaps another argument, a number out of its range.

Nothing is copied, and nothing is kept after the call. The GIL is released while the elements are worked on. Results
are the same bits on every CPU and in every variant, whatever the thread's floating-point mode (rounding, flushed
denormals) is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from federation import _native

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

#: Element types of models: bool, the integers of 8 to 64 bits, float16, bfloat16, float32 and float64.
DTYPES = frozenset(
    np.dtype(name)
    for name in ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16",
                 "float32", "float64")
) | {BFLOAT16}

#: Limb l of a wide sum counts for 2**(LIMB_BITS * l).
LIMB_BITS = 40
#: The largest magnitude that `accumulate` adds to one 64-bit total.
LIMB_LIMIT = 2.0**61
#: The most limbs of a wide sum.
MAX_LIMBS = 16

_INT64, _UINT8, _FLOAT64 = np.dtype(np.int64), np.dtype(np.uint8), np.dtype(np.float64)
#: The native module's numbers for the element types.
_NUMBERS = {name: number for number, name in enumerate(_native.DTYPES)}
#: How elements travel to the native module, where it has no type of its own for them.
_CARRIERS = {np.dtype(bool): np.uint8, np.dtype(np.float16): np.uint16, BFLOAT16: np.uint16}


class Findings(NamedTuple):
    """What a pass over an array found: the largest magnitude among finite elements, and whether all are finite."""

    peak: float
    finite: bool


def accumulate(total: np.ndarray, values: np.ndarray, start: np.ndarray, factor: float,
               limit: float = LIMB_LIMIT) -> Findings:
    """Add ``rint((values - start) * factor)`` to `total`, exactly.

    The difference and the product are float64, each rounded once; rint rounds half to even. Integers are subtracted as
    integers. Elements whose scaled difference exceeds `limit` in magnitude, or is not a number, add nothing.
    The same call with ``-factor`` takes back exactly what this one added.

    total: int64, as many elements as `values`, written in place; sums wrap around at 64 bits.
    values, start: one dtype, one shape.
    factor: finite. limit: 0 to 2**61.

    Returns the largest scaled magnitude over the elements whose value is finite (infinity where scaling overflowed),
    and whether all of `values` is finite. Something was left out if ``peak > limit`` or not ``finite``.
    """
    _check_inputs(values, start)
    _check_totals([total], values, (values, start))
    _check_number("factor", factor, -math.inf, math.inf)
    if not 0 <= limit <= LIMB_LIMIT:
        raise ValueError(f"limit must be from 0 to 2**61, not {limit}")
    kernel = _kernel("accumulate", values.dtype)
    return Findings(*kernel(_flat(total), _flat(values), _flat(start), float(factor), float(limit)))


class Places:
    """Where the arrays of a model lie: in its bytes, and in a vector with a slot for each of its values.

    dtypes, sizes: of each array. offsets: where it begins in the bytes; slots: where in the vector. Both rise, and leave
    each array its room. nbytes, num_slots: the least length of the two.
    """

    def __init__(self, dtypes: Sequence[np.dtype], sizes: Sequence[int], offsets: Sequence[int], slots: Sequence[int]) -> None:
        self.nbytes = self.num_slots = 0
        table = []
        for dtype, size, offset, slot in zip(dtypes, sizes, offsets, slots, strict=True):
            if dtype not in DTYPES:
                raise TypeError(f"an array has the dtype {dtype}; allowed are {', '.join(sorted(known.name for known in DTYPES))}")
            if size < 0 or offset < self.nbytes or slot < self.num_slots:
                raise ValueError(f"{size} values at byte {offset} and slot {slot} overlap those before them")
            self.nbytes, self.num_slots = offset + size * dtype.itemsize, slot + size
            table.append((_NUMBERS[dtype.name], offset, slot, size))
        self.count = len(table)
        self.table = np.array(table, np.int64).reshape(-1)


def accumulate_model(total: np.ndarray, values: np.ndarray, start: np.ndarray, places: Places, factors: np.ndarray,
                     limit: float = LIMB_LIMIT, *, fresh: bool = False) -> bool:
    """`accumulate` every array of a model, with a factor of its own, in one call; all of them, or nothing.

    total: int64[num_slots], written in place; where it is `fresh`, the places of the arrays count as zero and are not read.
    values, start: uint8, the bytes of two models. factors: float64[count], finite.
    Returns whether it was done: where `accumulate` would have left out anything, `total` is as it was, or fresh still.
    """
    for name, array, dtype, length in (("total", total, _INT64, places.num_slots), ("values", values, _UINT8, places.nbytes),
                                       ("start", start, _UINT8, places.nbytes), ("factors", factors, _FLOAT64, places.count)):
        _check_array(name, array, writable=array is total)
        if array.dtype != dtype or array.ndim != 1 or len(array) < length:
            raise TypeError(f"{name} must be a vector of at least {length} {dtype}, not {array.dtype}{list(array.shape)}")
    _check_apart("total", total, "values", values)
    _check_apart("total", total, "start", start)
    if len(factors) != places.count or not np.isfinite(factors).all():
        raise ValueError(f"factors must be {places.count} finite numbers, not {factors}")
    if not 0 <= limit <= LIMB_LIMIT:
        raise ValueError(f"limit must be from 0 to 2**61, not {limit}")
    return bool(_native.accumulate_model(total, values, start, places.table, factors, float(limit), fresh))


def accumulate_wide(limbs: Sequence[np.ndarray], values: np.ndarray, start: np.ndarray, factor: float) -> None:
    """Add ``rint((values - start) * factor)`` to the integer that `limbs` stand for together: limb l counts 2**(40 l).

    For what `accumulate` leaves out: scaled differences up to ``2**61 * 2**(40 * (len(limbs) - 1))``. Each limb but
    the uppermost gets at most 2**39 in magnitude. The same call with ``-factor`` takes back exactly what was added.

    limbs: 1 to 16 int64 arrays, each with as many elements as `values`, written in place.
    Raises ValueError, with `limbs` as they were, where an element is too large for them or not finite.
    """
    _check_inputs(values, start)
    _check_totals(limbs, values, (values, start))
    _check_number("factor", factor, -math.inf, math.inf)
    kernel = _kernel("accumulate_wide", values.dtype)
    if not kernel([_flat(limb) for limb in limbs], _flat(values), _flat(start), float(factor)):
        raise ValueError(f"values holds NaN, infinity, or a scaled difference beyond what {len(limbs)} limbs take")


def finish(out: np.ndarray, start: np.ndarray, limbs: Sequence[np.ndarray], scale: float, divisor: float) -> None:
    """Set `out` to ``start + sum * scale / divisor``, where `sum` is the integer that `limbs` stand for together.

    Computed in float64 and rounded once to the dtype of `out`, to nearest even. Integers saturate; a boolean is true
    where the result exceeds 1/2. How an integer is spread over limbs makes no difference.

    out, start: one dtype, one shape; `out` is written, and may be `start` itself.
    limbs: 1 to 16 int64 arrays with as many elements. scale: a power of two. divisor: positive.
    """
    _check_array("out", out, writable=True)
    _check_inputs(out, start, ("out", "start"))
    _check_totals(limbs, out, (out, start), writable=False)
    if _address(out) != _address(start):
        _check_apart("out", out, "start", start)
    _check_number("scale", scale, 0.0, math.inf)
    _check_number("divisor", divisor, 0.0, math.inf)
    if math.frexp(scale)[0] != 0.5:
        raise ValueError(f"scale must be a power of two, not {scale}")
    kernel = _kernel("finish", out.dtype)
    kernel(_flat(out), _flat(start), [_flat(limb) for limb in limbs], float(scale), float(divisor))


def copy(out: np.ndarray, values: np.ndarray) -> None:
    """Copy the bytes of `values` to `out`: both C order and of one dtype and shape, and apart or the very same memory.

    Large ones go past the caches, where NumPy's copy would read the memory that it is about to write.
    """
    _check_array("out", out, writable=True)
    _check_inputs(out, values, ("out", "values"))
    if _address(out) != _address(values):
        _check_apart("out", out, "values", values)
        _native.copy(out.reshape(-1).view(np.uint8), values.reshape(-1).view(np.uint8))


def axpy(y: np.ndarray, x: np.ndarray, a: float) -> None:
    """Add ``a * x`` to `y`, in the arithmetic of `y`: `a` and `x` are rounded to its dtype first.

    y: float32 or float64, written in place. x: any of DTYPES, the same shape.
    """
    _check_array("y", y, writable=True)
    _check_array("x", x)
    if y.dtype not in (np.float32, np.float64):
        raise TypeError(f"y must be float32 or float64, not dtype {y.dtype}")
    if y.shape != x.shape:
        raise ValueError(f"y has the shape {y.shape}, but x has {x.shape}")
    _check_apart("y", y, "x", x)
    _check_number("a", a, -math.inf, math.inf)
    _kernel(f"axpy_{y.dtype.name}", x.dtype)(_flat(y), _flat(x), float(a))


def examine(values: np.ndarray) -> Findings:
    """The largest magnitude of the finite elements (0.0 where there are none), and whether all are finite."""
    _check_array("values", values)
    return Findings(*_kernel("examine", values.dtype)(_flat(values)))


def max_abs(values: np.ndarray) -> float:
    """The largest magnitude of the finite elements; 0.0 where there are none."""
    return examine(values).peak


def all_finite(values: np.ndarray) -> bool:
    """Whether no element is NaN or infinite."""
    return examine(values).finite


def squared_distance(values: np.ndarray, start: np.ndarray) -> float:
    """The sum of ``(values - start) ** 2``, in float64 and in an order that is fixed; one dtype, one shape."""
    _check_inputs(values, start)
    return float(_kernel("squared_distance", values.dtype)(_flat(values), _flat(start)))


def variants() -> tuple[str, ...]:
    """The instruction sets that this CPU and this build can run, the fastest first. The last is always "portable"."""
    return tuple(_native.variants())


def variant() -> str:
    """The variant in use; the fastest unless another was selected."""
    return _native.variant()


def select_variant(name: str) -> None:
    """Use the variant `name` from now on, in the whole process. For tests and measurements: results never differ."""
    if name not in variants():
        raise ValueError(f"no variant {name!r} here: choose from {', '.join(variants())}")
    _native.select_variant(name)


_kernels: dict[tuple[str, np.dtype], Callable[..., Any]] = {
    (verb, dtype): getattr(_native, f"{verb}_{dtype.name}")
    for verb in ("accumulate", "accumulate_wide", "finish", "axpy_float32", "axpy_float64", "examine",
                 "squared_distance")
    for dtype in DTYPES
}


def _kernel(verb: str, dtype: np.dtype) -> Callable[..., Any]:
    return _kernels[verb, dtype]


def _flat(array: np.ndarray) -> np.ndarray:
    """The elements as a vector of the type in which the native module takes them; never a copy."""
    vector = array.reshape(-1)
    carrier = _CARRIERS.get(array.dtype)
    return vector if carrier is None else vector.view(carrier)


def _check_array(name: str, array: np.ndarray, writable: bool = False) -> None:
    if not isinstance(array, np.ndarray):
        dtype = getattr(array, "dtype", None)
        raise TypeError(f"{name} must be a NumPy array, not {type(array).__module__}.{type(array).__qualname__}"
                        f"{'' if dtype is None else f' (dtype {dtype})'}: give a C-contiguous one of a plain dtype")
    if array.dtype not in DTYPES:
        raise TypeError(f"{name} has the dtype {array.dtype}; allowed, in native byte order, are "
                        f"{', '.join(sorted(dtype.name for dtype in DTYPES))}")
    if not array.flags.c_contiguous:
        raise TypeError(f"{name} has the memory layout of strides {array.strides} for shape {array.shape}, which is "
                        f"not C-contiguous: use np.ascontiguousarray")
    if writable and not array.flags.writeable:
        raise TypeError(f"{name} (dtype {array.dtype}) is read-only, but it is to be written")


def _check_inputs(values: np.ndarray, start: np.ndarray, names: tuple[str, str] = ("values", "start")) -> None:
    _check_array(names[0], values)
    _check_array(names[1], start)
    if values.dtype != start.dtype:
        raise TypeError(f"{names[0]} has the dtype {values.dtype}, but {names[1]} has {start.dtype}")
    if values.shape != start.shape:
        raise ValueError(f"{names[0]} has the shape {values.shape}, but {names[1]} has {start.shape}")


def _check_totals(totals: Sequence[np.ndarray], values: np.ndarray, others: tuple[np.ndarray, np.ndarray],
                  writable: bool = True) -> None:
    """Check int64 totals (one, or the limbs of a wide sum) against what is to be added to them."""
    if not 1 <= len(totals) <= MAX_LIMBS:
        raise ValueError(f"1 to {MAX_LIMBS} limbs are allowed, not {len(totals)}")
    names = ["total"] if len(totals) == 1 else [f"limbs[{i}]" for i in range(len(totals))]
    for i, (name, total) in enumerate(zip(names, totals, strict=True)):
        _check_array(name, total, writable)
        if total.dtype != _INT64:
            raise TypeError(f"{name} must have the dtype int64, not {total.dtype}")
        if total.size != values.size:
            raise ValueError(f"{name} has {total.size} elements, but there are {values.size} to be added")
        for other in others:
            _check_apart(name, total, "an array that is read or written beside it", other)
        for j in range(i):
            _check_apart(name, total, names[j], totals[j])


def _check_apart(name: str, array: np.ndarray, other_name: str, other: np.ndarray) -> None:
    # For contiguous arrays the comparison of bounds is exact.
    if np.may_share_memory(array, other):
        raise ValueError(f"{name} overlaps {other_name} in memory: they must be apart")


def _check_number(name: str, value: float, above: float, below: float) -> None:
    if not above < value < below:
        raise ValueError(f"{name} must be a number {'above 0' if above == 0 else 'that is finite'}, not {value}")


def _address(array: np.ndarray) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
