"""The model as the engine sees it: weights that can be taken and put."""

from __future__ import annotations

from abc import ABC, abstractmethod

from federation.core.types import WeightsLike
from federation.core.weights import Weights


class Model(ABC):
    """Parameters and buffers of whatever is trained. How it computes is between the model and its learner."""

    @abstractmethod
    def get_weights(self) -> WeightsLike:
        """A copy of all weights, in an order that never changes."""

    @abstractmethod
    def set_weights(self, weights: WeightsLike) -> None:
        """Take on `weights` (copied); raises UpdateError unless names, shapes and dtypes fit."""

    @property
    def weights(self) -> Weights:
        """The weights for reading, without a copy where the model can: valid until the model next changes."""
        return Weights.of(self.get_weights())

    @classmethod
    def settings_from_data(cls, input_shape: tuple[int, ...], num_classes: int | None) -> dict[str, object]:
        """Constructor settings that the data decide, such as sizes; a user's own settings come before them."""
        return {}
