"""The convolutional network of the federated averaging paper."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import final

import torch
from torch import Tensor, nn

from federation.builtin.models.torch_model import TorchModel
from federation.builtin.steps.torch_random import private_randomness
from federation.errors import ConfigError


@final
class CNNModel(TorchModel):
    """Two 5x5 convolutions (32 and 64 channels, same padding, each with 2x2 max pooling), 512 hidden units, softmax.

    From McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data", section 3;
    1,663,370 parameters for images of 28 x 28 and ten classes. `input_shape` is (channels, height, width), height and
    width at least 4; samples may also come flat. `dropout`, which the paper has not, is before the output layer.
    """

    def __init__(self, input_shape: tuple[int, ...] = (1, 28, 28), output_size: int = 10,
                 channels: tuple[int, int] = (32, 64), hidden_size: int = 512, dropout: float = 0.0,
                 seed: int = 0) -> None:
        input_shape = tuple(input_shape)
        _check(input_shape)
        if min(output_size - 1, hidden_size, *channels) < 1 or not 0 <= dropout < 1:
            raise ConfigError(f"model_config: output_size={output_size} is at least 2, hidden_size={hidden_size} and "
                              f"channels={list(channels)} at least 1, dropout={dropout} from 0 to below 1")
        depth, height, width = input_shape
        layers: OrderedDict[str, nn.Module] = OrderedDict(images=_Images(input_shape))
        # Pooling before ReLU gives the same values, and leaves ReLU a quarter of the work.
        with private_randomness(seed):
            layers["conv1"] = nn.Conv2d(depth, channels[0], 5, padding=2)
            layers["pool1"], layers["relu1"] = nn.MaxPool2d(2), nn.ReLU(inplace=True)
            layers["conv2"] = nn.Conv2d(channels[0], channels[1], 5, padding=2)
            layers["pool2"], layers["relu2"] = nn.MaxPool2d(2), nn.ReLU(inplace=True)
            layers["flatten"] = nn.Flatten()
            layers["hidden"] = nn.Linear(channels[1] * (height // 4) * (width // 4), hidden_size)
            layers["relu3"] = nn.ReLU(inplace=True)
            if dropout:
                layers["dropout"] = nn.Dropout(dropout)
            layers["output"] = nn.Linear(hidden_size, output_size)
        super().__init__(nn.Sequential(layers), input_shape, output_size)

    @classmethod
    def settings_from_data(cls, input_shape: tuple[int, ...], num_classes: int | None) -> dict[str, object]:
        """Image shape and classes: (height, width) gets one channel, a square number of values is a square image."""
        if num_classes is None:
            raise ConfigError("components.model: model.torch.cnn classifies, but the data have targets and no classes")
        shape = tuple(input_shape)
        if len(shape) == 1 and math.isqrt(shape[0]) ** 2 == shape[0]:
            shape = (math.isqrt(shape[0]),) * 2
        if len(shape) == 2:
            shape = (1, *shape)
        if len(shape) != 3:
            raise ConfigError("components.model: model.torch.cnn needs images, but a sample of these data has the "
                              f"shape {list(input_shape)}; set model_config.input_shape, or use model.torch.mlp")
        return {"input_shape": shape, "output_size": num_classes}


class _Images(nn.Module):
    """Samples, flat or not, as images, channels last in memory: the layout in which CPUs convolve fastest."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self._shape = shape

    def forward(self, samples: Tensor) -> Tensor:
        return samples.reshape(-1, *self._shape).contiguous(memory_format=torch.channels_last)


def _check(shape: tuple[int, ...]) -> None:
    if len(shape) == 3 and shape[2] in (1, 3) and shape[0] > 4:
        raise ConfigError(f"model_config.input_shape: {list(shape)} has its channels last; images are (channels, "
                          "height, width): transpose the data, x.transpose(0, 3, 1, 2)")
    if len(shape) != 3 or shape[0] < 1 or min(shape[1:]) < 4:
        raise ConfigError(f"model_config.input_shape: {list(shape)} is not (channels, height, width) with height and "
                          "width of at least 4")
