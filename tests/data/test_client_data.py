"""What a learner sees: aligned arrays, batches that lose nothing, and a sample where no data are bound."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.data.client_data import ClientData, builtin_sample
from federation.errors import DataError


def client(n: int, num_test: int = 0) -> ClientData:
    """Every sample is its own number."""
    x = np.repeat(np.arange(n + num_test, dtype=np.float32)[:, None], 3, axis=1)
    y = np.arange(n + num_test)
    return ClientData(x[:n], y[:n], x[n:], y[n:], num_classes=max(1, n + num_test))


def assert_aligned(*arrays: np.ndarray) -> None:
    for array in arrays:
        assert array.flags.c_contiguous
        assert array.ctypes.data % 64 == 0 or array.size == 0


@settings(deadline=None)
@given(n=st.integers(0, 200), batch_size=st.integers(1, 70), key=st.none() | st.integers(0, 1000))
def test_batches_hold_every_sample_once(n: int, batch_size: int, key: int | None) -> None:
    """S-PART-05: no last batch is dropped, whatever the client's size."""
    rng = None if key is None else np.random.Generator(np.random.Philox(key))
    loader = client(n).get_train_loader(batch_size, rng=rng)
    for _ in range(2):  # as often as wanted
        batches = list(loader)
        assert [len(y) for _, y in batches[:-1]] == [batch_size] * (len(batches) - 1)
        assert len(loader) == len(batches) == -(-n // batch_size)
        assert sorted(label for _, y in batches for label in y.tolist()) == list(range(n))
        for x, y in batches:
            assert x[:, 2].tolist() == y.tolist()
            assert_aligned(x, y)
            assert (x.dtype, y.dtype) == (np.float32, np.int64)


def test_order_is_kept_without_a_generator_and_drawn_with_one() -> None:
    data = client(50)

    def order(**how: Any) -> list[int]:
        return [label for _, y in data.get_train_loader(7, **how) for label in y.tolist()]

    def rng(key: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key))

    before = random.getstate(), np.random.get_state()[1].copy()
    assert order() == order(shuffle=False, rng=rng(1)) == list(range(50))
    assert order(rng=rng(1)) == order(rng=rng(1)) != order(rng=rng(2))
    again = rng(1)
    assert order(rng=again) != order(rng=again), "the next epoch has an order of its own"
    assert random.getstate() == before[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])


def test_evaluation_samples_are_counted_apart() -> None:
    """S-AGG-13: 100 training and 10 evaluation samples, 10 and 90; the mean is weighted by the latter."""
    clients = [(client(100, 10), 0.9), (client(10, 90), 0.5)]
    weights = [sum(len(y) for _, y in data.get_test_loader()) for data, _ in clients]
    assert weights == [data.get_num_test_samples() for data, _ in clients] == [10, 90]
    assert [data.get_num_samples() for data, _ in clients] == [100, 10]
    accuracy = sum(weight * value for weight, (_, value) in zip(weights, clients, strict=True)) / sum(weights)
    assert accuracy == pytest.approx(0.54)


def test_without_evaluation_samples_the_test_loader_is_empty() -> None:
    data = ClientData(np.ones((4, 2)), np.zeros(4, int))
    assert list(data.get_test_loader()) == []
    assert data.x_test.shape == (0, 2)
    assert (data.get_num_test_samples(), data.num_classes) == (0, None)


def test_arrays_are_converted_and_aligned_or_kept() -> None:
    data = ClientData(np.asfortranarray(np.arange(12, dtype=np.uint8).reshape(6, 2)), np.arange(6, dtype=np.int8), None,
                      None, 6)
    np.testing.assert_array_equal(data.x, np.arange(12).reshape(6, 2))
    assert_aligned(data.x, data.y, data.x_test, data.y_test)
    assert (data.x.dtype, data.y.dtype) == (np.float32, np.int64)
    again = ClientData(data.x, data.y)
    assert again.x is data.x
    assert again.y is data.y
    assert ClientData(data.x, np.ones(6)).y.dtype == np.float32


@pytest.mark.parametrize(("arrays", "words"), [
    ((np.ones(3), np.ones(3)), r"x has the shape \[3\]"), ((np.ones((3, 1)), np.ones(2)), r"y \[2\]"),
    ((np.ones((3, 1)), np.ones((3, 1))), r"y \[3, 1\]"),
    ((np.ones((3, 1)), np.ones(3), np.ones((2, 1))), "go together"),
    ((np.ones((3, 1)), np.ones(3), np.ones((2, 2)), np.ones(2)), r"\[2\]; expected \[1\]"),
    ((np.ones((3, 1)), np.array(["a"] * 3)), "y is an array of <U1"),
    ((np.ones((3, 1), object), np.ones(3)), "x is an"),
    ((np.ones((3, 1)), np.ones(3), None, None, 0), "num_classes: 0"),
])
def test_arrays_that_do_not_fit_are_refused(arrays: tuple[Any, ...], words: str) -> None:
    with pytest.raises(DataError, match=words):
        ClientData(*arrays)


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True, None])
def test_batch_size_must_be_a_count(batch_size: Any) -> None:
    with pytest.raises(DataError, match="batch_size"):
        client(3).get_train_loader(batch_size)


@pytest.mark.parametrize(("shape", "num_classes"), [((784,), 10), ((1, 8, 8), 3), ((5,), None), ((2,), 100)])
def test_the_builtin_sample_is_shaped_like_a_model(shape: tuple[int, ...], num_classes: int | None) -> None:
    data = builtin_sample(shape, num_classes)
    assert (data.x.shape, data.x_test.shape) == ((64, *shape), (16, *shape))
    assert data.get_num_samples() == 64
    assert data.num_classes == num_classes
    assert_aligned(data.x, data.y, data.x_test, data.y_test)
    if num_classes:
        assert len(set(np.concatenate([data.y, data.y_test]).tolist())) == min(num_classes, 80)
        assert data.y.max() < num_classes
    np.testing.assert_array_equal(data.x, builtin_sample(shape, num_classes).x)
