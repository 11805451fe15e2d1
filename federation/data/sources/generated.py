"""Data sets that need no files: built in, or made on the spot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from federation.data.formats.raw import Content, Samples
from federation.data.provider import DataProvider, Request
from federation.data.sources.digits import digits
from federation.data.sources.synthetic import synthetic, synthetic_regression
from federation.errors import DataError

#: f(seed, *, settings) -> x, y, num_classes (None: regression), by name in a configuration (`data.dataset`).
GENERATED: Mapping[str, Callable[..., tuple[np.ndarray, np.ndarray, int | None]]] = MappingProxyType({
    "digits": digits,
    "synthetic": synthetic,
    "synthetic_regression": synthetic_regression,
})


def generated(request: Request, settings: Mapping[str, Any]) -> DataProvider:
    """The data set of GENERATED that `request` names."""
    def read() -> Content:
        try:
            x, y, num_classes = GENERATED[request.name](request.seed, **settings)
        except DataError as error:
            raise DataError(f"{request.name}: {error}") from error
        return Content(Samples(x, y), num_classes=num_classes)

    return DataProvider(request.name, read)
