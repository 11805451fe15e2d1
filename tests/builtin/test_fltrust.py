"""FLTrust against the formulas of its paper on whole vectors."""

from __future__ import annotations

import numpy as np
import pytest

from federation.builtin import FLTrustAggregator
from federation.core.types import ClientUpdate
from federation.core.weights import Layout, Weights
from federation.errors import RoundError


def result(rows, start, root=0):
    updates = [ClientUpdate(f"client_{k}", [row], 5) for k, row in enumerate(rows)]
    return FLTrustAggregator(f"client_{root}").aggregate(updates, [start])[0]


@pytest.mark.parametrize("seed", range(5))
def test_against_whole_vectors(seed):
    """Equations 2 to 4: ReLU of the cosine, rescaled to the root's length, averaged by trust."""
    draw = np.random.default_rng(seed)
    start, root = draw.normal(size=20), seed % 7
    rows = start + draw.normal(size=(7, 20)) * draw.choice([0.1, 1.0, 1e20], size=(7, 1))
    differences = rows - start
    lengths = np.linalg.norm(differences, axis=1)
    scores = np.maximum(0, differences @ differences[root] / (lengths * lengths[root]))
    scores[root] = 0
    assert scores.any()
    expected = start + scores / scores.sum() @ (differences / lengths[:, None]) * lengths[root]
    np.testing.assert_allclose(result(rows, start, root), expected, rtol=1e-12, atol=1e-12)


def test_opposite_and_huge_updates_move_nothing():
    start = np.zeros(3, np.float32)
    rows = np.array([[0, 0, 1], [0, 0, 2], [0, 0, -1e30], [1e30, 0, 0]], np.float32)
    assert result(rows, start).tolist() == [0, 0, 1]


def test_a_running_variance_stays_one():
    """Clients went half as far as the root: their differences count double, their statistics do not."""
    layout = Layout(["w", "variance", "count"], [(2,), (1,), ()], ["float32", "float32", "int64"], buffers=["variance"])
    updates = []
    for name, moved, variance, count in (("root", 2, 0.5, 9), ("a", 1, 0.125, 4), ("b", 1, 0.25, 8)):
        weights = Weights.zeros(layout)
        for array, value in zip(weights, (moved, variance, count), strict=True):
            array[...] = value
        updates.append(ClientUpdate(name, weights, 5))
    start = Weights.zeros(layout)
    start["variance"][:] = 1
    found = FLTrustAggregator("root").aggregate(updates, start)
    assert [array.tolist() for array in found] == [[2, 2], [0.1875], 6]


@pytest.mark.parametrize("others", [[], [[0, 0, -1]], [[0, 0, 0], [1, 0, 0]]])
def test_where_nobody_is_trusted_the_root_counts(others):
    rows = np.array([[0, 0, 1], *others], np.float32)
    assert result(rows, np.zeros(3, np.float32)).tolist() == [0, 0, 1]


def test_a_root_that_does_not_move_leaves_the_weights():
    start = np.ones(3, np.float32)
    assert result(np.array([[1, 1, 1], [2, 2, 2]], np.float32), start).tolist() == [1, 1, 1]


def test_the_root_has_to_be_there():
    with pytest.raises(RoundError, match=r"root_client='client_9'.*2 of this round \(client_0, client_1\)"):
        result(np.ones((2, 3)), np.zeros(3), root=9)
