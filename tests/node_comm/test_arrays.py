"""Descriptions and the bytes beside them."""

from __future__ import annotations

import ml_dtypes
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from node_comm.arrays import (
    Description,
    as_bytes,
    check_writable,
    describe,
    destination,
    dtype_name,
    packed,
    parse_dtype,
)
from node_comm.errors import BufferMismatch

PLAIN = st.one_of(hnp.scalar_dtypes(), hnp.byte_string_dtypes(min_len=1), hnp.unicode_string_dtypes(min_len=1))


@given(hnp.arrays(PLAIN, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)), st.booleans())
def test_any_plain_array_survives_description_and_bytes(array: np.ndarray, fortran: bool) -> None:
    """S-COMM-01, S-COMM-03, S-COMM-04: from its description and bytes alone an array is built again, as it was."""
    if fortran:
        array = np.asfortranarray(array)
    description = msgspec.msgpack.decode(msgspec.msgpack.encode(describe(array)), type=Description)
    data = as_bytes(packed(array)).tobytes()
    again = np.ndarray(description.shape, parse_dtype(description.dtype), data)
    assert (again.dtype, again.shape) == (array.dtype, array.shape)
    assert again.tobytes() == array.tobytes()
    assert description.nbytes == array.size * array.dtype.itemsize


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e5m2fnuz", "float8_e3m4",
                                  "int4", "uint4", "int2"])
def test_extension_dtypes_travel_by_name(name: str) -> None:
    """S-COMM-04: NumPy's code for these is void or wrong; their own name brings them back."""
    dtype = np.dtype(getattr(ml_dtypes, name))
    assert dtype_name(dtype) == name
    assert parse_dtype(name) == dtype


@pytest.mark.parametrize("dtype", [
    object, [("a", "f4")], "V8", np.dtype(("f4", (2,))), np.dtypes.StringDType()], ids=str)
def test_dtypes_that_do_not_travel(dtype: object) -> None:
    with pytest.raises(BufferMismatch, match="cannot be sent"):
        dtype_name(np.dtype(dtype))  # type: ignore[call-overload]


@pytest.mark.parametrize("name", ["O", "|O", "object", "f4,f4", "(2,3)f4", "V8", ",", "(2", "", "bfloat17", "finfo",
                                  "__name__", "__import__('os')", "<M8[zz]", "i4 "])
def test_names_that_no_peer_may_send(name: str) -> None:
    """S-SEC-01: only the names of plain dtypes are accepted; nothing is built or looked up from others."""
    with pytest.raises(BufferMismatch, match="on the wire"):
        parse_dtype(name)


def test_packed_copies_only_what_is_not_in_c_order() -> None:
    grid = np.arange(6.0).reshape(2, 3)
    assert packed(grid) is grid
    assert packed(np.array(3)).shape == ()
    assert packed(np.asfortranarray(grid)).flags.c_contiguous
    assert packed(grid[:, ::2]).tolist() == [[0, 2], [3, 5]]


def test_as_bytes_is_a_view() -> None:
    grid = np.zeros((2, 3), np.float32)
    as_bytes(grid)[:4] = np.frombuffer(np.float32(7).tobytes(), np.uint8)
    assert grid[0, 0] == 7
    with pytest.raises(BufferMismatch, match="not C-contiguous"):
        as_bytes(grid.T)


def test_description_reads_as_numpy_writes_it() -> None:
    assert str(describe(np.zeros(4, np.float32))) == "float32 (4,)"
    assert str(describe(np.zeros((2, 0), ">f8"))) == ">f8 (2, 0)"
    assert str(describe(np.array(1, ml_dtypes.bfloat16))) == "bfloat16 ()"


def test_destination_names_both_sides_of_a_mismatch() -> None:
    arriving = describe(np.zeros((2, 3), np.float32))
    with pytest.raises(BufferMismatch, match=r"float32 \(2, 3\) arrives.*float64 \(3,\)"):
        destination(np.zeros(3), b"", arriving)
    with pytest.raises(BufferMismatch, match="C-contiguous and writeable"):
        check_writable(np.zeros((2, 3), np.float32, order="F"), arriving)
    fresh = destination(None, b"", arriving)
    assert (fresh.shape, fresh.dtype) == ((2, 3), np.float32)
