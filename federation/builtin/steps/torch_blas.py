"""The BLAS that torch itself is built on, for native code: its matrix product without torch around it."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch

from federation.infra.libraries import prepare

prepare()  # in a program without an engine, too: this is imported with the first model, before anything is computed

#: The library of torch's that has it, or needs the one that has: as on Linux, as on macOS.
_LIBRARIES = ("libtorch_cpu.so", "libtorch_cpu.dylib")


@functools.cache
def sgemm() -> int | None:
    """The address of SGEMM, the product of float32 matrices of the Fortran BLAS (Dongarra et al. 1990); None where torch has none.

    It computes with as many threads as torch does in the thread that calls it, once torch has been asked for that number there.
    """
    for name in _LIBRARIES:
        path = Path(torch.__file__).parent / "lib" / name
        if path.exists():
            function = getattr(ctypes.CDLL(str(path)), "sgemm_", None)
            return None if function is None or not _multiplies(function) else ctypes.cast(function, ctypes.c_void_p).value
    return None


def _multiplies(function: Any) -> bool:
    """Whether it takes its arguments as native/dense.hpp gives them: (1 2; 3 4) times (5 6; 7 8), columns first."""
    left, right, out = (np.array(values, np.float32) for values in ((1, 3, 2, 4), (5, 7, 6, 8), (0, 0, 0, 0)))
    two, one, zero = ctypes.byref(ctypes.c_int64(2)), ctypes.byref(ctypes.c_float(1)), ctypes.byref(ctypes.c_float(0))
    function.restype = None
    function(b"N", b"N", two, two, two, one, left.ctypes.data_as(ctypes.c_void_p), two, right.ctypes.data_as(ctypes.c_void_p), two,
             zero, out.ctypes.data_as(ctypes.c_void_p), two)
    return bool((out == (19, 43, 22, 50)).all())
