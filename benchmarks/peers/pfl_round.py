"""pfl-research on a workload of bench_round.py; prints the milliseconds of each round but the first."""

from __future__ import annotations

import itertools
import sys
import time
from typing import ClassVar

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch.nn import functional
from workloads import WORKLOADS, client_of, make_data, make_module, scale

name = sys.argv[1]
work = WORKLOADS[name]
torch.set_num_threads(1)
data = tuple(map(torch.from_numpy, make_data(name)))
module = make_module(name)
module.loss = lambda x, y, eval=False: functional.cross_entropy(module(x), y)
module.metrics = lambda x, y, eval=True: {"loss": Weighted(0.0, 1)}


class Scaling(FederatedAveraging):
    """W3's local training."""

    def train_one_user(self, initial_model_state, model, user_dataset, central_context):
        """One pass over the vector."""
        with torch.no_grad():
            model.pytorch_model.vector.mul_(scale(int(user_dataset.user_id)))
        return model.get_model_difference(initial_model_state), Metrics()


class Clock(TrainingProcessCallback):
    """Looks at the time after each round."""

    times: ClassVar[list[float]] = []

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        """Once a round."""
        self.times.append(time.perf_counter())
        return False, Metrics()


def dataset_of(user: int) -> Dataset:
    """pfl takes batches in the order of the samples: they are shuffled here."""
    x, y = client_of(data, work, user)
    order = torch.randperm(len(y))
    return Dataset((x[order], y[order]), user_id=str(user))


def users() -> FederatedDataset:
    """All clients."""
    return FederatedDataset(dataset_of, get_user_sampler("minimize_reuse", list(range(work.clients))))


np.random.seed(0)
model = PyTorchModel(module, local_optimizer_create=torch.optim.SGD,
                     central_optimizer=torch.optim.SGD(module.parameters(), 1.0))
(Scaling if name == "w3" else FederatedAveraging)().run(
    algorithm_params=NNAlgorithmParams(central_num_iterations=work.rounds + 1, evaluation_frequency=10**6,
                                       train_cohort_size=work.cohort, val_cohort_size=0),
    backend=SimulatedBackend(training_data=users(), val_data=users()), model=model,
    model_train_params=NNTrainHyperParams(local_num_epochs=1, local_learning_rate=work.rate, local_batch_size=work.batch),
    model_eval_params=NNEvalHyperParams(local_batch_size=10**6), callbacks=[Clock()])
print([1e3 * (after - before) for before, after in itertools.pairwise(Clock.times)])
