"""Layouts, and weights in one flat buffer."""

from __future__ import annotations

import copy
import hashlib
import pickle

import ml_dtypes
import numpy as np
import pytest
import torch

from federation.core.weights import Layout, Weights, aligned_empty, check_range, plain
from federation.errors import UpdateError

BF16 = np.dtype(ml_dtypes.bfloat16)


def arrays() -> dict[str, np.ndarray]:
    return {
        "conv.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "bn.num_batches_tracked": np.array(7),
        "empty": np.zeros((0, 4), np.float32),
        "one": np.array([2.5], np.float32),
        "mask": np.array([True, False, True]),
        "half": np.array([1.5, -2.0], np.float16),
        "brain": np.array([1.0, 3.0], BF16),
        "wide": np.array([0.1, 0.2]),
    }


def test_weights_keep_names_shapes_dtypes_and_bytes():
    """S-COMM-03: () stays (), (0, 4) stays (0, 4), (1,) stays (1,), and the order of keys stays."""
    given = arrays()
    weights = Weights.of(given)
    assert weights.names == tuple(given)
    for (name, array), (_, original) in zip(weights.items(), given.items(), strict=True):
        assert array.shape == original.shape, name
        assert array.dtype == original.dtype, name
        assert array.tobytes() == original.tobytes(), name
    again = Weights(Layout.from_dict(weights.layout.to_dict()), weights.buffer.copy())
    assert again.layout == weights.layout
    assert [a.tobytes() for a in again] == [a.tobytes() for a in given.values()]


def test_arrays_are_aligned_writeable_views_of_one_buffer_with_zero_padding():
    weights = Weights.of(arrays())
    assert weights.buffer.dtype == np.uint8
    assert weights.buffer.shape == (weights.layout.nbytes,)
    assert weights.layout.nbytes % 64 == 0
    covered = np.zeros(weights.layout.nbytes, bool)
    base = weights.buffer.ctypes.data
    assert base % 64 == 0
    for array, offset in zip(weights, weights.layout.offsets, strict=True):
        assert offset % 64 == 0
        assert array.flags.writeable
        if array.size:
            assert array.ctypes.data == base + offset
        covered[offset : offset + array.nbytes] = True
    assert not weights.buffer[~covered].any()
    weights["one"][0] = 9.0
    start = weights.layout.offsets[weights.names.index("one")]
    assert weights.buffer[start : start + 4].view(np.float32)[0] == 9.0


def test_slots_of_an_accumulator_are_apart_and_padded_to_eight():
    layout = Layout.of(arrays())
    taken = np.zeros(layout.num_slots, int)
    for where, shape in zip(layout.value_slices, layout.shapes, strict=True):
        assert where.start % 8 == 0
        assert where.stop - where.start == int(np.prod(shape))
        taken[where] += 1
    assert taken.max() == 1
    assert taken.sum() == layout.num_values == 6 + 1 + 0 + 1 + 3 + 2 + 2 + 2
    assert layout.num_slots % 8 == 0


@pytest.mark.parametrize("rearrange", [
    np.asfortranarray, lambda a: np.repeat(a, 2, axis=1)[:, ::2], lambda a: a[::-1][::-1], lambda a: a.T.copy().T,
    lambda a: a.astype(">f4"), lambda a: np.asfortranarray(a.astype(">f8")), lambda a: torch.tensor(a.T).t(),
    lambda a: torch.nn.Parameter(torch.tensor(a)), lambda a: a.tolist()])
def test_any_memory_order_and_byte_order_gives_the_same_values(rearrange):
    """S-COMM-01, S-COMM-04: Fortran order, strides, foreign byte order."""
    expected = np.array([[0, 1, 2], [3, 4, 5]], np.float32)
    weights = Weights.of([rearrange(expected)])
    assert weights[0].flags.c_contiguous
    assert weights[0].dtype.isnative
    assert np.array_equal(weights[0], expected)
    other = Weights.zeros(Layout.of([expected]))
    other.copy_from([rearrange(expected)])
    assert np.array_equal(other[0], expected)


def test_access_by_position_name_and_slice():
    weights = Weights.of({"a": np.zeros(2), "b": np.ones(3)})
    assert weights["b"] is weights[1]
    assert weights[-1] is weights[1]
    assert [array.shape for array in weights[0:2]] == [(2,), (3,)]
    assert "a" in weights
    assert "c" not in weights
    assert len(weights) == 2
    assert [w.sum() for w in weights] == [0.0, 3.0]
    with pytest.raises(KeyError, match="no parameter 'c'; there are a, b"):
        weights["c"]
    with pytest.raises(IndexError):
        weights[2]


def test_copies_are_independent_and_never_borrowed():
    """S-AGG-06: what is kept does not change with what it was copied from."""
    live = Weights(Layout.of([np.zeros(3)]), aligned_empty(64), borrowed=True)
    live.buffer.fill(0)
    for kept in (live.copy(), copy.copy(live), copy.deepcopy(live), Weights.of(live)):
        live[0][:] = 5.0
        assert not kept.borrowed
        assert kept[0].tolist() == [0.0, 0.0, 0.0]
        live[0][:] = 0.0
    assert live.read_only().borrowed


def test_copies_know_which_arrays_are_buffers():
    """Else an optimiser would move statistics as if they were parameters."""
    weights = Weights.zeros(Layout(["w", "mean"], [(3,), (3,)], [np.float32] * 2, buffers=["mean"]))
    for kept in (weights.copy(), Weights.of(weights), Weights(Layout.from_dict(weights.layout.to_dict()), weights.buffer)):
        assert kept.layout.buffers == {"mean"}
        assert kept.layout.parameters == (0,)
    both = Layout(["v"], [(1,)], [np.float64]).followed_by(weights.layout)
    assert (both.buffers, both.parameters) == ({"mean"}, (0, 1))


@pytest.mark.parametrize("borrowed", [False, True])
def test_head_and_tail_share_the_memory(borrowed):
    whole = Weights.zeros(Layout(["w", "mean", "n"], [(50,), (3,), ()], [np.float32, np.float32, np.int64], ["mean"]))
    whole = Weights(whole.layout, whole.buffer, borrowed)
    for count in range(4):
        head, tail = whole.head(count), whole.tail(count)
        for array, name in zip([*head, *tail], whole.names, strict=True):
            array[...] = count + 1
            assert (whole[name] == count + 1).all()
        assert head.names + tail.names == whole.names
        assert head.layout.buffers | tail.layout.buffers == {"mean"}
        assert head.borrowed == tail.borrowed == whole.read_only().borrowed == borrowed


def test_a_read_only_view_follows_and_cannot_be_written():
    weights = Weights.of([np.zeros(3)])
    view = weights.read_only()
    weights[0][1] = 4.0
    assert view[0].tolist() == [0.0, 4.0, 0.0]
    with pytest.raises(ValueError, match="read-only"):
        view[0][0] = 1.0
    with pytest.raises(ValueError, match="read-only"):
        view.copy_from([np.ones(3)])
    weights[0][0] = 1.0  # the original stays writeable
    assert view.copy()[0].flags.writeable


def test_weights_are_not_pickled():
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(Weights.of([np.zeros(3)]))


def test_a_buffer_that_does_not_fit_is_refused():
    layout = Layout.of([np.zeros(3)])
    for buffer in (np.zeros(63, np.uint8), np.zeros(8), np.zeros((2, 32), np.uint8), np.zeros(128, np.uint8)[::2],
                   aligned_empty(65)[1:]):
        with pytest.raises(ValueError, match="buffer"):
            Weights(layout, buffer)


def test_digest_is_that_of_names_dtypes_shapes_and_little_endian_bytes():
    expected = hashlib.sha256()
    for name, array in arrays().items():
        dtype = "bfloat16" if array.dtype == BF16 else str(array.dtype)
        little = array if array.dtype == BF16 else array.astype(array.dtype.newbyteorder("<"))
        expected.update(name.encode() + dtype.encode() + str(array.shape).encode() + little.tobytes())
    assert Weights.of(arrays()).sha256() == expected.hexdigest()


def test_digest_changes_with_every_part_and_not_with_padding_or_memory_order():
    base = Weights.of({"a": np.array([[1, 2, 3], [4, 5, 6]], np.float32)})
    digest = base.sha256()
    assert Weights.of({"a": np.asfortranarray(base["a"])}).sha256() == digest
    padded = base.copy()
    padded.buffer[-1] = 1
    assert padded.sha256() == digest
    others = [{"b": base["a"]}, {"a": base["a"].T}, {"a": base["a"].reshape(6)}, {"a": base["a"].astype(np.float64)},
              {"a": base["a"].astype(np.int32)}, {"a": base["a"].view(np.int32)}, {"a": -base["a"]},
              {"a": base["a"], "b": np.zeros(0)}]
    assert len({digest, *(Weights.of(other).sha256() for other in others)}) == len(others) + 1
    assert Weights.of([np.array([0.0])]).sha256() != Weights.of([np.array([-0.0])]).sha256()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_all_finite_sees_every_array_of_floats(bad):
    assert Weights.of(arrays()).all_finite()
    for name in ("conv.weight", "one", "half", "brain", "wide"):
        weights = Weights.of(arrays())
        weights[name].reshape(-1)[-1] = bad
        assert not weights.all_finite()


# ---- layouts


def test_layouts_compare_and_hash_by_content():
    layout = Layout.of(arrays())
    same = Layout.of(Weights.of(arrays()))
    assert layout == same
    assert hash(layout) == hash(same)
    assert len({layout, same, Layout.from_dict(layout.to_dict())}) == 1
    changed = [dict(reversed(list(arrays().items()))), {**arrays(), "one": np.zeros(2, np.float32)},
               {**arrays(), "one": np.zeros(1)}, {**arrays(), "half": arrays()["half"].view(BF16)}]
    assert all(Layout.of(other) != layout for other in changed)
    assert layout != "layout"


def test_a_plain_sequence_gets_positions_as_names_or_those_given():
    assert Layout.of([np.zeros(1), np.zeros(2)]).names == ("0", "1")
    assert Layout.of([np.zeros(1), np.zeros(2)], names=["x", "y"]).names == ("x", "y")
    assert Layout.of((np.zeros(1),)).has_default_names
    assert not Layout.of({"a": np.zeros(1)}).has_default_names
    assert Weights.of([np.zeros(1)], names=["x"])["x"].shape == (1,)
    assert Layout.of([]).nbytes == 0
    assert len(Weights.zeros(Layout.of({}))) == 0


@pytest.mark.parametrize("dtype", ["O", "U4", "S4", "complex64", "complex128", "M8[s]", "longdouble", [("x", "f4")],
                                   ml_dtypes.float8_e5m2, "V2"])
def test_other_dtypes_are_refused_by_parameter(dtype):
    """S-COMM-04: what is not supported is said at the start, with the parameter and its dtype."""
    with pytest.raises(UpdateError, match=r"parameter 'fc.bias' has the dtype .*; a model's arrays may be"):
        Layout.of({"fc.weight": np.zeros(2), "fc.bias": np.zeros(2, dtype)})
    with pytest.raises(UpdateError, match=r"fc.bias"):
        Weights.of({"fc.weight": np.zeros(2), "fc.bias": np.zeros(2, dtype)})


def test_impossible_descriptions_are_refused():
    with pytest.raises(UpdateError, match="same name: a"):
        Layout.of([np.zeros(1), np.zeros(1)], names=["a", "a"])
    with pytest.raises(UpdateError, match="1 names are given for 2 arrays"):
        Layout.of([np.zeros(1), np.zeros(1)], names=["a"])
    with pytest.raises(UpdateError, match="must be text"):
        Layout.of({1: np.zeros(1)})
    with pytest.raises(UpdateError, match="impossible shape"):
        Layout.from_dict({"names": ["a"], "shapes": [[-1]], "dtypes": ["float32"]})
    with pytest.raises(UpdateError, match="'a' has the dtype object"):
        Layout.from_dict({"names": ["a"], "shapes": [[1]], "dtypes": ["object"]})
    with pytest.raises(UpdateError, match="not one ndarray"):
        Weights.of(np.zeros((3, 2)))
    with pytest.raises(UpdateError, match="parameter '0' is not an array of numbers"):
        Weights.of([[[1.0], [1.0, 2.0]]])


# ---- conform and copy_from


def two() -> Layout:
    return Layout.of({"fc.weight": np.zeros((3, 1), np.float32), "fc.bias": np.zeros(3, np.float32)})


def test_shapes_are_never_broadcast():
    """S-AGG-11: (3, 1) against (1, 3) names the client, the parameter and both shapes."""
    for shape in [(1, 3), (3,), (1, 1), (), (3, 1, 1), (4, 1)]:
        with pytest.raises(UpdateError, match="client_2") as error:
            two().conform([np.zeros(shape, np.float32), np.zeros(3, np.float32)], "client_2")
        assert all(word in str(error.value) for word in ("'fc.weight'", str(shape), "(3, 1)"))


def test_names_are_matched_whatever_their_order():
    """S-AGG-11: the same keys in reverse order."""
    given = {"fc.bias": np.array([1, 2, 3], np.float32), "fc.weight": np.array([[4], [5], [6]], np.float32)}
    for form in (given, Weights.of(given)):
        weight, bias = two().conform(form, "client_2")
        assert weight.tolist() == [[4], [5], [6]]
        assert bias.tolist() == [1, 2, 3]


def test_missing_and_unexpected_names_are_listed():
    """S-AGG-11: fc.bias is lacking, extra.bias is there."""
    given = {"fc.weight": np.zeros((3, 1), np.float32), "extra.bias": np.zeros(3, np.float32)}
    for form in (given, Weights.of(given)):
        with pytest.raises(UpdateError, match=r"client_2: .*missing are fc\.bias; unexpected are extra\.bias"):
            two().conform(form, "client_2")


def test_sequences_are_matched_by_position_and_counted():
    """S-COMM-08: a client with fewer arrays or values is refused, never added to the front part."""
    given = [np.zeros((3, 1), np.float32), np.zeros(3, np.float32)]
    assert len(two().conform(tuple(given), "c")) == 2
    assert len(two().conform(Weights.of(given), "c")) == 2  # positions for names say no more than the order
    for bad in (given[:1], [*given, np.zeros(1)], []):
        with pytest.raises(UpdateError, match=rf"client_9: {len(bad)} arrays are given, but the model has 2 "):
            two().conform(bad, "client_9")
    with pytest.raises(UpdateError, match=r"'fc.bias' has the shape \(2,\), but the model's is \(3,\)"):
        two().conform([given[0], np.zeros(2, np.float32)], "client_9")
    for bad in (np.zeros((2, 3)), "weights", None, 3):
        with pytest.raises(UpdateError, match="client_9"):
            two().conform(bad, "client_9")


@pytest.mark.parametrize(("given", "wanted", "allowed"), [
    ("float64", "float32", True), ("float16", "float32", True), ("float32", "float16", True),
    ("int64", "float32", True), ("bool", "float32", True), (BF16, "float32", True), ("float32", BF16, True),
    (BF16, "float16", True),
    ("float16", BF16, True), (">f8", "float32", True), ("int64", "int32", True), ("uint8", "int64", True),
    ("float32", "int64", False), (BF16, "int64", False), ("complex64", "float32", False), ("int64", "bool", False),
    ("float32", "bool", False), ("int64", "uint8", False), ("U1", "float32", False), ("O", "float32", False)])
def test_dtypes_are_let_through_by_kind(given, wanted, allowed):
    """S-COMM-02: another width of float is averaged right or refused with parameter, client and both dtypes."""
    layout = Layout.of({"w": np.zeros(2, wanted)})
    array = np.zeros(2, given)
    if allowed:
        assert layout.conform([array], "c")[0] is array
    else:
        with pytest.raises(UpdateError, match="client_4: parameter 'w' has the dtype") as error:
            layout.conform([array], "client_4")
        assert str(array.dtype) in str(error.value)
        assert str(np.dtype(wanted)) in str(error.value)


def test_copy_from_rounds_to_the_dtype_and_writes_all_or_nothing():
    weights = Weights.of({"a": np.ones(2, np.float32), "b": np.ones(2, np.float16), "n": np.array(1, np.int32)})
    weights.copy_from({"n": np.array(5), "b": np.array([0.1, 2.0]), "a": np.array([0.1, -3.0])})
    assert weights["a"].tolist() == [float(np.float32(0.1)), -3.0]
    assert weights["b"].tolist() == [float(np.float16(0.1)), 2.0]
    assert weights["n"].item() == 5
    before = weights.buffer.tobytes()
    for bad in ({"a": np.zeros(2), "b": np.array([7e4, 0.0]), "n": np.array(2)},
                {"a": np.zeros(2), "b": np.zeros(2), "n": np.array(2**31)},
                {"a": np.array([1e39, 0.0]), "b": np.zeros(2), "n": np.array(2)},
                {"a": np.zeros(2), "b": np.zeros(3), "n": np.array(2)}):
        with pytest.raises(UpdateError, match="client_1"):
            weights.copy_from(bad, who="client_1")
        assert weights.buffer.tobytes() == before


def test_copy_from_takes_arrays_that_are_views_of_the_same_weights():
    weights = Weights.of([np.array([1.0, 2.0]), np.array([3.0, 4.0])])
    weights.copy_from([weights[1], weights[0][::-1]])
    assert [array.tolist() for array in weights] == [[3.0, 4.0], [2.0, 1.0]]


def test_copy_from_equal_layout_copies_nan_and_padding_free():
    source = Weights.of({"a": np.array([np.nan, -0.0, np.inf])})
    target = Weights.zeros(source.layout)
    target.copy_from(source)
    assert target.buffer.tobytes() == source.buffer.tobytes()


@pytest.mark.parametrize(("value", "dtype", "fits"), [
    (65504.0, "float16", True), (65505.0, "float16", False), (-7e4, "float16", False), (np.inf, "float16", True),
    (np.nan, "float16", True), (3.5e38, "float32", False), (3.4e38, "float32", True), (3.4e38, BF16, False),
    (127, "int8", True), (128, "int8", False), (-128, "int8", True), (-129, "int8", False), (70000, "float16", False)])
def test_check_range_refuses_what_would_become_another_number(value, dtype, fits):
    array = np.array([0, value, 0])
    if fits:
        check_range(array, np.dtype(dtype), "client_1: parameter 'w'")
    else:
        with pytest.raises(UpdateError, match="client_1: parameter 'w' holds a value of magnitude"):
            check_range(array, np.dtype(dtype), "client_1: parameter 'w'")


def test_plain_copies_only_what_needs_it():
    array = np.arange(6.0).reshape(2, 3)
    assert np.shares_memory(plain(array), array)
    for other in (np.asfortranarray(array), array[::-1], array.astype(">f8"), array.T):
        result = plain(other)
        assert result.flags.c_contiguous
        assert result.dtype.isnative
        assert np.array_equal(result, other)
    assert plain(np.array(3.0, ">f8")).shape == ()
