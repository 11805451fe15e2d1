"""What C libraries are told before anything is computed: how to multiply, and what to do with memory that is freed."""

from __future__ import annotations

import ctypes
import os
from collections.abc import MutableMapping

#: Without it, products of MKL, torch's BLAS on x86, may depend in their last bits on where in memory their factors lie: on AMD's
#: processors they do (Intel, Conditional Numerical Reproducibility; STRICT is for any alignment).
_PRODUCTS = ("MKL_CBWR", "AUTO,STRICT")
#: Has torch ask for large pages for tensors from 2 MiB on.
_LARGE_PAGES = ("THP_MEM_ALLOC_ENABLE", "1")

# glibc's names and numbers for `mallopt`, and what each is set to. The threshold is the largest that glibc takes, to which
# it would move by itself, in time; what is larger goes back to the system at once.
_ARENA_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD = -8, -3, -1
_MEMORY = {_ARENA_MAX: 1, _MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 1 << 30}
#: Where a user tells glibc how to go about memory.
_USERS_OWN = ("MALLOC_ARENA_MAX", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_TRIM_THRESHOLD_")


def prepare(environ: MutableMapping[str, str] = os.environ) -> None:
    """Have the same factors give the same product wherever they lie, and keep memory that is freed for the next step.

    In this process and, but for memory, in those it starts. Settings of the user's own stay. MKL looks once, at its first
    use or product, and so does torch, at its first tensor; call this before there are threads.
    """
    environ.setdefault(*_PRODUCTS)
    environ.setdefault(*_LARGE_PAGES)
    if not any(name in environ for name in _USERS_OWN) and "glibc.malloc" not in environ.get("GLIBC_TUNABLES", ""):
        keep_memory()


def keep_memory() -> None:
    """Have glibc keep up to 1 GiB of what this process frees, in arrays of up to 32 MiB; elsewhere nothing happens.

    A step of training frees its activations and gradients, and asks for as much again. Left alone, glibc returns most of that to
    the system at once, above all in threads other than the first, and the system then clears every page anew: of a small CNN's
    step, that was a sixth of the time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        for parameter, value in _MEMORY.items():
            mallopt(parameter, value)
