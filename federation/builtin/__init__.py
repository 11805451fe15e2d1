"""The components that come with the package, by class; by name they are in `federation.builtin.table`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from federation.lazy import lazy

if TYPE_CHECKING:
    from federation.builtin.aggregators.fedavg import FedAvgAggregator
    from federation.builtin.learners.default import DefaultLearner
    from federation.builtin.learners.sklearn import SklearnLearner
    from federation.builtin.models.cnn import CNNModel
    from federation.builtin.models.linear import LinearModel
    from federation.builtin.models.logistic import LogisticModel
    from federation.builtin.models.mlp import MLPModel
    from federation.builtin.models.torch_model import TorchModel
    from federation.builtin.trainers.default import DefaultTrainer

_HOMES = {
    "CNNModel": "federation.builtin.models.cnn",
    "DefaultLearner": "federation.builtin.learners.default",
    "DefaultTrainer": "federation.builtin.trainers.default",
    "FedAvgAggregator": "federation.builtin.aggregators.fedavg",
    "LinearModel": "federation.builtin.models.linear",
    "LogisticModel": "federation.builtin.models.logistic",
    "MLPModel": "federation.builtin.models.mlp",
    "SklearnLearner": "federation.builtin.learners.sklearn",
    "TorchModel": "federation.builtin.models.torch_model",
}

__all__ = [
    "CNNModel",
    "DefaultLearner",
    "DefaultTrainer",
    "FedAvgAggregator",
    "LinearModel",
    "LogisticModel",
    "MLPModel",
    "SklearnLearner",
    "TorchModel",
]

__getattr__, __dir__ = lazy(__name__, _HOMES, globals())
