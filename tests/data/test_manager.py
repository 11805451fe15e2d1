"""The data manager: each client its samples, cut when asked for, and shards that make up the test set."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from federation.data.dataset import Dataset
from federation.data.manager import DataManager
from federation.data.partition import Partition
from federation.data.partitioner import dirichlet, iid
from federation.data.transforms import Transforms
from federation.errors import DataError


def numbered(num_train: int, num_test: int = 0) -> Dataset:
    """Every sample is its own number; test samples count on from 10,000."""
    x = np.repeat(np.arange(num_train, dtype=np.float32)[:, None], 4, axis=1)
    x_test = np.repeat(10_000 + np.arange(num_test, dtype=np.float32)[:, None], 4, axis=1)
    return Dataset(x, np.arange(num_train) % 10, x_test, np.arange(num_test) % 10, 10, "numbered")


def ids(x: np.ndarray) -> list[int]:
    return x[:, 1].astype(int).tolist()


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.5, 0.99])
def test_clients_share_out_the_training_set(fraction: float) -> None:
    dataset = numbered(997)
    partition = dirichlet(dataset.y_train, 20, 1, alpha=0.3)
    manager = DataManager(dataset, partition, fraction, seed=5)
    seen: list[int] = []
    for index in range(20):
        data = manager.client(index)
        assert sorted(ids(data.x) + ids(data.x_test)) == sorted(partition.client(index).tolist())
        assert data.y.tolist() == [number % 10 for number in ids(data.x)]
        assert data.y_test.tolist() == [number % 10 for number in ids(data.x_test)]
        size, hundredths = len(partition.client(index)), round(100 * fraction)
        assert data.get_num_test_samples() == manager.test_sizes[index] == hundredths * size // 100
        assert data.get_num_samples() == manager.sizes[index] >= 1
        assert data.num_classes == 10
        seen += ids(data.x) + ids(data.x_test)
    assert sorted(seen) == list(range(997))
    assert manager.sizes.dtype == np.int64
    assert manager.num_clients == 20


def test_a_clients_evaluation_samples_are_exact_in_seed_and_client() -> None:
    """S-AGG-13: the same evaluation data in every mode, never trained on; another seed draws others."""
    dataset = numbered(600)
    partition = iid(dataset.y_train, 3, 0)
    first, again, other = (DataManager(dataset, partition, 0.29, seed) for seed in (1, 1, 2))
    assert first.test_sizes.tolist() == [58] * 3
    again.client(0)  # what was asked for before has no effect
    assert ids(first.client(2).x_test) == ids(again.client(2).x_test)
    assert ids(first.client(2).x_test) != ids(other.client(2).x_test)
    positions = [np.flatnonzero(np.isin(partition.client(index), ids(first.client(index).x_test)))
                 for index in range(3)]
    assert not np.array_equal(positions[0], positions[1]), "every client draws for itself"


def test_what_a_learner_does_to_its_data_ends_with_its_turn() -> None:
    manager = DataManager(numbered(40, 30), iid(np.arange(40), 2, 0), 0.25)
    before, shard = manager.client(1), manager.test_shard(0)
    kept = before.x.copy(), before.y.copy(), shard.x_test.copy()
    for array in (before.x, before.y, before.x_test, before.y_test, shard.x_test, shard.y_test):
        array[...] = -1
    after = manager.client(1)
    np.testing.assert_array_equal(after.x, kept[0])
    np.testing.assert_array_equal(after.y, kept[1])
    np.testing.assert_array_equal(manager.test_shard(0).x_test, kept[2])
    with pytest.raises(ValueError, match="read-only"):
        manager.dataset.x_train[0] = 0


def test_arrays_are_aligned() -> None:
    manager = DataManager(numbered(997, 300), iid(np.arange(997), 7, 0), 0.1)
    for data in (*(manager.client(index) for index in range(7)), manager.test_shard(0, 33), manager.test_shard(1, 33)):
        for array in (data.x, data.y, data.x_test, data.y_test):
            assert array.flags.c_contiguous
            assert array.ctypes.data % 64 == 0 or array.size == 0


def test_a_client_costs_memory_for_its_own_samples_only() -> None:
    dataset = Dataset(np.ones((20_000, 100)), np.zeros(20_000, int), np.ones((1, 100)), np.zeros(1, int), 1, "wide")
    manager = DataManager(dataset, iid(dataset.y_train, 1000, 0), 0.2)
    tracemalloc.start()
    try:
        for index in range(1000):
            manager.client(index)
        current, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * 20 * 100 * 4 + 50_000, "a client has 20 samples of 400 bytes, of 8 MB in all"
    assert current < 50_000, "nothing is kept"


@pytest.mark.parametrize(("num_test", "shard_size"), [(0, 256), (1, 256), (256, 256), (257, 256), (1000, 77)])
def test_shards_make_up_the_test_set(num_test: int, shard_size: int) -> None:
    manager = DataManager(numbered(10, num_test), iid(np.arange(10), 2, 0))
    shards = manager.test_shards(shard_size)
    seen = []
    for index, part in enumerate(shards):
        data = manager.test_shard(index, shard_size)
        assert 1 <= len(part) == data.get_num_test_samples() <= shard_size
        assert (data.get_num_samples(), data.x.shape) == (0, (0, 4))
        seen += ids(data.x_test)
        assert data.y_test.tolist() == [number % 10 for number in part]
    assert seen == [10_000 + number for number in range(num_test)]
    with pytest.raises(DataError, match=f"test shard {len(shards)} does not exist: there are {len(shards)}"):
        manager.test_shard(len(shards), shard_size)


def test_clients_without_samples_have_empty_data() -> None:
    """S-PART-05: a client with 0 samples says so."""
    manager = DataManager(numbered(3), iid(np.arange(3), 5, 0, allow_empty=True), 0.5)
    data = manager.client(4)
    assert (data.get_num_samples(), data.get_num_test_samples(), data.x.shape) == (0, 0, (0, 4))
    assert list(data.get_train_loader()) == []
    assert manager.sizes.tolist() == [1, 1, 1, 0, 0]


def test_a_partition_of_other_data_is_refused() -> None:
    with pytest.raises(DataError, match="the partition of numbered names samples 0 to 11; there are 0 to 9"):
        DataManager(numbered(10), iid(np.arange(12), 2, 0))
    with pytest.raises(DataError, match="names samples -1 to 3"):
        DataManager(numbered(10), Partition(np.array([3, -1]), np.array([0, 2])))


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan"), True, "0.1"])
def test_client_test_fraction_is_checked(fraction: object) -> None:
    with pytest.raises(DataError, match="client_test_fraction"):
        DataManager(numbered(10), iid(np.arange(10), 2, 0), fraction)  # type: ignore[arg-type]


def test_regression_data_have_float_targets() -> None:
    dataset = Dataset(np.ones((6, 2)), np.arange(6) / 2, np.ones((2, 2)), np.ones(2), None, "targets")
    data = DataManager(dataset, iid(dataset.y_train, 2, 0)).client(0)
    assert data.y.dtype == np.float32
    assert data.num_classes is None


def test_clients_keep_validation_samples_apart() -> None:
    dataset = numbered(997)
    partition = dirichlet(dataset.y_train, 20, 1, alpha=0.3)
    manager = DataManager(dataset, partition, 0.2, seed=5, client_validation_fraction=0.1)
    only_test = DataManager(dataset, partition, 0.2, seed=5)
    for index in range(20):
        data, size = manager.client(index), len(partition.client(index))
        assert sorted(ids(data.x) + ids(data.x_test) + ids(data.x_validation)) == sorted(partition.client(index).tolist())
        assert data.get_num_validation_samples() == manager.validation_sizes[index] == size // 10
        assert data.get_num_samples() == manager.sizes[index] == size - size // 5 - size // 10
        assert ids(data.x_test) == ids(only_test.client(index).x_test), "test samples do not depend on the others"
        assert [n for x, _ in data.get_validation_loader(3) for n in ids(x)] == ids(data.x_validation)
        measured = data.measured_on_validation()
        assert (ids(measured.x), ids(measured.x_test)) == (ids(data.x), ids(data.x_validation))
    assert manager.has_validation
    assert not only_test.has_validation


def test_samples_to_train_on_are_copied_when_somebody_looks_at_them() -> None:
    """Until then they are rows of the data set; what a learner does to its copy stays there."""
    dataset = numbered(100)
    manager = DataManager(dataset, iid(dataset.y_train, 4, 0), 0.2, client_validation_fraction=0.1)
    data = manager.client(3)
    array, rows = data.stored
    assert np.shares_memory(array, dataset.x_train)
    assert rows is not None
    assert ids(array[rows]) == [n for x, _ in data.get_train_loader(7) for n in ids(x)]
    assert data.stored == (data.x, None)
    data.x[:], data.y[:] = -1, 9
    assert dataset.x_train.min() >= 0
    assert manager.client(3).y.tolist() == [n % 10 for n in ids(manager.client(3).x)]
    data.x = np.zeros((5, 4), np.float32)
    assert data.stored[0] is data.x


@pytest.mark.parametrize("setting", [{"scale": 0.5}, {"crop": 1}, {"flip": True}, {"mean": 0.5}, {"std": 2.0}, {"noise": 0.1},
                                     {"rotations": 4}])
def test_samples_that_change_on_their_way_are_copied_at_once(setting: dict[str, Any]) -> None:
    x = np.ones((8, 3, 4, 4), np.float32)
    images = Dataset(x, np.arange(8) % 2, x[:2], np.arange(2), 2, "ones")
    manager = DataManager(images, iid(images.y_train, 2, 0), transforms=Transforms((3, 4, 4), num_clients=2, **setting))
    assert manager.client(1).stored[1] is None
    assert DataManager(images, iid(images.y_train, 2, 0), transforms=Transforms((3, 4, 4))).client(1).stored[1] is not None


@pytest.mark.parametrize(("test", "validation"), [(0.5, 0.5), (0.9, 0.2)])
def test_something_must_be_left_to_train_on(test: float, validation: float) -> None:
    with pytest.raises(DataError, match="leave nothing to train on"):
        DataManager(numbered(40), iid(np.arange(40), 2, 0), test, client_validation_fraction=validation)


def test_shards_of_the_validation_set() -> None:
    x = np.repeat(np.arange(700, dtype=np.float32)[:, None], 4, axis=1)
    dataset = Dataset(x, np.arange(700) % 10, x[:5], np.arange(5), 10, "set", x[100:700], np.arange(100, 700) % 10)
    manager = DataManager(dataset, iid(dataset.y_train, 2, 0))
    assert [len(shard) for shard in manager.shards("validation")] == [256, 256, 88]
    seen = [n for shard in range(3) for n in ids(manager.shard("validation", shard).x_test)]
    assert seen == list(range(100, 700))
    assert [len(shard) for shard in manager.shards("test")] == [5]
    with pytest.raises(DataError, match="validation shard 3 does not exist: there are 3"):
        manager.shard("validation", 3)
