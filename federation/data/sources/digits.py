"""The handwritten digits that ship with scikit-learn: the data set of the built-in example."""

from __future__ import annotations

import importlib.util
import zlib
from pathlib import Path

import numpy as np

from federation.errors import DataError


def digits(seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """1,797 handwritten digits: x float32[1797, 64] in [0, 1] (8 x 8 pixels, row after row), y int64[1797], 10 classes.

    Nothing is drawn, so `seed` has no effect. scikit-learn is not imported, which takes longer than a round. Raises
    DataError where it is not installed, or damaged.
    """
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise DataError("the data set 'digits' ships with scikit-learn, which is not installed: "
                        "pip install 'federation-hpc[sklearn]'")
    path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        table = np.loadtxt(path, delimiter=",", dtype=np.float32)
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: expected the digits of scikit-learn, 64 pixels and a label a line ({error}); "
                        f"install scikit-learn again") from error
    return table[:, :64] / np.float32(16), table[:, 64].astype(np.int64), 10
