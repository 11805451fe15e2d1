"""ResNet-18, with group normalisation unless asked otherwise."""

from __future__ import annotations

from typing import Literal, final

from torch import Tensor, nn
from torch.nn import functional

from federation.builtin.models.images import Images, check_image_shape, image_settings
from federation.builtin.models.torch_model import TorchModel
from federation.builtin.steps.torch_random import private_randomness
from federation.errors import ConfigError

#: Images of at most this height get the stem for small images.
SMALL = 64
#: The groups of a normalisation where no number is given.
NUM_GROUPS = 2


@final
class ResNet18Model(TorchModel):
    """The 18-layer residual network of He et al. 2016 (table 1).

    `norm`: "group", as batch statistics of different clients do not mix (Hsieh et al. 2020), with `num_groups` groups (2
    in Reddi et al. 2021); or "batch". `stem`: "cifar" begins with a 3x3 convolution and no pooling, "imagenet" as in the
    paper, "auto" chooses cifar for images of up to 64 pixels. 11,173,962 parameters for 3 x 32 x 32 and ten classes,
    11,689,512 for ImageNet. Samples may also come flat.
    """

    def __init__(self, input_shape: tuple[int, ...] = (3, 32, 32), output_size: int = 10,
                 norm: Literal["group", "batch"] = "group", num_groups: int = NUM_GROUPS,
                 stem: Literal["auto", "cifar", "imagenet"] = "auto", seed: int = 0) -> None:
        input_shape = tuple(input_shape)
        check_image_shape(input_shape, least=8)
        if output_size < 2 or num_groups < 1 or 64 % num_groups:
            raise ConfigError(f"model_config: output_size={output_size} is at least 2, and num_groups={num_groups} divides "
                              "64, the number of channels of the first stage")
        for name, value, allowed in (("norm", norm, ("group", "batch")), ("stem", stem, ("auto", "cifar", "imagenet"))):
            if value not in allowed:
                raise ConfigError(f"model_config.{name}: {value!r} is not one of {', '.join(allowed)}")
        if norm == "batch" and num_groups != NUM_GROUPS:
            raise ConfigError(f"model_config.num_groups: {num_groups} is for norm: group, and it is batch; leave it out")
        small = input_shape[1] <= SMALL if stem == "auto" else stem == "cifar"
        with private_randomness(seed):
            module = _ResNet(input_shape, output_size, num_groups if norm == "group" else 0, small)
        super().__init__(module, input_shape, output_size)

    @classmethod
    def settings_from_data(cls, input_shape: tuple[int, ...], num_classes: int | None) -> dict[str, object]:
        """Image shape and classes, see image_settings."""
        return image_settings("model.torch.resnet18", input_shape, num_classes)


def _norm(channels: int, num_groups: int) -> nn.Module:
    return nn.GroupNorm(num_groups, channels) if num_groups else nn.BatchNorm2d(channels)


class _Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut; `stride` 2 halves the image."""

    def __init__(self, before: int, channels: int, stride: int, num_groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels, 3, stride, padding=1, bias=False)
        self.norm1 = _norm(channels, num_groups)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = _norm(channels, num_groups)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(before, channels, 1, stride, bias=False), _norm(channels, num_groups))

    def forward(self, x: Tensor) -> Tensor:
        residual = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(residual)) + self.shortcut(x))


class _ResNet(nn.Module):
    def __init__(self, shape: tuple[int, ...], output_size: int, num_groups: int, small: bool) -> None:
        super().__init__()
        self.images = Images(shape)
        if small:
            self.stem = nn.Sequential(nn.Conv2d(shape[0], 64, 3, padding=1, bias=False), _norm(64, num_groups), nn.ReLU())
        else:
            self.stem = nn.Sequential(nn.Conv2d(shape[0], 64, 7, 2, padding=3, bias=False), _norm(64, num_groups),
                                      nn.ReLU(), nn.MaxPool2d(3, 2, padding=1))
        stages, before = [], 64
        for channels in (64, 128, 256, 512):
            stride = 1 if channels == 64 else 2
            stages.append(nn.Sequential(_Block(before, channels, stride, num_groups),
                                        _Block(channels, channels, 1, num_groups)))
            before = channels
        self.stages = nn.Sequential(*stages)
        self.output = nn.Linear(before, output_size)

    def forward(self, samples: Tensor) -> Tensor:
        x = self.stages(self.stem(self.images(samples)))
        scores: Tensor = self.output(x.mean(dim=(2, 3)))
        return scores
