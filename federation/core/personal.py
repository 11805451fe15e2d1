"""Parameters that stay with their client: each has values of its own, which no one averages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np

from federation.core.weights import Layout, Weights
from federation.errors import ConfigError

#: What their names begin with in a client's state.
PREFIX = "local."


class LocalParameters:
    """The arrays of a model whose names match one of `patterns` (shell wildcards: "bn*", "output.*").

    Batch normalisation kept local is FedBN (Li et al. 2021), a local output layer is FedPer (Arivazhagan et al. 2019).
    A client that has no values yet starts from the global ones, which stay as they were initialised.

    Raises ConfigError, with the names there are, for a pattern that matches none, and where nothing is left to share.
    """

    def __init__(self, patterns: Sequence[str], layout: Layout) -> None:
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in layout.names):
                raise ConfigError(f"trainer_config.local_parameters: {pattern!r} matches no array of the model, which has "
                                  f"{', '.join(layout.names)}")
        self.indices = tuple(index for index, name in enumerate(layout.names)
                             if any(fnmatchcase(name, pattern) for pattern in patterns))
        if len(self.indices) == len(layout) and patterns:
            raise ConfigError(f"trainer_config.local_parameters: {', '.join(patterns)} match every array of the model; "
                              "something has to be shared")
        self._names = tuple(PREFIX + layout.names[index] for index in self.indices)

    def __bool__(self) -> bool:
        return bool(self.indices)

    def personal(self, weights: Weights, state: Mapping[str, np.ndarray]) -> Weights:
        """A copy of the global `weights` with the client's own values in place, as far as `state` has them."""
        own = weights.copy()
        for index, name in zip(self.indices, self._names, strict=True):
            if name in state:
                np.copyto(own[index], state[name])
        return own

    def kept(self, trained: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """What goes into the client's state of the arrays `trained` (in the model's order): not copied."""
        return {name: trained[index] for index, name in zip(self.indices, self._names, strict=True)}
