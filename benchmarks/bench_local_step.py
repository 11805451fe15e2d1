"""What local training costs: DefaultLearner against loops of plain PyTorch, on one thread.

    python benchmarks/bench_local_step.py [--json FILE] [--repeats 15] [--clients 10]

Work: each client starts from the same weights of the 784-200-10 network (159,010 parameters) and trains one pass over
60 samples of its own in batches of 20, SGD. Four ways, alternating in one run, medians of updates a second:

    plain       what a user writes: state_dict, a new torch.optim.SGD, a shuffled DataLoader
    optimised   written for speed: one flat vector for all parameters, batches by index, backward into gradients of
                autograd's own, one update for all parameters
    manual      the same without autograd: gradients written out for this very network. A bound, not a competitor
    learner     DefaultLearner: bind, set_weights, fit; with streams keyed by client, dropout-safe, losses and checks

With --momentum or --optimizer adam, `optimised` and `manual` are left out.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from workloads import flattened

from federation.builtin import DefaultLearner, MLPModel
from federation.core.learner import Context
from federation.data.client_data import ClientData

SAMPLES, BATCH, RATE = 60, 20, 0.05
WARM_UPS = 3


def network() -> nn.Sequential:
    """784-200-10."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 10))


def make_clients(count: int) -> list[ClientData]:
    """Random samples of 784 values in ten classes."""
    rng = np.random.default_rng(0)
    return [ClientData(rng.normal(size=(SAMPLES, 784)).astype(np.float32), rng.integers(0, 10, SAMPLES), num_classes=10)
            for _ in range(count)]


def plain(clients: list[ClientData], make_optimizer: Callable) -> Callable[[], None]:
    """The training loop of a tutorial."""
    module = network()
    start = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    sets = [TensorDataset(torch.from_numpy(data.x), torch.from_numpy(data.y)) for data in clients]

    def train() -> None:
        for samples in sets:
            module.load_state_dict(start)
            module.train()
            optimizer = make_optimizer(module.parameters())
            for x, y in DataLoader(samples, batch_size=BATCH, shuffle=True):
                optimizer.zero_grad()
                functional.cross_entropy(module(x), y).backward()
                optimizer.step()

    return train


def optimised(clients: list[ClientData]) -> Callable[[], None]:
    """As fast as autograd goes by hand."""
    module = network()
    flat, views, parameters = flattened(module)
    start = flat.clone()
    sets = [(torch.from_numpy(data.x), torch.from_numpy(data.y)) for data in clients]

    def train() -> None:
        for x, y in sets:
            flat.copy_(start)
            order = torch.randperm(SAMPLES)
            for first in range(0, SAMPLES, BATCH):
                chosen = order[first:first + BATCH]
                functional.cross_entropy(module(x[chosen]), y[chosen]).backward()
                torch._foreach_add_(views, [parameter.grad for parameter in parameters], alpha=-RATE)
                for parameter in parameters:
                    parameter.grad = None

    return train


def manual(clients: list[ClientData]) -> Callable[[], None]:
    """Without autograd, the update folded into the products."""
    start = [parameter.detach().clone() for parameter in network().parameters()]
    weight1, bias1, weight2, bias2 = weights = [tensor.clone() for tensor in start]
    sets = [(torch.from_numpy(data.x), functional.one_hot(torch.from_numpy(data.y), 10).float()) for data in clients]

    def train() -> None:
        for x, y in sets:
            torch._foreach_copy_(weights, start)
            order = torch.randperm(SAMPLES)
            for first in range(0, SAMPLES, BATCH):
                chosen = order[first:first + BATCH]
                samples = x[chosen]
                hidden = torch.addmm(bias1, samples, weight1.t()).relu_()
                slope = torch.addmm(bias2, hidden, weight2.t()).softmax(1).sub_(y[chosen]).div_(BATCH)
                slope1 = slope.mm(weight2).mul_(hidden > 0)
                weight2.addmm_(slope.t(), hidden, alpha=-RATE)
                bias2.sub_(slope.sum(0), alpha=RATE)
                weight1.addmm_(slope1.t(), samples, alpha=-RATE)
                bias1.sub_(slope1.sum(0), alpha=RATE)

    return train


def learner(clients: list[ClientData], **settings: object) -> Callable[[], None]:
    """The package's own."""
    own = DefaultLearner(MLPModel(), batch_size=BATCH, client_lr=RATE, **settings)
    start = own.get_weights()

    def train() -> None:
        for index, data in enumerate(clients):
            own.bind(data, Context(f"client_{index}", 1, 0))
            own.set_weights(start)
            own.fit({"round": 1})

    return train


def measure(loops: dict[str, Callable[[], None]], repeats: int, clients: int) -> dict[str, float]:
    """Median updates a second of each loop, the loops taking turns."""
    times: dict[str, list[float]] = {name: [] for name in loops}
    for repeat in range(WARM_UPS + repeats):
        for name, train in loops.items():
            began = time.perf_counter()
            train()
            if repeat >= WARM_UPS:
                times[name].append(time.perf_counter() - began)
    return {name: clients / statistics.median(seconds) for name, seconds in times.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--optimizer", choices=["sgd", "adam"], default="sgd")
    parser.add_argument("--momentum", type=float, default=0.0)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    clients = make_clients(arguments.clients)

    def make_optimizer(parameters):
        if arguments.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=RATE)
        return torch.optim.SGD(parameters, lr=RATE, momentum=arguments.momentum)

    loops = {"plain": plain(clients, make_optimizer)}
    if arguments.optimizer == "sgd" and not arguments.momentum:
        loops |= {"optimised": optimised(clients), "manual": manual(clients)}
    loops["learner"] = learner(clients, optimizer=arguments.optimizer, momentum=arguments.momentum)
    rates = measure(loops, arguments.repeats, arguments.clients)
    for name, rate in rates.items():
        print(f"{name:10s} {rate:8.0f} updates/s   learner / {name}: {rates['learner'] / rate:.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({
            "updates_per_s": rates, "learner_ratio": {name: rates["learner"] / rate for name, rate in rates.items()},
            "optimizer": arguments.optimizer, "momentum": arguments.momentum, "clients": arguments.clients,
            "repeats": arguments.repeats, "torch": torch.__version__, "python": platform.python_version()}, indent=1))


if __name__ == "__main__":
    main()
