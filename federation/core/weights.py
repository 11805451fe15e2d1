"""The weights of a model: named arrays that are views into one flat, aligned buffer, described by a layout."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, overload

import ml_dtypes
import numpy as np
import numpy.typing as npt

from federation import kernels
from federation.errors import UpdateError

#: Arrays start on multiples of this many bytes in the flat buffer: a cache line, and the widest vector register.
ALIGNMENT = 64
#: Arrays start on multiples of this many elements in an accumulator (see `Layout.value_slices`).
SLOT_ALIGNMENT = 8
#: The most dimensions of an array: those that HDF5 can store.
MAX_DIMENSIONS = 32

_SUPPORTED = {dtype.name: dtype for dtype in sorted(kernels.DTYPES, key=lambda dtype: (dtype.name[0], dtype.itemsize))}

#: Gives a uint8 vector of so many bytes, at least 8-byte aligned.
Allocate: TypeAlias = Callable[[int], np.ndarray]
#: A model's arrays as callers hold them: by name, or in the order of the layout.
Arrays: TypeAlias = "Weights | Mapping[str, npt.ArrayLike] | Sequence[npt.ArrayLike]"


class Layout:
    """Names, shapes and dtypes of a model's arrays, in order, and where each lies in the flat buffer. Immutable.

    names: unique. shapes: () is a scalar. dtypes: native byte order.
    offsets: where each array starts, in bytes, a multiple of 64. nbytes: the size of the buffer, a multiple of 64.
    num_values: elements of all arrays, without padding.
    value_slices: for each array, its elements in an accumulator vector, starting on a multiple of 8 elements.
    num_slots: the length of such a vector, a multiple of 8.
    buffers: names of the arrays that are no parameters but follow from the data (BatchNorm's statistics and counters):
    they are averaged, and no optimiser, distance or penalty takes them in. Layouts that differ in nothing else are equal.
    """

    __slots__ = ("_hash", "buffers", "dtypes", "names", "nbytes", "num_slots", "num_values", "offsets", "shapes",
                 "value_slices")

    def __init__(self, names: Sequence[str], shapes: Sequence[Sequence[int]], dtypes: Sequence[npt.DTypeLike],
                 buffers: Collection[str] = ()) -> None:
        """Raises UpdateError, naming the parameter, for a duplicate name, an unsupported dtype, or an unknown buffer."""
        self.names = tuple(names)
        self.shapes = tuple(tuple(int(length) for length in shape) for shape in shapes)
        for name, shape in zip(self.names, self.shapes, strict=True):
            if min(shape, default=0) < 0 or len(shape) > MAX_DIMENSIONS or math.prod(filter(None, shape)) >= 2**46:
                raise UpdateError(f"parameter {name!r} has the impossible shape {shape}")
        self.dtypes = tuple(_native_dtype(name, np.dtype(dtype)) for name, dtype in zip(names, dtypes, strict=True))
        for name in self.names:
            if not isinstance(name, str):
                raise UpdateError(f"the name of a parameter must be text, not {name!r}")
        if len(set(self.names)) != len(self.names):
            twice = sorted({name for name in self.names if self.names.count(name) > 1})
            raise UpdateError(f"parameters with the same name: {', '.join(twice)}")
        self.buffers = frozenset(buffers)
        if unknown := sorted(self.buffers.difference(self.names)):
            raise UpdateError(f"buffers that are no arrays of the model: {', '.join(unknown)}")
        sizes = [math.prod(shape) for shape in self.shapes]
        offsets, offset = [], 0
        slices, slot = [], 0
        for size, dtype in zip(sizes, self.dtypes, strict=True):
            offsets.append(offset)
            offset += _padded(size * dtype.itemsize, ALIGNMENT)
            slices.append(slice(slot, slot + size))
            slot += _padded(size, SLOT_ALIGNMENT)
        self.offsets = tuple(offsets)
        self.nbytes = offset
        self.num_values = sum(sizes)
        self.value_slices = tuple(slices)
        self.num_slots = slot
        self._hash = hash((self.names, self.shapes, tuple(dtype.name for dtype in self.dtypes)))

    @classmethod
    def of(cls, arrays: Arrays, names: Sequence[str] | None = None) -> Layout:
        """The layout of `arrays`. A plain sequence gets `names`, or "0", "1", ... where none are given.

        Raises UpdateError, naming the parameter, for what is not an array of numbers or booleans.
        """
        if isinstance(arrays, Weights) and names is None:
            return arrays.layout
        names, given = _named(arrays, names)
        return cls(names, [array.shape for array in given], [array.dtype for array in given])

    def to_dict(self) -> dict[str, Any]:
        """Plain builtins, for messages and checkpoints; `from_dict` reads them back."""
        return {
            "names": list(self.names),
            "shapes": [list(shape) for shape in self.shapes],
            "dtypes": [dtype.name for dtype in self.dtypes],
            "buffers": sorted(self.buffers),
        }

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> Layout:
        """Raises UpdateError for a dtype that is not one of a model's."""
        dtypes = []
        for name, dtype in zip(description["names"], description["dtypes"], strict=True):
            if dtype not in _SUPPORTED:
                raise UpdateError(_unsupported(name, dtype))
            dtypes.append(_SUPPORTED[dtype])
        return cls(description["names"], description["shapes"], dtypes, description.get("buffers", ()))

    @property
    def parameters(self) -> tuple[int, ...]:
        """The indices of the arrays that are parameters: of floating point, and no buffers."""
        return tuple(index for index, (name, dtype) in enumerate(zip(self.names, self.dtypes, strict=True))
                     if name not in self.buffers and (dtype.kind == "f" or dtype == kernels.BFLOAT16))

    def head(self, count: int) -> Layout:
        """The layout of the first `count` arrays."""
        return self._slice(slice(0, count))

    def tail(self, count: int) -> Layout:
        """The layout of what comes after the first `count` arrays."""
        return self._slice(slice(count, None))

    def _slice(self, chosen: slice) -> Layout:
        names = self.names[chosen]
        return Layout(names, self.shapes[chosen], self.dtypes[chosen], self.buffers.intersection(names))

    def followed_by(self, other: Layout) -> Layout:
        """The arrays of this layout, then those of `other`; UpdateError for a name that both have."""
        return Layout(self.names + other.names, self.shapes + other.shapes, self.dtypes + other.dtypes,
                      self.buffers | other.buffers)

    def conform(self, arrays: Arrays, who: str) -> list[np.ndarray]:
        """The arrays that `who` gives, in the order of this layout, checked; nothing is copied, cast or broadcast.

        A mapping is matched by name, and so are Weights where both sides have names of their own; the rest by position.
        Another dtype is let through where NumPy's "same kind" rule allows the cast to this layout's.
        Raises UpdateError naming `who`, the parameter, what was given and what is wanted.
        """
        if isinstance(arrays, Weights) and arrays.layout == self:
            return list(arrays)
        by_name: Mapping[str, Any] | None = None
        if isinstance(arrays, Mapping):
            by_name = arrays
        elif isinstance(arrays, Weights) and not (arrays.layout.has_default_names or self.has_default_names):
            by_name = dict(arrays.items())
        if by_name is not None:
            missing = [name for name in self.names if name not in by_name]
            unexpected = [str(name) for name in by_name if name not in self.names]
            if missing or unexpected:
                raise UpdateError(f"{who}: the parameters do not match the model's: missing are "
                                  f"{', '.join(missing) or 'none'}; unexpected are {', '.join(unexpected) or 'none'}")
            values: list[Any] = [by_name[name] for name in self.names]
        else:
            values = _as_list(arrays, who)
            if len(values) != len(self.names):
                raise UpdateError(f"{who}: {len(values)} arrays are given, but the model has {len(self.names)} "
                                  f"({', '.join(self.names[:6])}{', ...' if len(self.names) > 6 else ''})")
        given = []
        for name, shape, dtype, value in zip(self.names, self.shapes, self.dtypes, values, strict=True):
            array = _as_array(value, f"{who}: parameter {name!r}")
            if array.shape != shape:
                raise UpdateError(f"{who}: parameter {name!r} has the shape {array.shape}, but the model's is {shape}")
            if not _casts(array.dtype, dtype):
                raise UpdateError(f"{who}: parameter {name!r} has the dtype {array.dtype}, which cannot become the "
                                  f"model's {dtype} without changing values")
            given.append(array)
        return given

    @property
    def has_default_names(self) -> bool:
        """Whether the names are "0", "1", ...: those of a plain sequence, which say no more than the position."""
        return self.names == _default_names(len(self.names))

    def __len__(self) -> int:
        return len(self.names)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Layout):
            return NotImplemented
        return (self._hash == other._hash and self.names == other.names and self.shapes == other.shapes
                and self.dtypes == other.dtypes)

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        arrays = (f"{name}: {dtype.name}{list(shape)}"
                  for name, shape, dtype in zip(self.names, self.shapes, self.dtypes, strict=True))
        return f"Layout({', '.join(arrays)})"


class Weights(Sequence[np.ndarray]):
    """A model's arrays, writeable views into one flat buffer: ``w[0]``, ``w["fc.bias"]``, iteration, `items()`.

    buffer: uint8, one-dimensional, `layout.nbytes` long; it is what is sent, reduced, written and copied as a whole.
    borrowed: the buffer is a live view of a model that goes on changing: `copy()` what is to be kept.
    Weights made here own a 64-byte aligned buffer whose padding is zero.
    """

    __slots__ = ("_arrays", "borrowed", "buffer", "layout")

    def __init__(self, layout: Layout, buffer: np.ndarray, borrowed: bool = False) -> None:
        """Wrap `buffer` (uint8[layout.nbytes], C-contiguous, at least 8-byte aligned); nothing is copied.

        Raises ValueError where the buffer does not fit.
        """
        if buffer.dtype != np.uint8 or buffer.shape != (layout.nbytes,) or not buffer.flags.c_contiguous:
            raise ValueError(f"the buffer must be a contiguous uint8[{layout.nbytes}], not "
                             f"{buffer.dtype}{list(buffer.shape)} with strides {buffer.strides}")
        if buffer.size and buffer.__array_interface__["data"][0] % 8:
            raise ValueError("the buffer must start on a multiple of 8 bytes: use aligned_empty")
        self.layout = layout
        self.buffer = buffer
        self.borrowed = borrowed
        self._arrays = tuple(
            buffer[offset : offset + math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
            for shape, dtype, offset in zip(layout.shapes, layout.dtypes, layout.offsets, strict=True))

    @classmethod
    def zeros(cls, layout: Layout, allocate: Allocate | None = None) -> Weights:
        """New weights, all zero, in ordinary memory or in what `allocate` gives."""
        buffer = (allocate or aligned_empty)(layout.nbytes)
        buffer.fill(0)
        return cls(layout, buffer)

    @classmethod
    def of(cls, arrays: Arrays, names: Sequence[str] | None = None) -> Weights:
        """A copy of `arrays`, of any memory order and byte order; their layout is `Layout.of(arrays, names)`."""
        known = arrays.layout if isinstance(arrays, Weights) and names is None else None
        names, given = _named(arrays, names)
        weights = cls.zeros(known or Layout(names, [array.shape for array in given], [array.dtype for array in given]))
        for target, array in zip(weights, given, strict=True):
            target[...] = array
        return weights

    @property
    def names(self) -> tuple[str, ...]:
        """The arrays' names, in order."""
        return self.layout.names

    def items(self) -> Iterator[tuple[str, np.ndarray]]:
        """Pairs of name and array, in order."""
        return zip(self.layout.names, self._arrays, strict=True)

    @overload
    def __getitem__(self, key: int | str) -> np.ndarray: ...
    @overload
    def __getitem__(self, key: slice) -> list[np.ndarray]: ...
    def __getitem__(self, key: int | str | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(key, slice):
            return list(self._arrays[key])
        if isinstance(key, str):
            if key not in self.layout.names:
                raise KeyError(f"no parameter {key!r}; there are {', '.join(self.layout.names)}")
            return self._arrays[self.layout.names.index(key)]
        return self._arrays[key]

    def __len__(self) -> int:
        return len(self._arrays)

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self._arrays)

    def __contains__(self, name: object) -> bool:
        """Whether there is an array called `name`."""
        return name in self.layout.names

    def __repr__(self) -> str:
        return f"Weights({self.layout!r}{', borrowed' if self.borrowed else ''})"

    def copy(self) -> Weights:
        """Weights of their own with the same values; never borrowed."""
        copied = Weights(self.layout, aligned_empty(self.layout.nbytes))
        kernels.copy(copied.buffer, self.buffer)
        return copied

    def head(self, count: int) -> Weights:
        """The first `count` arrays, in the same memory."""
        layout = self.layout.head(count)
        return Weights(layout, self.buffer[: layout.nbytes], self.borrowed)

    def tail(self, count: int) -> Weights:
        """What comes after the first `count` arrays, in the same memory."""
        layout = self.layout.tail(count)
        return Weights(layout, self.buffer[self.layout.nbytes - layout.nbytes :], self.borrowed)

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> Weights:
        return self.copy()

    def __reduce__(self) -> str:
        raise TypeError("Weights are not pickled: send the layout (to_dict) and the buffer")

    def copy_from(self, arrays: Arrays, who: str = "the new weights") -> None:
        """Overwrite the values with those of `arrays`, checked by `Layout.conform` and rounded to this dtype.

        Raises UpdateError naming `who` and the parameter where arrays do not fit, and where a value is out of the
        dtype's range; then nothing has been written.
        """
        if isinstance(arrays, Weights) and arrays.layout == self.layout:
            kernels.copy(self.buffer, arrays.buffer)
            return
        given = self.layout.conform(arrays, who)
        for name, target, array in zip(self.layout.names, self._arrays, given, strict=True):
            check_range(array, target.dtype, f"{who}: parameter {name!r}")
        # An array may be a view of these very weights (two of them swapped, say): read everything before writing.
        given = [np.array(array) if np.may_share_memory(array, self.buffer) else array for array in given]
        for target, array in zip(self._arrays, given, strict=True):
            np.copyto(target, array, casting="unsafe")

    def all_finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        return all(math.isfinite(peak) for peak in self.peaks())

    def peaks(self) -> list[float]:
        """The largest magnitude in each array (0 in an empty one); infinity where a value is NaN or infinite."""
        found = map(kernels.examine, self._arrays)
        return [each.peak if each.finite else math.inf for each in found]

    def read_only(self) -> Weights:
        """The same memory, through arrays that cannot be written."""
        view = self.buffer.view()
        view.flags.writeable = False
        return Weights(self.layout, view, self.borrowed)

    def sha256(self) -> str:
        """SHA-256 over the weights, as hex digits: equal if and only if names, dtypes, shapes and bits are equal.

        Hashed for each array in order: its name, its dtype's name ("float32"), its shape as Python writes it
        ("(10, 64)"), and its elements as little-endian bytes in C order.
        """
        digest = hashlib.sha256()
        for name, array in self.items():
            digest.update(f"{name}{array.dtype.name}{array.shape}".encode())
            flat = array.reshape(-1).view(np.uint8)
            if sys.byteorder == "big":
                flat = flat.reshape(-1, array.dtype.itemsize)[:, ::-1].reshape(-1)
            digest.update(flat.data)
        return digest.hexdigest()


def aligned_empty(nbytes: int) -> np.ndarray:
    """A new uint8[nbytes] that starts on a multiple of 64 bytes; its values are arbitrary."""
    memory = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -memory.__array_interface__["data"][0] % ALIGNMENT
    return memory[start : start + nbytes]


def native_order(dtype: np.dtype) -> np.dtype:
    """`dtype` in this machine's byte order."""
    # bfloat16 calls itself void, and newbyteorder would make raw bytes of it.
    return dtype.newbyteorder("=") if dtype.kind in "biuf" else dtype


def plain(array: np.ndarray) -> np.ndarray:
    """`array` in C order and native byte order, shape kept: the same memory where it is so already, else a copy."""
    return np.asarray(array, dtype=native_order(array.dtype), order="C")


def rounded(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """float64 values in a model's `dtype`, rounded once: integers to nearest even, a boolean true above 1/2."""
    if dtype.kind == "b":
        return np.asarray(values > 0.5)
    if dtype.kind in "iu":
        return np.rint(values).astype(dtype)
    if dtype != kernels.BFLOAT16:
        return values.astype(dtype)
    # NumPy goes by way of float32, and what that brings to the middle of two neighbours is rounded twice.
    near = values.astype(np.float32)
    in_the_middle = (near.view(np.uint32) & 0xFFFF) == 0x8000
    side = np.where(values > near, np.float32(np.inf), np.float32(-np.inf))
    return np.asarray(np.where(in_the_middle & (values != near), np.nextafter(near, side), near).astype(dtype))


def check_range(array: np.ndarray, dtype: np.dtype, what: str) -> None:
    """Raise UpdateError, beginning with `what`, where a finite value of `array` is beyond the range of `dtype`."""
    if array.size == 0 or array.dtype == dtype or np.can_cast(array.dtype, dtype, "safe"):
        return
    smallest: float
    largest: float
    low: float
    high: float
    if dtype.kind in "iu":
        smallest, largest = np.iinfo(dtype).min, np.iinfo(dtype).max
        low, high = int(array.min()), int(array.max())
    else:
        largest = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
        smallest = -largest
        high = kernels.max_abs(plain(array))
        low = -high
    if low < smallest or high > largest:
        raise UpdateError(f"{what} holds a value of magnitude {max(-low, high)}, out of the range of the model's "
                          f"{dtype} ({smallest} to {largest})")


def _default_names(count: int) -> tuple[str, ...]:
    return tuple(str(i) for i in range(count))


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _named(arrays: Arrays, names: Sequence[str] | None) -> tuple[Sequence[str], list[np.ndarray]]:
    """Names and arrays of whatever holds a model's weights."""
    values: list[Any]
    if isinstance(arrays, (Mapping, Weights)):
        own = [name for name, _ in arrays.items()]
        values = [value for _, value in arrays.items()]
    else:
        values = _as_list(arrays, "the weights")
        own = list(_default_names(len(values)))
    chosen = own if names is None else list(names)
    if len(chosen) != len(values):
        raise UpdateError(f"{len(chosen)} names are given for {len(values)} arrays")
    return chosen, [_as_array(value, f"parameter {name!r}") for name, value in zip(chosen, values, strict=True)]


def _as_list(arrays: Any, who: str) -> list[Any]:
    if isinstance(arrays, (str, bytes, np.ndarray)) or not hasattr(arrays, "__iter__"):
        raise UpdateError(f"{who}: a sequence or mapping of arrays is wanted, not one {type(arrays).__name__}")
    return list(arrays)


def _as_array(value: Any, what: str) -> np.ndarray:
    """`value` as an array, sharing memory where it can. A tensor is taken off its graph and device first."""
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:
        raise UpdateError(f"{what} is not an array of numbers but {type(value).__name__}: {error}") from error


def _native_dtype(name: str, dtype: np.dtype) -> np.dtype:
    native = native_order(dtype)
    if native not in kernels.DTYPES:
        raise UpdateError(_unsupported(name, dtype))
    return native


def _unsupported(name: str, dtype: object) -> str:
    return f"parameter {name!r} has the dtype {dtype}; a model's arrays may be {', '.join(_SUPPORTED)}"


def _casts(given: np.dtype, wanted: np.dtype) -> bool:
    """NumPy's "same kind" rule, under which any width of float may become any other, bfloat16 included."""
    native = native_order(given)
    if native not in kernels.DTYPES:
        return False
    both_float = all(dtype.kind == "f" or dtype == kernels.BFLOAT16 for dtype in (native, wanted))
    return both_float or np.can_cast(native, wanted, "same_kind")
