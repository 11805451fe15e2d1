"""What a reader of data files returns: samples as their publisher wrote them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, eq=False)
class Samples:
    """One part of a data set, not checked yet.

    `x`: [n, ...] of any real dtype (bytes stay uint8: they take a quarter of the memory). `y`: [n], integer class labels
    or real targets. `columns`: further facts of each sample by name, int64[n], such as "user" or "coarse_label".
    """

    x: np.ndarray
    y: np.ndarray
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Content:
    """All that a data set's files hold.

    `test` is None where the publisher has no test set; its columns are those of `train`, in the same coding.
    `num_classes` is that of the task, None where it is to be found in the labels, or for regression (y of floats).
    A learner gets x * `scale` as float32 (1/255: bytes become 0 .. 1).
    """

    train: Samples
    test: Samples | None = None
    num_classes: int | None = None
    scale: float = 1.0
