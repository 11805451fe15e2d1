"""APPFL over MPI on a workload of bench_round.py; its server prints the milliseconds of each round but the first.

For `mpirun -n 3`: rank 0 serves, and each other has half of the clients. APPFL does not sample over MPI, so there are as
many clients as a cohort has, and all of them are in every round. Each keeps a model of its own. `optimize_memory` is on by
default, in six places, and collects garbage so often that a round of w1 takes more than ten seconds: it is off everywhere.
"""

from __future__ import annotations

import itertools
import logging
import sys
import time

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:
    # APPFL imports torchvision, for what is not used here. PyPI's is built for CUDA: beside a torch for CPUs its library is
    # not loaded, and its import stops at two operators of that library. It is enough that they are declared.
    for operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{operator}", "(Tensor boxes, Tensor scores, float threshold) -> Tensor")

from appfl.agent import ClientAgent, ServerAgent
from appfl.algorithm.trainer import BaseTrainer
from appfl.comm.mpi import MPIClientCommunicator, MPIServerCommunicator
from mpi4py import MPI
from omegaconf import OmegaConf
from torch.utils.data import TensorDataset
from workloads import WORKLOADS, client_of, make_data, make_module, scale

NAME = sys.argv[1]
WORK = WORKLOADS[NAME]
PLAIN = {"optimize_memory": False}
TRAINING = {**PLAIN, "trainer": "VanillaTrainer", "mode": "epoch", "num_local_epochs": 1, "train_batch_size": WORK.batch,
            "optim": "SGD", "optim_args": {"lr": WORK.rate}, "loss_fn": "CrossEntropyLoss", "logging_output_dirname": ""}
SERVING = {**PLAIN, "num_clients": WORK.cohort, "num_global_epochs": WORK.rounds + 1, "scheduler": "SyncScheduler",
           "scheduler_kwargs": PLAIN, "aggregator": "FedAvgAggregator", "aggregator_kwargs": PLAIN,
           "logging_output_dirname": ""}


class Scaling(BaseTrainer):
    """W3's local training."""

    def train(self, **settings):
        """One pass over the vector."""
        with torch.no_grad():
            self.model.vector.mul_(scale(int(self.client_id)))

    def get_parameters(self):
        """As VanillaTrainer: with what it has to tell, which is nothing."""
        return self.model.state_dict(), {}


class Client(ClientAgent):
    """Model and data come from workloads.py, and not from files that APPFL sends and runs."""

    def __init__(self, index, data):
        self.train_dataset, self.val_dataset = TensorDataset(*client_of(data, WORK, index)), None
        super().__init__(OmegaConf.create({**PLAIN, "client_id": str(index), "train_configs": TRAINING}))

    def _load_data(self):
        """There already."""

    def _load_model(self):
        self.model = make_module(NAME)

    def _load_metric(self):
        """A trainer calls one after each epoch; no other peer has one."""
        self.metric = lambda labels, outputs: 0.0

    def _load_trainer(self):
        super()._load_trainer()
        if NAME == "w3":
            self.trainer = Scaling(self.model, client_id=self.get_id())


class Server(ServerAgent):
    """Looks at the time after each round."""

    def __init__(self):
        self.times: list[float] = []
        super().__init__(OmegaConf.create({"client_configs": {}, "server_configs": SERVING}))

    def _load_model(self):
        self.model = make_module(NAME)

    def global_update(self, *update, **settings):
        """Once for each client: the last of a round makes the next model."""
        given = super().global_update(*update, **settings)
        if self.scheduler.get_num_global_epochs() > len(self.times):
            self.times.append(time.perf_counter())
        return given


def serve(world: MPI.Comm) -> None:
    """Rank 0."""
    server = Server()
    MPIServerCommunicator(world, server, logger=server.logger).serve()
    print([1e3 * (after - before) for before, after in itertools.pairwise(server.times)])


def train(world: MPI.Comm) -> None:
    """The clients of another rank, whose models go to the server together."""
    data = tuple(map(torch.from_numpy, make_data(NAME)))
    clients = {str(index): Client(index, data) for index in range(world.rank - 1, WORK.cohort, world.size - 1)}
    server = MPIClientCommunicator(world, server_rank=0, client_ids=list(clients), **PLAIN)
    model = server.get_global_model(init_model=True)
    for _ in range(WORK.rounds + 1):
        trained = {}
        for name, client in clients.items():
            client.load_parameters(model)
            client.train()
            trained[name] = client.get_parameters()
        model, _ = server.update_global_model({name: weights for name, (weights, _) in trained.items()},
                                              kwargs={name: told for name, (_, told) in trained.items()})
    server.invoke_custom_action("close_connection")


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    (train if MPI.COMM_WORLD.rank else serve)(MPI.COMM_WORLD)
