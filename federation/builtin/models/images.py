"""What models of images have in common: the shape of an image, from data or from settings."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from federation.errors import ConfigError


class Images(nn.Module):
    """Samples, flat or not, as images, channels last in memory: the layout in which CPUs convolve fastest."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self._shape = shape

    def forward(self, samples: Tensor) -> Tensor:
        """float[n, channels, height, width]."""
        return samples.reshape(-1, *self._shape).contiguous(memory_format=torch.channels_last)


def image_settings(model: str, input_shape: tuple[int, ...], num_classes: int | None) -> dict[str, object]:
    """Image shape and classes: (height, width) gets one channel, a square number of values is a square image.

    Raises ConfigError, naming `model`, for data without classes or of another shape.
    """
    if num_classes is None:
        raise ConfigError(f"components.model: {model} classifies, but the data have targets and no classes")
    shape = tuple(input_shape)
    if len(shape) == 1 and math.isqrt(shape[0]) ** 2 == shape[0]:
        shape = (math.isqrt(shape[0]),) * 2
    if len(shape) == 2:
        shape = (1, *shape)
    if len(shape) != 3:
        raise ConfigError(f"components.model: {model} needs images, but a sample of these data has the shape "
                          f"{list(input_shape)}; set model_config.input_shape, or use model.torch.mlp")
    return {"input_shape": shape, "output_size": num_classes}


def check_image_shape(shape: tuple[int, ...], least: int) -> None:
    """Raise ConfigError unless `shape` is (channels, height, width) with height and width of at least `least`."""
    if len(shape) == 3 and shape[2] in (1, 3) and shape[0] > 4:
        raise ConfigError(f"model_config.input_shape: {list(shape)} has its channels last; images are (channels, "
                          "height, width): transpose the data, x.transpose(0, 3, 1, 2)")
    if len(shape) != 3 or shape[0] < 1 or min(shape[1:]) < least:
        raise ConfigError(f"model_config.input_shape: {list(shape)} is not (channels, height, width) with height and "
                          f"width of at least {least}")
