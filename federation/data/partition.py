"""A partition: which samples of a data set belong to which client."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from federation.errors import DataError


@dataclass(frozen=True, eq=False)
class Partition:
    """The samples of every client, as two arrays: client i has order[offsets[i]:offsets[i + 1]].

    `order`: int64[samples used], distinct indices into the training set; the samples of a client are in random order.
    `offsets`: int64[num_clients + 1], from 0 to len(order), not falling. Both are read-only from here on.
    """

    order: np.ndarray
    offsets: np.ndarray

    def __post_init__(self) -> None:
        for name in ("order", "offsets"):
            array = getattr(self, name)
            if not isinstance(array, np.ndarray) or array.dtype != np.int64 or array.ndim != 1:
                raise DataError(f"{name} of a partition must be a one-dimensional int64 array")
            array = array.view()
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        if len(self.offsets) < 2 or self.offsets[0] != 0 or self.offsets[-1] != len(self.order) \
                or (np.diff(self.offsets) < 0).any():
            raise DataError(f"offsets of a partition must rise from 0 to {len(self.order)}, one more than clients")

    @property
    def num_clients(self) -> int:
        return len(self.offsets) - 1

    @property
    def sizes(self) -> np.ndarray:
        """Samples of each client, int64[num_clients]."""
        return np.diff(self.offsets)

    def client(self, index: int) -> np.ndarray:
        """The samples of client `index`: a read-only int64 view."""
        if not 0 <= index < self.num_clients:
            raise DataError(f"client {index} does not exist: this partition has clients 0 to {self.num_clients - 1}")
        return self.order[self.offsets[index] : self.offsets[index + 1]]

    def sha256(self) -> str:
        """A digest of the full assignment, the same on every platform."""
        digest = hashlib.sha256(f"partition {self.num_clients} {len(self.order)}".encode())
        digest.update(self.offsets.astype("<i8", copy=False).data)
        digest.update(self.order.astype("<i8", copy=False).data)
        return digest.hexdigest()

    def label_counts(self, labels: np.ndarray, clients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The distinct labels, rising, and how often each of `clients` (indices) has each: int64[clients, labels]."""
        classes, codes = classes_of(labels)
        counts = [np.bincount(codes[self.client(int(index))], minlength=len(classes)) for index in clients]
        return classes, np.array(counts, np.int64).reshape(len(clients), len(classes))

    def label_entropies(self, labels: np.ndarray) -> np.ndarray:
        """How mixed the labels of each client that has samples are, in bits, float64 (0: one label only)."""
        classes, codes = classes_of(labels)
        return _label_entropies(self, codes, len(classes))

    def summary(self, labels: np.ndarray | None = None) -> PartitionSummary:
        """Sizes of the clients and, given the labels of all samples (int[n]), how mixed each client's labels are."""
        sizes = self.sizes
        entropies = None
        if labels is not None and np.asarray(labels).dtype.kind in "biu":
            classes, codes = classes_of(labels)
            held = np.bincount(codes[self.order], minlength=len(classes))
            mixed = _label_entropies(self, codes, len(classes))
            overall = float(_entropy(held[None])[0])
            entropies = (float(mixed.min()), float(np.median(mixed)), float(mixed.max()), overall)
        return PartitionSummary(self.num_clients, len(self.order), int(sizes.min()), float(np.median(sizes)),
                                int(sizes.max()), int((sizes == 0).sum()), entropies)


@dataclass(frozen=True)
class PartitionSummary:
    """A partition in figures. `label_entropy`: least, median and largest of the clients that have samples, and that
    of all samples together, in bits (0: one label only); None without class labels."""

    num_clients: int
    num_samples: int
    min_size: int
    median_size: float
    max_size: int
    num_empty: int
    label_entropy: tuple[float, float, float, float] | None

    def __str__(self) -> str:
        text = (f"{self.num_clients} clients, {self.num_samples} samples; samples a client: min {self.min_size}, "
                f"median {self.median_size:g}, max {self.max_size}")
        if self.num_empty:
            text += f"; {self.num_empty} clients have none"
        if self.label_entropy is not None:
            low, median, high, overall = self.label_entropy
            text += (f"; label entropy a client: min {low:.2f}, median {median:.2f}, max {high:.2f} bits "
                     f"(all samples: {overall:.2f})")
        return text


def classes_of(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct labels, rising, and for each sample the index of its label among them, int64."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "biu":
        raise DataError(f"labels are {labels.dtype}{list(labels.shape)}, but this partitioner needs one integer a "
                        f"sample; for data without classes (regression) take one that goes by sizes, such as iid or power_law, or "
                        f"natural or file")
    if len(labels) == 0:
        raise DataError("there are no samples to share out")
    low, high = int(labels.min()), int(labels.max())
    if high - low > 4 * len(labels) + 1024:
        classes, codes = np.unique(labels, return_inverse=True)
        return classes, codes.astype(np.int64, copy=False)
    wide = np.int64 if high < 2**63 else np.uint64  # the difference of two labels is an int64 in any case
    shifted = (labels.astype(wide) - wide(low)).astype(np.int64)
    present = np.bincount(shifted) > 0
    codes = np.flatnonzero(present)
    classes = codes.astype(wide) + wide(low)
    if len(codes) == len(present):
        return classes, shifted
    return classes, (np.cumsum(present) - 1)[shifted]


def _label_entropies(partition: Partition, codes: np.ndarray, num_classes: int) -> np.ndarray:
    """Label entropy of each client that has samples, in bits, float64."""
    block = max(1, 2**22 // num_classes)  # bounds the table of counts
    found = []
    for start in range(0, partition.num_clients, block):
        offsets = partition.offsets[start : start + block + 1]
        mine = codes[partition.order[offsets[0] : offsets[-1]]]
        who = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        counts = np.bincount(who * num_classes + mine, minlength=(len(offsets) - 1) * num_classes)
        counts = counts.reshape(-1, num_classes)
        found.append(_entropy(counts[counts.any(axis=1)]))
    return np.concatenate(found)


def _entropy(counts: np.ndarray) -> np.ndarray:
    shares = counts / counts.sum(axis=1, keepdims=True)
    bits: np.ndarray = -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(axis=1)
    return bits + 0.0
