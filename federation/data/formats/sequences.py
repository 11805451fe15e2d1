"""Sequences of numbered tokens, cut into samples whose label is the token that comes next."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

PADDING = 0


def windows(sequence: list[int], length: int) -> tuple[np.ndarray, np.ndarray]:
    """x float32[n, length] and y int64[n]: tokens, and the one that follows.

    Labels are every `length`-th token of `sequence` and its last one; a sample is the `length` tokens before its label,
    with PADDING in front where there are fewer. So every token but the last is in a sample, and n is
    ceil((len(sequence) - 1) / length).
    """
    targets = [*range(length, len(sequence) - 1, length), len(sequence) - 1] if len(sequence) > 1 else []
    x = np.full((len(targets), length), PADDING, np.float32)
    for row, target in zip(x, targets, strict=True):
        context = sequence[max(target - length, 0) : target]
        row[length - len(context) :] = context
    return x, np.array([sequence[target] for target in targets], np.int64)


def all_windows(sequences: Iterable[list[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """`windows` of all sequences, one after the other."""
    pairs = [windows(sequence, length) for sequence in sequences]
    if not pairs:
        return np.empty((0, length), np.float32), np.empty(0, np.int64)
    return np.concatenate([x for x, _ in pairs]), np.concatenate([y for _, y in pairs])
