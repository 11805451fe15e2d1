"""How an array is described on the wire: dtype, shape and C-order bytes.

Every dtype that is a fixed number of plain bytes travels: numbers, bool, float16, bfloat16 and the
other ml_dtypes, foreign byte order, fixed-width strings, dates. 0-d and empty arrays keep their shape.
Fortran-ordered and strided arrays are packed into C order by the sender. Objects and records are refused.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np

from node_comm.errors import BufferMismatch


class Description(msgspec.Struct, frozen=True, array_like=True):
    """The dtype and shape of an array on its way."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{parse_dtype(self.dtype)} {self.shape}"

    @property
    def nbytes(self) -> int:
        """Bytes of the payload, C order, no padding."""
        count = 1
        for length in self.shape:
            count *= length
        return count * parse_dtype(self.dtype).itemsize


#: Where a payload goes: an array to fill, a function that returns one for what arrives, or None for a new array.
Into = np.ndarray | Callable[[bytes, Description], np.ndarray | None] | None


def describe(array: np.ndarray) -> Description:
    """Describe `array`; raises BufferMismatch for a dtype that does not travel."""
    return Description(dtype_name(array.dtype), array.shape)


def dtype_name(dtype: np.dtype) -> str:
    """The name under which `dtype` travels, e.g. ``<f4``, ``>f8``, ``bfloat16``."""
    if dtype.hasobject or dtype.names is not None or dtype.subdtype is not None:
        raise BufferMismatch(f"dtype {dtype} cannot be sent: only plain numbers, bool, strings and dates travel")
    if dtype.type is np.void:
        raise BufferMismatch(f"dtype {dtype} cannot be sent: raw bytes without a meaning (use uint8)")
    if dtype.isbuiltin == 2:  # bfloat16 and its relatives: their name is what identifies them, the code does not
        return dtype.name
    return dtype.str


def parse_dtype(name: str) -> np.dtype:
    """The dtype called `name` by `dtype_name`; raises BufferMismatch for an unknown one."""
    try:
        dtype = np.dtype(name)
    except (TypeError, ValueError, SyntaxError):
        return _extension_dtype(name)
    if dtype.hasobject or dtype.type is np.void:  # records and sub-arrays are void as well
        raise BufferMismatch(f"dtype {name!r} is not allowed on the wire")
    return dtype


def _extension_dtype(name: str) -> np.dtype:
    """bfloat16 and the other dtypes that NumPy knows only after ml_dtypes has been imported."""
    try:
        import ml_dtypes
    except ImportError:
        raise BufferMismatch(f"unknown dtype {name!r} on the wire (is ml_dtypes installed here?)") from None
    extension = getattr(ml_dtypes, name, None)
    if not (isinstance(extension, type) and issubclass(extension, np.generic)):
        raise BufferMismatch(f"unknown dtype {name!r} on the wire")
    return np.dtype(extension)


def packed(array: np.ndarray) -> np.ndarray:
    """`array` in C order: itself where it is already, else a copy."""
    return array if array.flags.c_contiguous else np.ascontiguousarray(array).reshape(array.shape)


def as_bytes(array: np.ndarray) -> np.ndarray:
    """The memory of a C-ordered array as a flat uint8 view (no copy); empty arrays give an empty view."""
    if not array.flags.c_contiguous:
        raise BufferMismatch(f"{describe(array)} is not C-contiguous: pack it first")
    return array.reshape(-1).view(np.uint8) if array.nbytes else np.empty(0, np.uint8)


def destination(into: Into, header: bytes, arriving: Description) -> np.ndarray:
    """The array that `arriving` is to be written into, checked; a new one where the receiver names none."""
    target = into(header, arriving) if callable(into) else into
    if target is None:
        return np.empty(arriving.shape, parse_dtype(arriving.dtype))
    check_writable(target, arriving)
    return target


def check_writable(target: np.ndarray, arriving: Description) -> None:
    """Raise BufferMismatch unless `target` can take `arriving` byte for byte."""
    if describe(target) != arriving:
        raise BufferMismatch(f"{arriving} arrives, but the buffer given for it is {describe(target)}")
    if not target.flags.c_contiguous or not target.flags.writeable:
        raise BufferMismatch(f"the buffer given for {arriving} must be C-contiguous and writeable")
