"""The convolutional network of the federated averaging paper."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import final

from torch import Tensor, nn

from federation.builtin.models.torch_model import TorchModel, private_randomness
from federation.errors import ConfigError


@final
class CNNModel(TorchModel):
    """Two 5x5 convolutions (32 and 64 channels, same padding, each with 2x2 max pooling), 512 hidden units, softmax.

    From McMahan et al. 2017, section 3; 1,663,370 parameters for images of 28 x 28 and ten classes. `input_shape` is
    (channels, height, width); samples may also come flat. Height and width are at least 4.
    """

    def __init__(self, input_shape: tuple[int, ...] = (1, 28, 28), output_size: int = 10,
                 channels: tuple[int, int] = (32, 64), hidden_size: int = 512, seed: int = 0) -> None:
        if len(input_shape) != 3 or min(input_shape[1:]) < 4:
            raise ConfigError(f"model_config.input_shape: {list(input_shape)} is not (channels, height, width) with height "
                              "and width of at least 4")
        depth, height, width = input_shape
        with private_randomness(seed):
            layers = OrderedDict(
                image=nn.Unflatten(1, input_shape), conv1=nn.Conv2d(depth, channels[0], 5, padding=2), relu1=nn.ReLU(),
                pool1=nn.MaxPool2d(2), conv2=nn.Conv2d(channels[0], channels[1], 5, padding=2), relu2=nn.ReLU(),
                pool2=nn.MaxPool2d(2), flatten=nn.Flatten(),
                hidden=nn.Linear(channels[1] * (height // 4) * (width // 4), hidden_size), relu3=nn.ReLU(),
                output=nn.Linear(hidden_size, output_size))
        super().__init__(_Flat(layers), input_shape, output_size)

    @classmethod
    def settings_from_data(cls, input_shape: tuple[int, ...], num_classes: int | None) -> dict[str, object]:
        """Image shape and classes: (height, width) gets one channel, and a square number of values is a square image."""
        if num_classes is None:
            raise ConfigError("components.model: model.torch.cnn classifies, but the data have targets and no classes")
        if len(input_shape) == 1 and math.isqrt(input_shape[0]) ** 2 == input_shape[0]:
            input_shape = (math.isqrt(input_shape[0]),) * 2
        if len(input_shape) == 2:
            input_shape = (1, *input_shape)
        if len(input_shape) != 3:
            raise ConfigError(f"components.model: model.torch.cnn needs images, but a sample has the shape {list(input_shape)}")
        return {"input_shape": input_shape, "output_size": num_classes}


class _Flat(nn.Sequential):
    """Takes samples flat or as images, since data sets come as both."""

    def forward(self, samples: Tensor) -> Tensor:
        return super().forward(samples.flatten(1))
