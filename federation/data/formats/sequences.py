"""Sequences of numbered tokens, cut into samples whose label is the token that comes next."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

PADDING = 0


def windows(sequence: np.ndarray, length: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """x, of the type of `sequence`, [n, length], and y int64[n]: tokens, and the one that follows.

    Labels are every `stride`-th token of `sequence` and its last one; a sample is the `length` tokens before its label,
    with PADDING in front where there are fewer. With a stride of 1 each token but the first is the label of one sample;
    with one of `length` each token but the last is in one sample, and a short sequence has its end as its only label.
    """
    last = len(sequence) - 1
    targets = np.append(np.arange(stride, last, stride), last) if last > 0 else np.empty(0, np.int64)
    padded = np.concatenate([np.full(length, PADDING, sequence.dtype), sequence])
    x = np.lib.stride_tricks.sliding_window_view(padded, length)[targets]
    return x, sequence[targets].astype(np.int64)


def all_windows(sequences: Iterable[list[int]], length: int, stride: int, num_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """`windows` of all sequences, one after the other; x has the smallest unsigned type that holds `num_tokens`."""
    dtype = np.min_scalar_type(num_tokens - 1)
    pairs = [windows(np.array(sequence, dtype), length, stride) for sequence in sequences]
    if not pairs:
        return np.empty((0, length), dtype), np.empty(0, np.int64)
    return np.concatenate([x for x, _ in pairs]), np.concatenate([y for _, y in pairs])
