"""Parts of a data set, stored partitions, and test samples that follow their users."""

from __future__ import annotations

import inspect
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import federation.data.load as load
from federation.data.dataset import Dataset
from federation.data.load import clients_test_samples, load_dataset, load_partition
from federation.data.manager import DataManager
from federation.data.partition import Partition
from federation.data.partitioner import PARTITIONERS
from federation.data.rows import Rows
from federation.errors import DataError


def write(path: Path, count: int = 200) -> np.ndarray:
    """Sample n has n in all its features; its label is n mod 4."""
    x = np.repeat(np.arange(count, dtype=np.float32)[:, None], 3, axis=1)
    np.savez(path, x=x, y=np.arange(count) % 4)
    return x


@pytest.mark.parametrize("cached", [True, False])
def test_parts_are_disjoint_and_stratified(tmp_path: Path, cached: bool) -> None:
    write(tmp_path / "a.npz")
    dataset = load_dataset(str(tmp_path / "a.npz"), test_fraction=0.2, validation_fraction=0.1, seed=3,
                           cache=tmp_path / "cache" if cached else None)
    parts = [np.asarray(dataset.samples(part)[0])[:, 0] for part in ("train", "test", "validation")]
    assert [len(part) for part in parts] == [144, 40, 16]  # a tenth of what is left is for validation
    assert sorted(np.concatenate(parts)) == list(range(200))
    for part in ("train", "test", "validation"):
        x, y = dataset.samples(part)
        assert (np.asarray(x)[:, 0] % 4 == y).all()
        assert np.ptp(np.bincount(y)) <= 1
    assert isinstance(dataset.x_train, Rows) == cached


def test_a_cached_set_is_split_like_one_in_memory(tmp_path: Path) -> None:
    write(tmp_path / "a.npz")
    stored, plain = (load_dataset(str(tmp_path / "a.npz"), validation_fraction=0.1, cache=cache)
                     for cache in (tmp_path / "cache", None))
    for part in ("train", "test", "validation"):
        for mine, other in zip(stored.samples(part), plain.samples(part), strict=True):
            np.testing.assert_array_equal(mine, other)


def test_a_validation_part_leaves_the_test_set_as_it_was(tmp_path: Path) -> None:
    write(tmp_path / "a.npz")
    with_part, without = (load_dataset(str(tmp_path / "a.npz"), validation_fraction=share) for share in (0.3, 0))
    np.testing.assert_array_equal(with_part.x_test, without.x_test)
    assert len(without.samples("validation")[1]) == 0


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, "half", float("nan")])
def test_a_bad_share_is_refused(share: object) -> None:
    with pytest.raises(DataError, match="validation_fraction"):
        load_dataset("digits", validation_fraction=share)  # type: ignore[arg-type]


def test_columns_follow_their_samples() -> None:
    x = np.arange(50, dtype=np.float32)[:, None]
    whole = Dataset(x, np.arange(50) % 2, x[:0], np.zeros(0, np.int64), 2, "set", columns={"user": np.arange(50) * 10})
    split = whole.set_apart("test", 0.3, np.random.Generator(np.random.Philox(0)))
    assert (split.columns["user"] == np.asarray(split.x_train)[:, 0] * 10).all()
    assert (split.test_columns["user"] == np.asarray(split.x_test)[:, 0] * 10).all()
    with pytest.raises(DataError, match=r"columns\['user'\] is int64\[49\]; expected an integer for each of 50 samples"):
        Dataset(x, np.arange(50) % 2, x[:0], np.zeros(0, np.int64), 2, "set", columns={"user": np.arange(49)})


def test_samples_of_a_stored_set_stay_pages_of_the_file(tmp_path: Path) -> None:
    """No process has a copy of its own, not of a part that was split off either."""
    np.savez(tmp_path / "a.npz", x=np.zeros((40_000, 784), np.uint8), y=np.arange(40_000) % 10)
    tracemalloc.start()
    dataset = load_dataset(str(tmp_path / "a.npz"), cache=tmp_path / "cache")  # stores
    dataset = load_dataset(str(tmp_path / "a.npz"), validation_fraction=0.1, cache=tmp_path / "cache")
    tracemalloc.reset_peak()
    manager = DataManager(dataset, PARTITIONERS["iid"](dataset.y_train, 1000, 0))
    for client in range(1000):
        manager.client(client, 1)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 784 * 40_000 / 4, "labels and indices"
    assert peak < 784 * 40_000 / 4, "and one client's samples"


def test_a_large_partition_is_stored_and_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = load_dataset("synthetic")
    monkeypatch.setattr(load, "STORED_FROM", 1000)
    plain = load_partition("dirichlet", dataset, 10, seed=4, config={"alpha": 0.3})
    stored = load_partition("dirichlet", dataset, 10, seed=4, config={"alpha": 0.3}, cache=tmp_path)
    assert stored.sha256() == plain.sha256()

    def never(*arguments: object, **settings: object) -> Partition:
        raise AssertionError("made again")

    real = PARTITIONERS["dirichlet"]
    never.__signature__ = inspect.signature(real)  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(load, "PARTITIONERS", {"dirichlet": never})
        again = load_partition("dirichlet", dataset, 10, seed=4, config={"alpha": 0.3}, cache=tmp_path)
        assert again.sha256() == plain.sha256()
        for other in ({"seed": 5}, {"config": {"alpha": 0.31}}, {"num_clients": 11}):
            given = {"num_clients": 10, "seed": 4, "config": {"alpha": 0.3}, **other}
            with pytest.raises(AssertionError, match="made again"):
                load_partition("dirichlet", dataset, cache=tmp_path, **given)  # type: ignore[arg-type]
    assert load_partition("dirichlet", load_dataset("synthetic", seed=1), 10, seed=4, config={"alpha": 0.3},
                          cache=tmp_path).sha256() != plain.sha256(), "other labels, another entry"


def test_test_samples_follow_their_users() -> None:
    x = np.zeros((6, 1), np.float32)
    dataset = Dataset(x, np.zeros(6, np.int64), np.arange(5, dtype=np.float32)[:, None], np.zeros(5, np.int64), 1, "set",
                      columns={"user": np.array([7, 7, 2, 2, 9, 9])}, test_columns={"user": np.array([2, 7, 2, 8, 9])})
    partition = Partition(np.array([2, 3, 1, 0]), np.array([0, 2, 4, 4]))  # user 2, user 7, nobody; user 9 has no client
    found = clients_test_samples(dataset, partition, "user")
    assert found is not None
    assert [found.client(n).tolist() for n in range(3)] == [[0, 2], [1], []]
    manager = DataManager(dataset, partition, test_partition=found)
    assert manager.test_sizes.tolist() == [2, 1, 0]
    assert manager.client(0).x_test[:, 0].tolist() == [0, 2]
    assert manager.client(0).get_num_samples() == 2
    assert clients_test_samples(dataset, partition, "other") is None
    with pytest.raises(DataError, match="must be 0 where the clients of set have test samples of their own"):
        DataManager(dataset, partition, 0.5, test_partition=found)
    with pytest.raises(DataError, match="test partition has 1 clients; expected 3"):
        DataManager(dataset, partition, test_partition=Partition(np.array([0]), np.array([0, 1])))
