"""Torch modules with something awkward about them, and training loops written out plainly as oracles."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from federation.builtin import TorchModel
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


class Branched(nn.Module):
    """Sums and joins of branches, and a scalar parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.scale = nn.Linear(13, 7), nn.Linear(13, 6, bias=False), nn.Parameter(torch.tensor(0.7))
        self.output = nn.Linear(19, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.left(x).relu() - self.scale, self.right(x).neg()
        return self.output(torch.cat([left * 2, right, left[:, 1:] / 3], 1))


class Characters(nn.Module):
    """Numbers of characters; the last one's values count double."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.output = nn.Embedding(11, 3), nn.Linear(3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.embedding(x.relu().mul(4).tanh().mul(10).long())
        return self.output(found.mean(1) + found[:, -1])


def images(*layers: nn.Module) -> nn.Sequential:
    """Layers between an image of 7 x 7 and five scores; lazy until it is called."""
    return nn.Sequential(nn.Unflatten(1, (1, 7, 7)), *layers, nn.Flatten(), nn.LazyLinear(5))


#: Modules with odd sizes, in whose training every operation occurs of which the same bits at every place are promised.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "relu": (lambda: nn.Sequential(nn.Linear(13, 33), nn.ReLU(inplace=True), nn.Linear(33, 5)), 13),
    "tanh": (lambda: nn.Sequential(nn.Linear(13, 33), nn.Tanh(), nn.Linear(33, 5)), 13),
    "norms": (lambda: nn.Sequential(nn.Linear(13, 33), nn.LayerNorm(33), nn.Tanh(), nn.Linear(33, 5)), 13),
    "leaky": (lambda: nn.Sequential(nn.Linear(13, 33), nn.LeakyReLU(), nn.Linear(33, 5)), 13),
    "branched": (Branched, 13),
    "embedding": (Characters, 9),
    "convolution": (lambda: images(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 5, 3, padding=1), nn.MaxPool2d(2)), 49),
    "group norm": (lambda: images(nn.ZeroPad2d(1), nn.Conv2d(1, 6, 3, stride=2), nn.GroupNorm(2, 6), nn.AvgPool2d(2)), 49),
    "pooled": (lambda: images(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1)), 49),
}


def model_of(name: str) -> TorchModel:
    """One of NETWORKS, the same each time."""
    make, width = NETWORKS[name]
    torch.manual_seed(0)
    module = make()
    module(torch.zeros(2, width))
    return TorchModel(module, (width,), 5)
