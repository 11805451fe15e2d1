"""Compiled steps: against steps that are not, whose results they come close to, and what cannot be compiled."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from federation.builtin import DefaultLearner, LinearModel
from federation.builtin.models.torch_model import TorchModel
from federation.core.learner import Context
from federation.data.client_data import ClientData
from federation.errors import ConfigError


def network(outputs: int = 4) -> TorchModel:
    torch.manual_seed(0)
    return TorchModel(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, outputs)), (6,), outputs)


def clients(*sizes: int, regression: bool = False) -> list[ClientData]:
    draws = np.random.default_rng(0)
    return [ClientData(draws.normal(size=(size, 6)).astype(np.float32),
                       draws.normal(size=size).astype(np.float32) if regression else draws.integers(0, 4, size))
            for size in sizes]


def train(data: list[ClientData], model: TorchModel, **settings: object) -> tuple[np.ndarray, list[float]]:
    """Each client from where the one before ended; the last weights, and the training losses."""
    learner = DefaultLearner(model, batch_size=8, local_epochs=2, client_lr=0.1, **settings)
    losses = []
    for index, each in enumerate(data):
        learner.bind(each, Context(f"client_{index}", 1, 0))
        losses.append(learner.fit({}).metrics["train_loss"])
    return model.get_weights().buffer.view(np.float32).copy(), losses


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "weight_decay": 0.01, "clip_norm": 0.5}, {"optimizer": "adam"}],
                         ids=["sgd", "momentum", "adam"])
def test_the_same_steps_but_for_rounding(settings):
    """Batches of 8 and what is left of 20, 5 and 8 samples: those that are filled up count for their samples alone."""
    data = clients(20, 5, 8)
    weights, losses = train(data, network(), **settings)
    compiled, found = train(data, network(), compile=True, **settings)
    np.testing.assert_allclose(compiled, weights, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    again, _ = train(data, network(), compile=True, **settings)
    assert (again == compiled).all()


def test_regression():
    data = clients(20, 3, regression=True)
    weights, _ = train(data, network(1))
    compiled, _ = train(data, network(1), compile=True)
    np.testing.assert_allclose(compiled, weights, rtol=1e-4, atol=1e-6)


def test_it_is_compiled_once_for_all_sizes_and_rates():
    """Counted by torch: clients of any size, and a learning rate that changes, ask for no other graph."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    train(clients(20, 5, 8, 1, 3), network(), compile=True, lr_schedule="cosine", lr_rounds=9)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


class Branches(nn.Module):
    """Looks at its numbers, which a compiled function cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) if x.sum() > 0 else -self.layer(x)


def test_a_model_that_cannot_be_compiled():
    with pytest.raises(ConfigError, match=r"(?s)learner_config.compile: this model cannot be compiled .*leave it out"):
        train(clients(8), TorchModel(Branches(), (6,), 4), compile=True)


@pytest.mark.parametrize(("model", "settings", "words"), [
    (lambda: TorchModel(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), (6,), 4), {}, "BatchNorm would average over"),
    (lambda: LinearModel(6, 4), {}, "compile=True is for torch models"),
    (network, {"precision": "float16"}, "compile=True works in float32 and bfloat16"),
])
def test_what_does_not_go_with_it(model, settings, words):
    with pytest.raises(ConfigError, match=words):
        DefaultLearner(model(), compile=True, **settings)
