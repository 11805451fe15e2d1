"""Prints one digest of what is drawn from a seed: run in other processes, it must print the same."""

from __future__ import annotations

import hashlib

import numpy as np

from federation.data.load import load_dataset
from federation.data.partition import Partition
from federation.data.partitioner import PARTITIONERS, dirichlet, iid, label
from federation.data.sampling import draw_cohort

#: All but the one that reads a file.
DRAWN = sorted(set(PARTITIONERS) - {"file"})


def make(name: str, labels: np.ndarray, num_clients: int, seed: int, **settings: object) -> Partition:
    """A partition by any of DRAWN: there are as many users as clients, and two superclasses."""
    columns = {"user": np.arange(len(labels)) % num_clients, "coarse_label": np.asarray(labels) // 5}
    given = {"columns": columns} if name in ("natural", "pachinko") else {}
    return PARTITIONERS[name](labels, num_clients, seed, **given, **settings)


def digest(seed: int) -> str:
    """SHA-256 over a partition of each kind, a cohort, and a data set with its test split."""
    labels = np.arange(997) % 10
    digest = hashlib.sha256()
    for partition in (iid(labels, 13, seed), dirichlet(labels, 13, seed, alpha=0.1, min_size=5),
                      dirichlet(labels, 13, seed, alpha=0.3, balanced=True),
                      label(labels, 13, seed, labels_per_client=3)):
        digest.update(partition.sha256().encode())
    for name in DRAWN:
        digest.update(make(name, labels, 13, seed).sha256().encode())
    digest.update(draw_cohort(seed, 3, 1000, 17).tobytes())
    dataset = load_dataset("synthetic", seed=seed, test_fraction=0.3, config={"num_samples": 50})
    digest.update(dataset.x_train.tobytes() + dataset.y_test.tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    print(digest(42))
