"""Randomness of torch that nothing outside can see or disturb."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def private_randomness(seed: int) -> Iterator[None]:
    """torch's own generator (CPU), seeded with `seed` (0 .. 2^64 - 1) for the block and put back after it."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)
