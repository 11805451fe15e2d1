"""Randomness of torch that nothing outside can see or disturb."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_CPU = torch.device("cpu")


@contextmanager
def private_randomness(seed: int, device: torch.device = _CPU) -> Iterator[None]:
    """torch's own generators, of the CPU and of `device`, seeded with `seed` (0 .. 2^64 - 1) for the block.

    They are put back after it.
    """
    if device.type == "cuda":
        with torch.random.fork_rng([device]), torch.cuda.device(device):
            torch.default_generator.manual_seed(seed)
            torch.cuda.manual_seed(seed)
            yield
        return
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)
