"""A small network with batch normalisation."""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import nn

from federation.builtin import TorchModel
from federation.builtin.steps.torch_random import private_randomness


class NormalisedModel(TorchModel):
    """Linear, BatchNorm, ReLU, Linear."""

    def __init__(self, input_size: int = 64, output_size: int = 10, seed: int = 0) -> None:
        with private_randomness(seed):
            layers = OrderedDict(flatten=nn.Flatten(), hidden=nn.Linear(input_size, 16), norm=nn.BatchNorm1d(16),
                                 relu=nn.ReLU(), output=nn.Linear(16, output_size))
        super().__init__(nn.Sequential(layers), (input_size,), output_size)

    @classmethod
    def settings_from_data(cls, input_shape, num_classes):
        """Sizes from the data."""
        return {"input_size": math.prod(input_shape), "output_size": num_classes}
