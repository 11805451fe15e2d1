"""What happens to samples on their way to a learner: scale, random crops and flips, normalisation, feature skew.

All of it is float32 arithmetic with exactly rounded operations, and every draw is keyed by (seed, round, client), in
the order of the client's samples: the same in every mode, whichever client was here before.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from federation.core.random import stream
from federation.data.aligned import aligned
from federation.data.draws import below, normals
from federation.errors import DataError

#: Quarter turns that clients may be spread over.
ROTATIONS = (1, 2, 4)


class Transforms:
    """Turns stored samples, [n, ...] of float32 or uint8, into what a learner sees: float32[n, ...].

    In this order: times `scale`; rotation and noise of the client's own (`rotations`, `noise`); for training samples a
    random crop and a random flip; then (x - mean) / std.

    - `crop`: that many pixels of zeros are put around an image, which is then cut out again at a random place (He et
      al. 2016, section 4.2, with crop 4).
    - `flip`: left and right change places in half of the images.
    - `mean`, `std`: one number, or one for each channel (the first axis of a sample).
    - `noise`: client i of N gets Gaussian noise of variance noise * (i + 1) / N on its samples, the same in every round
      (Li et al. 2022, "Federated learning on non-IID data silos", section 4.2).
    - `rotations`: client i's images are turned by (i mod rotations) quarter turns (half turns where it is 2), as in
      Ghosh et al. 2020, "An efficient framework for clustered federated learning", section 6.

    Raises DataError for settings that are not possible, or do not fit samples of `shape` ([channels, height, width], or
    [height, width] for images).
    """

    def __init__(self, shape: tuple[int, ...], *, scale: float = 1.0, crop: int = 0, flip: bool = False,
                 mean: float | Sequence[float] = 0.0, std: float | Sequence[float] = 1.0, noise: float = 0.0,
                 rotations: int = 1, num_clients: int = 1, seed: int = 0) -> None:
        if (crop or flip or rotations > 1) and len(shape) not in (2, 3):
            raise DataError(f"crop, flip and rotations are for images, but a sample has the shape {list(shape)}; "
                            "expected [channels, height, width] or [height, width]")
        if crop < 0 or noise < 0:
            raise DataError(f"crop: {crop} and noise: {noise} must be at least 0")
        if rotations not in ROTATIONS:
            raise DataError(f"rotations: {rotations} is not one of {', '.join(map(str, ROTATIONS))}")
        if rotations == 4 and shape[-1] != shape[-2]:
            raise DataError(f"rotations: 4 needs square images, but a sample has the shape {list(shape)}")
        self._scale = np.float32(scale)
        self._crop, self._flip, self._noise, self._rotations = crop, flip, noise, rotations
        self._mean, self._std = _per_channel(mean, shape, "mean"), _per_channel(std, shape, "std")
        if (self._std <= 0).any():
            raise DataError(f"std: {std} must be above 0")
        self._is_centred, self._is_divided = bool(self._mean.any()), bool((self._std != 1).any())
        self._num_clients, self._seed = num_clients, seed

    @property
    def changes_training(self) -> bool:
        """Whether `train` gives anything but what it is given (in float32)."""
        return bool(self._scale != 1 or self._crop or self._flip or self._noise or self._rotations > 1 or self._is_centred
                    or self._is_divided)

    def train(self, x: np.ndarray, client: int, round: int) -> np.ndarray:
        """The training samples of `client` in `round`; `x` is the caller's no longer. Aligned."""
        return self._normalised(self._augmented(self._skewed(self._scaled(x), client, "train"), client, round))

    def evaluate(self, x: np.ndarray, client: int | None, part: str = "test") -> np.ndarray:
        """Samples to evaluate on, those of `part` of `client` or of the server (None); otherwise as `train`."""
        x = self._scaled(x)
        return self._normalised(x if client is None else self._skewed(x, client, part))

    def _scaled(self, x: np.ndarray) -> np.ndarray:
        x = aligned(x, np.float32)
        if self._scale != 1:
            x *= self._scale
        return x

    def _skewed(self, x: np.ndarray, client: int, part: str) -> np.ndarray:
        if self._rotations > 1 and (turns := client % self._rotations * (4 // self._rotations)):
            x = aligned(np.ascontiguousarray(np.rot90(x, turns, axes=(-2, -1))), np.float32)
        if self._noise:
            deviation = np.sqrt(self._noise * (client + 1) / self._num_clients)
            rng = stream(self._seed, f"feature_noise_{part}", client=client)
            x += (deviation * normals(rng, x.size)).astype(np.float32).reshape(x.shape)
        return x

    def _augmented(self, x: np.ndarray, client: int, round: int) -> np.ndarray:
        if not (self._crop or self._flip):
            return x
        rng = stream(self._seed, "augment", round, client)
        if self._crop and len(x):
            _crop(x, self._crop, below(rng, 2 * self._crop + 1, 2 * len(x)).reshape(-1, 2))
        if self._flip:
            flipped = np.flatnonzero(below(rng, 2, len(x)))
            x[flipped] = x[flipped][..., ::-1]
        return x

    def _normalised(self, x: np.ndarray) -> np.ndarray:
        if self._is_centred:
            x -= self._mean
        if self._is_divided:
            x /= self._std
        return x


def _crop(x: np.ndarray, crop: int, corners: np.ndarray) -> None:
    """Surround each image of x, [n, ..., height, width], by `crop` zeros and cut it out at its corner, int64[n, 2]."""
    height, width = x.shape[-2:]
    padded = np.zeros((*x.shape[:-2], height + 2 * crop, width + 2 * crop), np.float32)
    padded[..., crop : crop + height, crop : crop + width] = x
    for image, source, (top, left) in zip(x, padded, corners.tolist(), strict=True):
        image[...] = source[..., top : top + height, left : left + width]


def _per_channel(value: float | Sequence[float], shape: tuple[int, ...], name: str) -> np.ndarray:
    """`value` as float32 that broadcasts over a sample of `shape`."""
    values = np.asarray(value, np.float32)
    if not np.isfinite(values).all() or values.ndim > 1 or (values.ndim == 1 and len(values) not in (1, shape[0])):
        raise DataError(f"{name}: {value} is neither a number nor one for each of {shape[0]} channels")
    return values if values.ndim == 0 else values.reshape(-1, *[1] * (len(shape) - 1))
