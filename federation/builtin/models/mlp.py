"""A multilayer perceptron."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import final

from torch import nn

from federation.builtin.models.torch_model import TorchModel
from federation.builtin.steps.torch_random import private_randomness
from federation.errors import ConfigError


@final
class MLPModel(TorchModel):
    """Linear layers with ReLU between them, on samples of any shape (flattened to `input_size` values).

    The defaults are the 784-200-10 network with 159,010 parameters. `output_size` is the number of classes, or 1 for
    regression. `dropout` is the probability that a hidden unit is left out of a step. Initial weights follow from
    `seed` alone.
    """

    def __init__(self, input_size: int = 784, output_size: int = 10, hidden_sizes: tuple[int, ...] = (200,),
                 dropout: float = 0.0, seed: int = 0) -> None:
        if min(input_size, output_size, *hidden_sizes) < 1 or not 0 <= dropout < 1:
            raise ConfigError(f"model_config: input_size={input_size}, output_size={output_size} and hidden_sizes="
                              f"{list(hidden_sizes)} are at least 1, dropout={dropout} is from 0 to below 1")
        if dropout and not hidden_sizes:
            raise ConfigError(f"model_config.dropout: {dropout} is for hidden units, and hidden_sizes is empty; leave it out")
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        with private_randomness(seed):
            width = input_size
            for number, size in enumerate(hidden_sizes, start=1):
                layers[f"hidden{number}"] = nn.Linear(width, size)
                layers[f"relu{number}"] = nn.ReLU(inplace=True)
                if dropout:
                    layers[f"dropout{number}"] = nn.Dropout(dropout)
                width = size
            layers["output"] = nn.Linear(width, output_size)
        super().__init__(nn.Sequential(layers), (input_size,), output_size if output_size > 1 else None)

    @classmethod
    def settings_from_data(cls, input_shape: tuple[int, ...], num_classes: int | None) -> dict[str, object]:
        """Input and output sizes."""
        return {"input_size": math.prod(input_shape), "output_size": num_classes or 1}
