"""A recurrent network that predicts the next character."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from federation.builtin.models.torch_model import TorchModel
from federation.builtin.steps.torch_random import private_randomness
from federation.errors import ConfigError


@final
class LSTMModel(TorchModel):
    """An embedding of 8, two LSTM layers of 256, and scores for the character that comes next (McMahan et al. 2017;
    Shakespeare in Caldas et al. 2018, "LEAF").

    A sample is a sequence of character numbers, 0 .. vocabulary_size - 1, [length]; its label the number of the next one.
    Numbers come as float32, as all samples do, and are exact up to 2^24. 819,920 parameters for a vocabulary of 80; torch
    keeps two bias vectors for each layer where the papers count one. Padding, if any, is a character like others.
    """

    def __init__(self, vocabulary_size: int = 80, length: int = 80, embedding_size: int = 8, hidden_size: int = 256,
                 num_layers: int = 2, seed: int = 0) -> None:
        if min(vocabulary_size - 1, length, embedding_size, hidden_size, num_layers) < 1:
            raise ConfigError(f"model_config: vocabulary_size={vocabulary_size} is at least 2; length={length}, "
                              f"embedding_size={embedding_size}, hidden_size={hidden_size} and num_layers={num_layers} are "
                              "at least 1")
        with private_randomness(seed):
            module = _NextCharacter(vocabulary_size, embedding_size, hidden_size, num_layers)
        super().__init__(module, (length,), vocabulary_size)

    @classmethod
    def settings_from_data(cls, input_shape: tuple[int, ...], num_classes: int | None) -> dict[str, object]:
        """The length of a sequence; every class is a character."""
        if num_classes is None or len(input_shape) != 1:
            raise ConfigError("components.model: model.torch.lstm needs sequences of character numbers with the next "
                              f"character as label, but a sample of these data has the shape {list(input_shape)}"
                              + ("" if num_classes else " and a target instead of a class"))
        return {"vocabulary_size": num_classes, "length": input_shape[0]}


class _NextCharacter(nn.Module):
    def __init__(self, vocabulary_size: int, embedding_size: int, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, embedding_size)
        self.lstm = nn.LSTM(embedding_size, hidden_size, num_layers, batch_first=True)
        self.output = nn.Linear(hidden_size, vocabulary_size)

    def forward(self, samples: Tensor) -> Tensor:
        outputs, _ = self.lstm(self.embedding(samples.long()))
        scores: Tensor = self.output(outputs[:, -1])
        return scores
