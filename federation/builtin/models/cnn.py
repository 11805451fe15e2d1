"""The convolutional networks of the federated learning literature."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal, final

from torch import nn

from federation.builtin.models.images import Images, check_image_shape, image_settings
from federation.builtin.models.torch_model import TorchModel
from federation.builtin.steps.torch_random import private_randomness
from federation.errors import ConfigError


@final
class CNNModel(TorchModel):
    """Two convolutions, a hidden layer, softmax. `architecture` says which of two networks:

    mcmahan: 5x5 convolutions (same padding), each with 2x2 max pooling, 512 hidden units (McMahan et al. 2017, section 3);
    1,663,370 parameters for images of 28 x 28 and ten classes. No dropout unless `dropout` is set.

    reddi: 3x3 convolutions (no padding), one 2x2 max pooling, 128 hidden units, dropout of 1/4 after pooling and 1/2
    before the output (Reddi et al. 2021, table 4); 1,206,590 parameters for FEMNIST (28 x 28, 62 classes), 1,626,442 for
    CIFAR-10 (3 x 32 x 32, ten classes).

    `channels` are those of the two convolutions. `dropout`, where it is set, is the one before the output, and half of it
    the one after pooling. `input_shape` is (channels, height, width); samples may also come flat.
    """

    def __init__(self, input_shape: tuple[int, ...] = (1, 28, 28), output_size: int = 10,
                 architecture: Literal["mcmahan", "reddi"] = "mcmahan", channels: tuple[int, int] = (32, 64),
                 hidden_size: int | None = None, dropout: float | None = None, seed: int = 0) -> None:
        input_shape = tuple(input_shape)
        check_image_shape(input_shape, least=4 if architecture == "mcmahan" else 6)
        if architecture not in ("mcmahan", "reddi"):
            raise ConfigError(f"model_config.architecture: {architecture!r} is not one of mcmahan, reddi")
        hidden = (512 if architecture == "mcmahan" else 128) if hidden_size is None else hidden_size
        drop = (0.0 if architecture == "mcmahan" else 0.5) if dropout is None else dropout
        if len(channels) != 2:
            raise ConfigError(f"model_config.channels: {list(channels)} are not two numbers, one for each convolution")
        if min(output_size - 1, hidden, *channels) < 1 or not 0 <= drop < 1:
            raise ConfigError(f"model_config: output_size={output_size} is at least 2, hidden_size={hidden} and "
                              f"channels={list(channels)} at least 1, dropout={drop} from 0 to below 1")
        build = _mcmahan if architecture == "mcmahan" else _reddi
        with private_randomness(seed):
            layers = build(input_shape, channels, hidden, drop)
            layers["output"] = nn.Linear(hidden, output_size)
        super().__init__(nn.Sequential(layers), input_shape, output_size)

    @classmethod
    def settings_from_data(cls, input_shape: tuple[int, ...], num_classes: int | None) -> dict[str, object]:
        """Image shape and classes, see image_settings."""
        return image_settings("model.torch.cnn", input_shape, num_classes)


def _mcmahan(shape: tuple[int, ...], channels: tuple[int, int], hidden: int, dropout: float) -> OrderedDict[str, nn.Module]:
    depth, height, width = shape
    layers: OrderedDict[str, nn.Module] = OrderedDict(images=Images(shape))
    # Pooling before ReLU gives the same values, and leaves ReLU a quarter of the work.
    layers["conv1"] = nn.Conv2d(depth, channels[0], 5, padding=2)
    layers["pool1"], layers["relu1"] = nn.MaxPool2d(2), nn.ReLU(inplace=True)
    layers["conv2"] = nn.Conv2d(channels[0], channels[1], 5, padding=2)
    layers["pool2"], layers["relu2"] = nn.MaxPool2d(2), nn.ReLU(inplace=True)
    layers["flatten"] = nn.Flatten()
    layers["hidden"] = nn.Linear(channels[1] * (height // 4) * (width // 4), hidden)
    layers["relu3"] = nn.ReLU(inplace=True)
    if dropout:
        layers["dropout"] = nn.Dropout(dropout)
    return layers


def _reddi(shape: tuple[int, ...], channels: tuple[int, int], hidden: int, dropout: float) -> OrderedDict[str, nn.Module]:
    depth, height, width = shape
    layers: OrderedDict[str, nn.Module] = OrderedDict(images=Images(shape))
    layers["conv1"], layers["relu1"] = nn.Conv2d(depth, channels[0], 3), nn.ReLU(inplace=True)
    layers["conv2"] = nn.Conv2d(channels[0], channels[1], 3)
    layers["pool"], layers["relu2"] = nn.MaxPool2d(2), nn.ReLU(inplace=True)
    if dropout:
        layers["dropout1"] = nn.Dropout(dropout / 2)
    layers["flatten"] = nn.Flatten()
    layers["hidden"] = nn.Linear(channels[1] * ((height - 4) // 2) * ((width - 4) // 2), hidden)
    layers["relu3"] = nn.ReLU(inplace=True)
    if dropout:
        layers["dropout2"] = nn.Dropout(dropout)
    return layers
