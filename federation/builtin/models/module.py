"""Any torch module, made by a function that the configuration names."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, final

from torch import nn

from federation.builtin.models.torch_model import TorchModel
from federation.builtin.steps.torch_random import private_randomness
from federation.errors import ConfigError


@final
class TorchModuleModel(TorchModel):
    """What `factory`, "package.module:function", returns for `arguments`: a torch module that maps samples to scores.

    For example `torchvision.models:resnet18` with `{num_classes: 10}`, or `timm:create_model`. Its initial weights follow
    from `seed`, as long as it draws from torch's own generator. Samples reach it in the shape that the data have.
    `input_shape` and `num_classes` are taken from the data where they are left out.

    Raises ConfigError where the function cannot be had, does not take the arguments, or returns something else.
    """

    def __init__(self, factory: str, arguments: Mapping[str, Any] | None = None,
                 input_shape: tuple[int, ...] | None = None, num_classes: int | None = None, seed: int = 0) -> None:
        function = _function(factory)
        with private_randomness(seed):
            try:
                module = function(**(arguments or {}))
            except Exception as error:
                raise ConfigError(f"model_config.factory: {factory} with arguments={dict(arguments or {})} raised "
                                  f"{type(error).__name__}: {error}") from error
        if not isinstance(module, nn.Module):
            raise ConfigError(f"model_config.factory: {factory} returned {type(module).__name__}, not a torch.nn.Module")
        super().__init__(module, None if input_shape is None else tuple(input_shape), num_classes)

    @classmethod
    def settings_from_data(cls, input_shape: tuple[int, ...], num_classes: int | None) -> dict[str, object]:
        """What a learner without data makes some up from; the module's own sizes are `arguments`."""
        return {"input_shape": input_shape, "num_classes": num_classes}


def _function(place: str) -> Any:
    module_name, colon, name = place.partition(":")
    if not (module_name and colon and name):
        raise ConfigError(f"model_config.factory: {place!r} is not of the form package.module:function")
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"model_config.factory: {module_name} cannot be imported ({error}); is it installed here? "
                          f"pip install {module_name.partition('.')[0]}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"model_config.factory: {module_name} has no {name}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"model_config.factory: {place} is not a function or class but {type(found).__name__}")
    return found
