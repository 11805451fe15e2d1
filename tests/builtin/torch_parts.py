"""Torch modules with something awkward about them, and training loops written out plainly as oracles."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from federation.core.random import stream
from federation.data.client_data import ClientData
from federation.data.draws import shuffled


def make_data(count: int, shape: tuple[int, ...] = (6,), classes: int | None = 4, seed: int = 0,
              shift: float = 0.0) -> ClientData:
    """Random samples; labels, or float targets where `classes` is None."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(count, *shape)) + shift).astype(np.float32)
    y = rng.normal(size=count).astype(np.float32) if classes is None else rng.integers(0, classes, count)
    return ClientData(x, y, num_classes=classes)


def plain_mlp(state: dict[str, np.ndarray]) -> nn.Sequential:
    """6 - 5 - 4 with ReLU, its parameters set in the order of `state`: torch's own memory, no flat buffer."""
    module = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    with torch.no_grad():
        for parameter, array in zip(module.parameters(), state.values(), strict=True):
            parameter.copy_(torch.tensor(np.asarray(array, np.float32)))
    return module


def plain_training(module: nn.Module, optimizer: torch.optim.Optimizer, data: ClientData, batches: list[np.ndarray]) -> float:
    """The loop that everyone writes; returns the mean loss over all samples seen."""
    total = count = 0.0
    for batch in batches:
        optimizer.zero_grad()
        loss = functional.cross_entropy(module(torch.tensor(data.x[batch])), torch.tensor(data.y[batch]))
        loss.backward()
        optimizer.step()
        total += loss.item() * len(batch)
        count += len(batch)
    return total / count


def orders(count: int, passes: int, client: str = "client", round: int = 0, seed: int = 0) -> list[np.ndarray]:
    """The order of the samples in each pass of a client."""
    generator = stream(seed, "shuffle", round, client)
    return [shuffled(generator, count) for _ in range(passes)]


def batches(count: int, passes: int, size: int, **key: object) -> list[np.ndarray]:
    """The batches of all passes, the last of each smaller."""
    return [order[first:first + size] for order in orders(count, passes, **key) for first in range(0, count, size)]


class Recorder(nn.Module):
    """Passes the first feature of each sample on, and notes which samples came, batch by batch."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.linear = nn.Linear(1, classes)
        self.seen: list[list[int]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append([int(value) for value in x[:, 0].detach()])
        return self.linear(x[:, :1] * 1e-3)


class Rebinding(nn.Module):
    """Replaces its buffer at every step, instead of writing into it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mean = 0.5 * self.mean + 0.5 * x.detach().mean(0)
        return self.linear(x - self.mean)


class Tied(nn.Module):
    """An autoencoder-like pair of layers that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(6, 6)
        self.decode = nn.Linear(6, 6)
        self.decode.weight = self.encode.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decode(torch.relu(self.encode(x)))
