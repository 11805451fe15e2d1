"""Which samples belong to which client, cut out when the client's turn comes."""

from __future__ import annotations

import math

import numpy as np

from federation.core.random import stream
from federation.data.aligned import aligned_rows
from federation.data.client_data import ClientData
from federation.data.dataset import Dataset
from federation.data.draws import shuffled
from federation.data.partition import Partition
from federation.data.sampling import exact_fraction
from federation.errors import DataError

#: Samples of the global test set in one shard, the unit in which it is spread over ranks.
SHARD_SIZE = 256


class DataManager:
    """The data of every client of a partition, and shards of the global test set.

    Every rank has one, with the same content; `client` and `test_shard` cost O(that client) and O(that shard). What
    they return is the caller's own copy, made anew each time: what a learner does to it ends with its turn, so that
    results cannot depend on which client was on this rank before.

    `client_test_fraction` of its samples, rounded down, each client keeps for evaluation; which ones is drawn from
    (seed, client). A client always keeps at least one of its samples for training.

    Raises DataError for a partition that does not fit the data set.
    """

    def __init__(self, dataset: Dataset, partition: Partition, client_test_fraction: float = 0.0,
                 seed: int = 0) -> None:
        fraction = exact_fraction(client_test_fraction)
        if fraction is None or not 0 <= fraction < 1:
            raise DataError(f"client_test_fraction: {client_test_fraction!r} is not a number of at least 0 and below 1")
        num_samples = len(dataset.y_train)
        if len(partition.order) and not 0 <= partition.order.min() <= partition.order.max() < num_samples:
            raise DataError(f"the partition names samples {partition.order.min()} to {partition.order.max()}, but "
                            f"{dataset.name} has training samples 0 to {num_samples - 1}")
        self.dataset = dataset
        self.partition = partition
        self._seed = seed
        sizes, which = np.unique(partition.sizes, return_inverse=True)
        self._test_sizes = np.array([math.floor(fraction * int(size)) for size in sizes], np.int64)[which]
        self._sizes = partition.sizes - self._test_sizes

    @property
    def num_clients(self) -> int:
        return self.partition.num_clients

    @property
    def sizes(self) -> np.ndarray:
        """Training samples of each client, int64[num_clients]."""
        return self._sizes

    @property
    def test_sizes(self) -> np.ndarray:
        """Evaluation samples of each client, int64[num_clients]."""
        return self._test_sizes

    def client(self, index: int) -> ClientData:
        """The data of client `index`; a new copy."""
        samples = self.partition.client(index)
        num_test = int(self._test_sizes[index])
        test = np.empty(0, np.int64)
        if num_test:
            chosen = np.zeros(len(samples), bool)
            chosen[shuffled(stream(self._seed, "client_test", client=index), len(samples))[:num_test]] = True
            samples, test = samples[~chosen], samples[chosen]
        x, y = self.dataset.x_train, self.dataset.y_train
        return ClientData(aligned_rows(x, samples), aligned_rows(y, samples), aligned_rows(x, test),
                          aligned_rows(y, test), self.dataset.num_classes)

    def test_shards(self, shard_size: int = SHARD_SIZE) -> list[range]:
        """The samples of the global test set in each shard; the last may be smaller, and there may be none."""
        count = len(self.dataset.y_test)
        return [range(start, min(start + shard_size, count)) for start in range(0, count, shard_size)]

    def test_shard(self, index: int, shard_size: int = SHARD_SIZE) -> ClientData:
        """Shard `index` as evaluation samples, with nothing to train on; a new copy."""
        shards = self.test_shards(shard_size)
        if not 0 <= index < len(shards):
            raise DataError(f"test shard {index} does not exist: there are {len(shards)}")
        part = np.arange(shards[index].start, shards[index].stop)
        x, y = self.dataset.x_test, self.dataset.y_test
        return ClientData(np.empty((0, *x.shape[1:]), x.dtype), np.empty(0, y.dtype), aligned_rows(x, part),
                          aligned_rows(y, part), self.dataset.num_classes)
