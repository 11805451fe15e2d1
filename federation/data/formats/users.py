"""Samples that come user by user, with the users' names turned into numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import numpy as np

from federation.data.formats.raw import Content, Samples
from federation.errors import DataError

#: A user's samples: x, y, and further columns by name.
UserSamples: TypeAlias = tuple[np.ndarray, np.ndarray, Mapping[str, np.ndarray]]


def by_user(train: Iterable[tuple[str, UserSamples]], test: Iterable[tuple[str, UserSamples]] | None, name: str, *,
            num_classes: int | None = None, scale: float = 1.0) -> Content:
    """All samples, user after user in the order given, with the column "user": the place of the user's name among the
    sorted names of both parts. A user may come in several pieces. Raises DataError, beginning with `name`, where users'
    samples differ in shape or columns, and where there are none.
    """
    parts = {"train": list(train), **({} if test is None else {"test": list(test)})}
    users = sorted({user for part in parts.values() for user, _ in part})
    codes = {user: code for code, user in enumerate(users)}
    found = {part: _joined(pieces, codes, f"{name}: {part}") for part, pieces in parts.items() if pieces}
    if "train" not in found:
        raise DataError(f"{name} has no training samples")
    return Content(found["train"], found.get("test"), num_classes, scale)


def _joined(pieces: list[tuple[str, UserSamples]], codes: Mapping[str, int], name: str) -> Samples:
    first, (sample, _, columns) = pieces[0]
    for user, (x, y, kept) in pieces:
        if x.shape[1:] != sample.shape[1:]:
            raise DataError(f"{name}: a sample of user {user!r} has the shape {list(x.shape[1:])}; expected "
                            f"{list(sample.shape[1:])}, as of user {first!r}")
        if len(x) != len(y):
            raise DataError(f"{name}: user {user!r} has {len(x)} samples, but {len(y)} labels")
        if set(kept) != set(columns):
            raise DataError(f"{name}: user {user!r} has the columns {', '.join(kept) or 'none'}; expected "
                            f"{', '.join(columns) or 'none'}, as user {first!r} has")
    counts = [len(y) for _, (_, y, _) in pieces]
    owner = np.repeat(np.array([codes[user] for user, _ in pieces], np.int64), counts)
    return Samples(np.concatenate([x for _, (x, _, _) in pieces]), np.concatenate([y for _, (_, y, _) in pieces]),
                   {"user": owner, **{key: np.concatenate([kept[key] for _, (_, _, kept) in pieces]) for key in columns}})
