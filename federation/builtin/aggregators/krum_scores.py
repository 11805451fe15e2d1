"""What Krum, MultiKrum and Bulyan have in common: distances between updates, and the score made of them."""

from __future__ import annotations

import numpy as np

from federation.core.aggregator import MatrixAggregator
from federation.errors import ConfigError


class KrumFamily(MatrixAggregator):
    """A rule that withstands `num_byzantine` (the papers' f) arbitrary updates among enough others."""

    def __init__(self, num_byzantine: int = 1) -> None:
        check_whole("num_byzantine", num_byzantine, 0)
        self.num_byzantine = num_byzantine

    @property
    def min_updates(self) -> int:
        """2 f + 3."""
        return 2 * self.num_byzantine + 3

    def _minimum(self) -> str:
        return f"with num_byzantine={self.num_byzantine} needs n >= 2f + 3 = {self.min_updates} updates"


def check_whole(name: str, value: int, least: int) -> None:
    """Raise ConfigError for a setting that is not a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ConfigError(f"aggregator_config: {name}={value!r} is not a whole number of at least {least}")


def krum_scores(distances: np.ndarray, num_byzantine: int) -> np.ndarray:
    """For each row, the sum of the squared distances to its K - f - 2 closest others (Blanchard et al. 2017, section 4).

    Of few rows, as are left at the end of Bulyan's selection, at least the closest counts.
    """
    count = len(distances)
    if count == 1:
        return np.zeros(1)
    others = np.sort(distances[~np.eye(count, dtype=bool)].reshape(count, count - 1), axis=1)
    closest = others[:, : max(1, count - num_byzantine - 2)]
    # Added one after the other: the order in which numpy.sum adds depends on the number of rows.
    scores: np.ndarray = np.cumsum(closest, axis=1)[:, -1]
    return scores
