"""The work of bench_round.py, shared by everything that it compares: data, models, and loops written by hand.

    w1   the 784-200-10 network (159,010 parameters): 100 clients of 60 samples, cohorts of 10, batches of 20. Overhead.
    w2   a CNN for 32x32 images (1,626,442 parameters): 1000 clients of 50 samples, cohorts of 50, batches of 10. Compute.
    w3   one vector of 25 million float32, which each of 8 clients scales in place. Bandwidth.

This file is imported by the runs as well (`workloads:W1Model`), and by peers in environments of their own: it needs torch
and NumPy, and nothing of this project where that is absent.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class Workload:
    """What a round is, and how many of them are measured (after one that is not)."""

    clients: int
    samples: int
    shape: tuple[int, ...]
    cohort: int
    batch: int
    rate: float
    rounds: int


WORKLOADS = {
    "w1": Workload(100, 60, (784,), 10, 20, 0.05, 20),
    "w2": Workload(1000, 50, (3, 32, 32), 50, 10, 0.1, 3),
    "w3": Workload(8, 1, (1,), 8, 1, 0.1, 6),
}
VECTOR = 25_000_000


def make_module(name: str) -> nn.Module:
    """The network, from a fixed seed."""
    torch.manual_seed(0)
    if name == "w1":
        return nn.Sequential(nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 10))
    if name == "w2":
        return nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                             nn.Linear(64 * 14 * 14, 128), nn.ReLU(), nn.Linear(128, 10))
    return Vector()


class Vector(nn.Module):
    """One long parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.ones(VECTOR))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Next to nothing."""
        return x * self.vector[0]


def make_data(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Samples and labels, client after client: ten classes around means of their own."""
    work, draws = WORKLOADS[name], np.random.default_rng(1)
    means = draws.standard_normal((10, *work.shape), np.float32)
    y = draws.integers(0, 10, work.clients * work.samples)
    x = draws.standard_normal((len(y), *work.shape), np.float32)
    x *= 0.5
    for label in range(10):
        x[y == label] += np.float32(0.08) * means[label]
    return x, y


def scale(index: int) -> float:
    """What a client of w3 multiplies with."""
    return 0.99 + 0.001 * (index % 8)


# Loops by hand


def client_of(data: tuple[torch.Tensor, torch.Tensor], work: Workload, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One client's samples, as views."""
    part = slice(index * work.samples, (index + 1) * work.samples)
    return data[0][part], data[1][part]


def train_plainly(module: nn.Module, samples: tuple[torch.Tensor, torch.Tensor], work: Workload) -> None:
    """A client's epoch as a user writes it: a new optimiser, a DataLoader."""
    from torch.utils.data import DataLoader, TensorDataset

    optimizer = torch.optim.SGD(module.parameters(), work.rate)
    for x, y in DataLoader(TensorDataset(*samples), work.batch, shuffle=True):
        optimizer.zero_grad()
        functional.cross_entropy(module(x), y).backward()
        optimizer.step()


def flattened(module: nn.Module) -> tuple[torch.Tensor, list[torch.Tensor], list[nn.Parameter]]:
    """All parameters in one vector, the views into it that they are now, and they themselves."""
    parameters = list(module.parameters())
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
    views, first = [], 0
    for parameter in parameters:
        views.append(flat[first:first + parameter.numel()].view_as(parameter))
        parameter.data = views[-1]
        first += parameter.numel()
    return flat, views, parameters


def plain_round(name: str) -> Callable[[np.ndarray], None]:
    """As a user writes it, with state_dict."""
    work, module = WORKLOADS[name], make_module(name)
    x, y = make_data(name)
    data = torch.from_numpy(x), torch.from_numpy(y)

    def round_of(cohort: np.ndarray) -> None:
        start = {key: tensor.clone() for key, tensor in module.state_dict().items()}
        total = {key: torch.zeros_like(tensor) for key, tensor in start.items()}
        for index in cohort:
            module.load_state_dict(start)
            if name == "w3":
                with torch.no_grad():
                    module.vector.mul_(scale(int(index)))
            else:
                train_plainly(module, client_of(data, work, index), work)
            for key, tensor in module.state_dict().items():
                total[key] += tensor / len(cohort)
        module.load_state_dict(total)

    return round_of


def optimised_round(name: str) -> Callable[[np.ndarray], None]:
    """As fast as autograd goes by hand: one flat vector, index batches, one update for all parameters, a float32 mean."""
    work, module = WORKLOADS[name], make_module(name)
    x, y = make_data(name)
    data = torch.from_numpy(x), torch.from_numpy(y)
    flat, views, parameters = flattened(module)
    start, total = flat.clone(), torch.zeros_like(flat)

    def round_of(cohort: np.ndarray) -> None:
        nonlocal start, total
        total.zero_()
        for index in cohort:
            flat.copy_(start)
            if name == "w3":
                flat.mul_(scale(int(index)))
            else:
                xs, ys = client_of(data, work, index)
                order = torch.randperm(len(ys))
                for begin in range(0, len(ys), work.batch):
                    chosen = order[begin:begin + work.batch]
                    batch = xs[chosen]
                    if name == "w2":
                        batch = batch.contiguous(memory_format=torch.channels_last)
                    functional.cross_entropy(module(batch), ys[chosen]).backward()
                    torch._foreach_add_(views, [parameter.grad for parameter in parameters], alpha=-work.rate)
                    for parameter in parameters:
                        parameter.grad = None
            total.add_(flat, alpha=1 / len(cohort))
        start, total = total, start

    return round_of


def milliseconds(name: str, round_of: Callable[[np.ndarray], None]) -> list[float]:
    """A round's time, for each but the first."""
    work, draws, times = WORKLOADS[name], np.random.default_rng(0), []
    for _ in range(work.rounds + 1):
        cohort = draws.choice(work.clients, work.cohort, replace=False)
        began = time.perf_counter()
        round_of(cohort)
        times.append(1e3 * (time.perf_counter() - began))
    return times[1:]


# What a run of this project takes from here


def w1() -> tuple[np.ndarray, np.ndarray]:
    """For data.dataset."""
    return make_data("w1")


def w2() -> tuple[np.ndarray, np.ndarray]:
    """For data.dataset."""
    return make_data("w2")


def w3() -> tuple[np.ndarray, np.ndarray]:
    """For data.dataset."""
    return make_data("w3")


with contextlib.suppress(ImportError):
    from federation import EvalResult, Learner, TrainResult
    from federation.builtin import TorchModel

    class W1Model(TorchModel):
        """The 784-200-10 network."""

        def __init__(self) -> None:
            super().__init__(make_module("w1"), (784,), 10)

    class W2Model(TorchModel):
        """The CNN."""

        def __init__(self) -> None:
            super().__init__(make_module("w2"), (3, 32, 32), 10)

    class W3Model(TorchModel):
        """The vector."""

        def __init__(self) -> None:
            super().__init__(make_module("w3"), (1,), 10)

    class Scaling(Learner):
        """W3's local training: one pass over the vector, in place."""

        def fit(self, config: Mapping[str, Any] | None = None) -> TrainResult:
            """Scale."""
            weights = self.model.weights
            np.multiply(weights[0], np.float32(scale(int(self.context.client_id.removeprefix("client_")))), out=weights[0])
            return TrainResult(weights, 1)

        def evaluate(self, config: Mapping[str, Any] | None = None) -> EvalResult:
            """Nothing."""
            return EvalResult(0)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    loops = {"plain": plain_round, "optimised": optimised_round}
    print(milliseconds(sys.argv[2], loops[sys.argv[1]](sys.argv[2])))
