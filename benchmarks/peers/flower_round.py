"""Flower's simulation (Ray, 2 processes) on a workload of bench_round.py; prints the milliseconds of each round but the first.

Model and data are kept from call to call in each of Ray's processes.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import sys
import time

os.environ.update(FLWR_TELEMETRY_ENABLED="0", RAY_USAGE_STATS_ENABLED="0")

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from workloads import WORKLOADS, client_of, make_data, make_module, scale, train_plainly

NAME = os.environ.setdefault("BENCH_WORK", sys.argv[1] if len(sys.argv) > 1 else "w1")
WORK = WORKLOADS[NAME]
client_app, server_app = ClientApp(), ServerApp()
times: list[float] = []


@functools.lru_cache(1)
def kept():
    """Model and data of this process."""
    torch.set_num_threads(1)
    return make_module(NAME), tuple(map(torch.from_numpy, make_data(NAME)))


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """A client's turn."""
    module, data = kept()
    index = int(context.node_config["partition-id"])
    module.load_state_dict(message.content["arrays"].to_torch_state_dict())
    if NAME == "w3":
        with torch.no_grad():
            module.vector.mul_(scale(index))
    else:
        train_plainly(module, client_of(data, WORK, index), WORK)
    return Message(RecordDict({"arrays": ArrayRecord(module.state_dict()),
                               "metrics": MetricRecord({"num-examples": WORK.samples})}), reply_to=message)


class Timed(FedAvg):
    """Looks at the time as each round begins."""

    def configure_train(self, server_round, arrays, config, grid):
        """Once a round."""
        times.append(time.perf_counter())
        return super().configure_train(server_round, arrays, config, grid)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds."""
    strategy = Timed(fraction_train=WORK.cohort / WORK.clients, fraction_evaluate=0.0, min_train_nodes=WORK.cohort,
                     min_available_nodes=WORK.clients)
    strategy.start(grid=grid, initial_arrays=ArrayRecord(make_module(NAME).state_dict()), num_rounds=WORK.rounds + 1)
    times.append(time.perf_counter())


if __name__ == "__main__":
    logging.getLogger("flwr").setLevel(logging.ERROR)
    run_simulation(server_app=server_app, client_app=client_app, num_supernodes=WORK.clients,
                   backend_config={"init_args": {"num_cpus": 2}, "client_resources": {"num_cpus": 1, "num_gpus": 0}})
    print([1e3 * (after - before) for before, after in itertools.pairwise(times[1:])])
