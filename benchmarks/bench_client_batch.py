"""What it brings to train several clients at once: DefaultLearner with `client_batch`, on one thread or on a GPU.

    python benchmarks/bench_client_batch.py [--json FILE] [--device cpu] [--sizes 1 8 50] [--clients 50] [--repeats 7]

Work: a round's clients of w1 (see workloads.py): the 784-200-10 network, 60 samples each, batches of 20, one epoch. Each size
trains all of them in turn, in groups of that many, from the same weights; 1 is the path without groups. Medians of updates a
second, by the clock and by the processor time of this process, which is the fairer one of a shared CPU (not of a GPU).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from workloads import WORKLOADS, W1Model, make_data

from federation.builtin import DefaultLearner
from federation.core.learner import Context, Turn
from federation.data.client_data import ClientData

WORK = WORKLOADS["w1"]
WARM_UPS = 2


def make_clients(count: int) -> list[ClientData]:
    """The first clients of w1."""
    x, y = make_data("w1")
    parts = [slice(first, first + WORK.samples) for first in range(0, count * WORK.samples, WORK.samples)]
    return [ClientData(x[part], y[part], num_classes=10) for part in parts]


def training(clients: list[ClientData], size: int, device: str) -> Callable[[], None]:
    """One pass over all clients, `size` at once."""
    learner = DefaultLearner(W1Model(), batch_size=WORK.batch, client_lr=WORK.rate, client_batch=size, device=device)
    start = learner.model.get_weights()
    turns = [Turn(data, Context(f"client_{index}", 1, 0), start) for index, data in enumerate(clients)]

    def one_by_one() -> None:
        for turn in turns:
            learner.bind(turn.data, turn.context)
            learner.set_weights(turn.start)
            learner.fit({"round": 1})

    def in_groups() -> None:
        for first in range(0, len(turns), size):
            for _, result in learner.fit_many(turns[first:first + size], {"round": 1}):
                if isinstance(result, Exception):
                    raise result

    return one_by_one if size == 1 else in_groups


def measure(loops: dict[int, Callable[[], None]], repeats: int, clients: int) -> dict[int, dict[str, float]]:
    """Median updates a second of each loop, by either clock; the loops take turns."""
    times: dict[int, list[tuple[float, float]]] = {size: [] for size in loops}
    for repeat in range(WARM_UPS + repeats):
        for size, train in loops.items():
            began, used = time.perf_counter(), time.process_time()
            train()
            if repeat >= WARM_UPS:
                times[size].append((time.perf_counter() - began, time.process_time() - used))
    return {size: {name: clients / statistics.median(column) for name, column in zip(("wall", "processor"),
                                                                                    zip(*pairs, strict=True), strict=True)}
            for size, pairs in times.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 8, 50])
    parser.add_argument("--clients", type=int, default=50, help=f"of a round, at most {WORK.clients}")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    clients = make_clients(arguments.clients)
    rates = measure({size: training(clients, size, arguments.device) for size in arguments.sizes}, arguments.repeats,
                    len(clients))
    for size, rate in rates.items():
        print(f"client_batch {size:4d} {rate['wall']:8.0f} updates/s   by processor time {rate['processor']:8.0f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({
            "updates_per_s": rates, "device": arguments.device, "clients": len(clients), "repeats": arguments.repeats,
            "torch": torch.__version__, "python": platform.python_version()}, indent=1))


if __name__ == "__main__":
    main()
