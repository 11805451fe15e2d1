"""Samples that come user by user, against rows that are sorted into place one at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.data.formats.users import UserSamples, by_user
from federation.errors import DataError

Pieces = list[tuple[str, int]]
PIECES = st.lists(st.tuples(st.sampled_from(["b", "a", "ä", "Z", "10", "9"]), st.integers(0, 3)), max_size=6)


def samples(count: int, first: int) -> UserSamples:
    numbers = np.arange(first, first + count)
    return numbers[:, None].astype(np.uint8), numbers % 7, {"twice": numbers * 2}


@given(train=PIECES.filter(bool), test=st.none() | PIECES)
def test_users_are_numbered_by_name_over_both_parts(train: Pieces, test: Pieces | None) -> None:
    def part(pieces: Pieces) -> list[tuple[str, UserSamples]]:
        starts = np.cumsum([0, *(count for _, count in pieces)])
        return [(user, samples(count, int(start))) for (user, count), start in zip(pieces, starts, strict=False)]

    content = by_user(iter(part(train)), None if test is None else iter(part(test)), "set", num_classes=7, scale=0.5)
    names = sorted({user for user, _ in [*train, *(test or [])]})
    for found, pieces in ((content.train, train), (content.test, test or [])):
        rows = [user for user, count in pieces for _ in range(count)]
        if found is None:
            assert not pieces
            continue
        assert found.x.tolist() == [[number] for number in range(len(rows))]
        assert found.x.dtype == np.uint8
        assert found.y.tolist() == [number % 7 for number in range(len(rows))]
        assert found.columns["user"].tolist() == [names.index(user) for user in rows]
        assert found.columns["twice"].tolist() == [2 * number for number in range(len(rows))]
        assert found.columns["user"].dtype == np.int64
    assert (content.num_classes, content.scale) == (7, 0.5)


def test_what_does_not_fit_together() -> None:
    one = (np.zeros((2, 3)), np.zeros(2, int), {})
    with pytest.raises(DataError, match=r"^set: train: a sample of user 'b' has the shape \[4\]; expected \[3\], as of user 'a'"):
        by_user([("a", one), ("b", (np.zeros((1, 4)), np.zeros(1, int), {}))], None, "set")
    with pytest.raises(DataError, match=r"^set: test: user 'b' has 2 samples, but 3 labels"):
        by_user([("a", one)], [("b", (np.zeros((2, 3)), np.zeros(3, int), {}))], "set")
    with pytest.raises(DataError, match=r"^set: train: user 'b' has the columns none; expected kind, as user 'a' has"):
        by_user([("a", (one[0], one[1], {"kind": np.zeros(2, int)})), ("b", one)], None, "set")
    with pytest.raises(DataError, match=r"^set has no training samples"):
        by_user([], [("a", one)], "set")
