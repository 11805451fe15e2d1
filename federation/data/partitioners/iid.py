"""Samples dealt at random."""

from __future__ import annotations

import numpy as np

from federation.core.random import stream
from federation.data.draws import shuffled
from federation.data.partition import Partition
from federation.data.partitioners.apportion import equal, least_size, offsets_of


def iid(labels: np.ndarray, num_clients: int, rng_seed: int, *, min_size: int = 1,
        allow_empty: bool = False) -> Partition:
    """Samples dealt at random, whatever their labels; sizes differ by at most one, the first clients have more.

    Raises DataError where clients would have fewer than `min_size` samples, unless `allow_empty`.
    """
    num_samples = len(labels)
    least_size(num_samples, num_clients, min_size, allow_empty)
    return Partition(shuffled(stream(rng_seed, "partition"), num_samples), offsets_of(equal(num_samples, num_clients)))
