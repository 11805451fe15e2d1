"""Data sets made on the spot, exact in the seed on every platform."""

from __future__ import annotations

import numpy as np

from federation.core.random import stream
from federation.data.aligned import aligned
from federation.data.dataset import is_count
from federation.data.draws import normals, shuffled
from federation.data.sampling import exact_fraction
from federation.errors import DataError


def synthetic(seed: int, *, num_samples: int = 2000, num_features: int = 20, num_classes: int = 10,
              noise: float = 1.0) -> tuple[np.ndarray, np.ndarray, int]:
    """A mixture of one Gaussian cloud a class: x float32[num_samples, num_features], y int64[num_samples], classes.

    The centres are standard normal; `noise` is the standard deviation of each feature around its centre (0.5: the
    clouds hardly touch; 1: a linear model is right for about 99 % with 20 features and 10 classes; 3: hard). Classes
    are equally frequent to one sample, in random order.
    """
    _check(num_samples=num_samples, num_features=num_features, num_classes=num_classes)
    spread = _noise(noise)
    rng = stream(seed, "synthetic")
    centres = normals(rng, num_classes * num_features).reshape(num_classes, num_features)
    y = shuffled(rng, num_samples) % num_classes
    x = normals(rng, num_samples * num_features).reshape(num_samples, num_features)
    x *= spread
    x += centres[y]
    return aligned(x, np.float32), y, num_classes


def synthetic_regression(seed: int, *, num_samples: int = 2000, num_features: int = 20,
                         noise: float = 0.1) -> tuple[np.ndarray, np.ndarray, None]:
    """A linear truth: x float32[num_samples, num_features] is standard normal, y float32[num_samples] = x.w + b + e.

    w has normal entries of variance 1 / num_features and b is standard normal, so that x.w is about as large as one
    feature; `noise` is the standard deviation of the error e, so noise^2 is the least mean squared error.
    """
    _check(num_samples=num_samples, num_features=num_features)
    spread = _noise(noise)
    rng = stream(seed, "synthetic_regression")
    truth = normals(rng, num_features + 1)
    truth[:-1] /= np.sqrt(num_features)
    x = normals(rng, num_samples * num_features).reshape(num_samples, num_features)
    y = truth[-1] + spread * normals(rng, num_samples)
    for feature, weight in enumerate(truth[:-1]):  # a matrix product would add in an order of the library's choice
        y += weight * x[:, feature]
    return aligned(x, np.float32), aligned(y, np.float32), None


def _check(**counts: object) -> None:
    for name, value in counts.items():
        if not is_count(value):
            raise DataError(f"{name}: {value!r} is not a whole number of at least 1")


def _noise(value: object) -> float:
    exact = exact_fraction(value)
    if exact is None or exact < 0:
        raise DataError(f"noise: {value!r} is not a number of at least 0")
    return float(exact)
