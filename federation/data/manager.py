"""Which samples belong to which client, cut out when the client's turn comes."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from federation.core.random import stream
from federation.data.aligned import lies_right
from federation.data.client_data import ClientData
from federation.data.dataset import Dataset
from federation.data.draws import shuffled
from federation.data.partition import Partition
from federation.data.rows import take
from federation.data.sampling import exact_share
from federation.data.transforms import Transforms
from federation.errors import DataError

#: Samples of the global test set in one shard, the unit in which it is spread over ranks.
SHARD_SIZE = 256

#: Samples that models are measured on.
Part = Literal["test", "validation"]

_NONE = np.empty(0, np.int64)


class DataManager:
    """The data of every client of a partition, and shards of the global test and validation sets.

    Every rank has one, with the same content; `client` and `shard` cost O(that client) and O(that shard). What they
    return is the caller's own copy, made anew each time: what a learner does to it ends with its turn, so that results
    cannot depend on which client was on this rank before.

    Of its samples, each client keeps `client_test_fraction` and `client_validation_fraction`, rounded down, for
    evaluation; which ones is drawn from (seed, client). A client always keeps at least one of its samples for training.
    `test_partition` gives clients samples of the global test set instead, for data sets whose users have test samples
    of their own. `transforms` is what happens to samples on their way; by default they are scaled as the data set says.

    Raises DataError for a partition that does not fit the data set.
    """

    def __init__(self, dataset: Dataset, partition: Partition, client_test_fraction: float = 0.0, seed: int = 0, *,
                 client_validation_fraction: float = 0.0, test_partition: Partition | None = None,
                 transforms: Transforms | None = None) -> None:
        test = exact_share(client_test_fraction, "client_test_fraction")
        validation = exact_share(client_validation_fraction, "client_validation_fraction")
        if test + validation >= 1:
            raise DataError(f"client_test_fraction: {client_test_fraction} and client_validation_fraction: "
                            f"{client_validation_fraction} leave nothing to train on; their sum must be below 1")
        _check_indices(partition.order, len(dataset.y_train), f"the partition of {dataset.name}")
        if test_partition is not None:
            if test:
                raise DataError(f"client_test_fraction: {client_test_fraction} must be 0 where the clients of "
                                f"{dataset.name} have test samples of their own")
            if test_partition.num_clients != partition.num_clients:
                raise DataError(f"the test partition has {test_partition.num_clients} clients; expected "
                                f"{partition.num_clients}, as in the training partition")
            _check_indices(test_partition.order, len(dataset.y_test), f"the test partition of {dataset.name}")
        self.dataset = dataset
        self.partition = partition
        self.test_partition = test_partition
        self._transforms = transforms or Transforms(dataset.input_shape, scale=dataset.scale)
        self._seed = seed
        x, y = dataset.samples("train")
        # Samples that are in memory as clients are to have them: whoever trains may take them from there.
        self._as_they_are: tuple[np.ndarray, np.ndarray] | None = None
        if isinstance(x, np.ndarray) and isinstance(y, np.ndarray) and not self._transforms.changes_training \
                and lies_right(x, np.float32) and lies_right(y, np.float32 if y.dtype.kind == "f" else np.int64):
            self._as_they_are = x, y
        sizes, which = np.unique(partition.sizes, return_inverse=True)
        kept = np.array([[math.floor(share * int(size)) for size in sizes] for share in (test, validation)], np.int64)
        self._own_test_sizes: np.ndarray = kept[0, which]
        self._validation_sizes: np.ndarray = kept[1, which]
        self._sizes: np.ndarray = partition.sizes - self._own_test_sizes - self._validation_sizes

    @property
    def num_clients(self) -> int:
        return self.partition.num_clients

    @property
    def sizes(self) -> np.ndarray:
        """Training samples of each client, int64[num_clients]."""
        return self._sizes

    @property
    def test_sizes(self) -> np.ndarray:
        """Test samples of each client, int64[num_clients]."""
        return self._own_test_sizes if self.test_partition is None else self.test_partition.sizes

    @property
    def validation_sizes(self) -> np.ndarray:
        """Validation samples of each client, int64[num_clients]."""
        return self._validation_sizes

    @property
    def has_validation(self) -> bool:
        """Whether the server or any client has validation samples."""
        return len(self.dataset.samples("validation")[1]) > 0 or bool(self._validation_sizes.any())

    def client(self, index: int, round: int = 0) -> ClientData:
        """The data of client `index`; a new copy, made when it is looked at. `round` keys its random transforms."""
        samples = self.partition.client(index)
        sizes = int(self._own_test_sizes[index]), int(self._validation_sizes[index])
        test = validation = _NONE
        if any(sizes):
            part = np.zeros(len(samples), np.int8)
            drawn = shuffled(stream(self._seed, "client_test", client=index), len(samples))
            part[drawn[: sizes[0]]] = 1
            part[drawn[sizes[0] : sum(sizes)]] = 2
            samples, test, validation = samples[part == 0], samples[part == 1], samples[part == 2]
        (x, y), transforms = self.dataset.samples("train"), self._transforms
        x_test, y_test = x, y
        if self.test_partition is not None:
            test = self.test_partition.client(index)
            x_test, y_test = self.dataset.samples("test")
        tested: tuple[np.ndarray | None, np.ndarray | None] = (None, None)
        validated = tested
        if len(test):
            tested = transforms.evaluate(take(x_test, test), index), take(y_test, test)
        if len(validation):
            validated = transforms.evaluate(take(x, validation), index, "validation"), take(y, validation)
        if self._as_they_are is not None:
            (own_x, own_y), rows = self._as_they_are, samples
        else:
            own_x, own_y, rows = transforms.train(take(x, samples), index, round), take(y, samples), None
        return ClientData(own_x, own_y, *tested, self.dataset.num_classes, *validated, rows=rows)

    def shards(self, part: Part, shard_size: int = SHARD_SIZE) -> list[range]:
        """The samples of the global set `part` in each shard; the last may be smaller, and there may be none."""
        count = len(self.dataset.samples(part)[1])
        return [range(start, min(start + shard_size, count)) for start in range(0, count, shard_size)]

    def shard(self, part: Part, index: int, shard_size: int = SHARD_SIZE) -> ClientData:
        """Shard `index` of `part` as test samples, with nothing to train on; a new copy."""
        shards = self.shards(part, shard_size)
        if not 0 <= index < len(shards):
            raise DataError(f"{part} shard {index} does not exist: there are {len(shards)}")
        chosen = np.arange(shards[index].start, shards[index].stop)
        x, y = self.dataset.samples(part)
        x_test = self._transforms.evaluate(take(x, chosen), None)
        return ClientData(np.empty((0, *x.shape[1:]), np.float32), np.empty(0, y.dtype), x_test, take(y, chosen),
                          self.dataset.num_classes)

    def test_shards(self, shard_size: int = SHARD_SIZE) -> list[range]:
        """`shards` of the test set."""
        return self.shards("test", shard_size)

    def test_shard(self, index: int, shard_size: int = SHARD_SIZE) -> ClientData:
        """`shard` of the test set."""
        return self.shard("test", index, shard_size)


def _check_indices(indices: np.ndarray, count: int, what: str) -> None:
    """Raise DataError, beginning with `what`, unless all `indices` are of 0 .. count-1."""
    if len(indices) and not 0 <= indices.min() <= indices.max() < count:
        raise DataError(f"{what} names samples {indices.min()} to {indices.max()}; there are 0 to {count - 1}")
