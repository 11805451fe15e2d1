"""The components that come with the package, by class; by name they are in `federation.builtin.table`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from federation.lazy import lazy

if TYPE_CHECKING:
    from federation.builtin.aggregators.bulyan import BulyanAggregator
    from federation.builtin.aggregators.centred_clipping import CentredClippingAggregator
    from federation.builtin.aggregators.fedadagrad import FedAdagradAggregator
    from federation.builtin.aggregators.fedadam import FedAdamAggregator
    from federation.builtin.aggregators.fedasync import FedAsyncAggregator
    from federation.builtin.aggregators.fedavg import FedAvgAggregator
    from federation.builtin.aggregators.fedavgm import FedAvgMAggregator
    from federation.builtin.aggregators.fedbuff import FedBuffAggregator
    from federation.builtin.aggregators.feddyn import FedDynAggregator
    from federation.builtin.aggregators.fednova import FedNovaAggregator
    from federation.builtin.aggregators.fedprox import FedProxAggregator
    from federation.builtin.aggregators.fedyogi import FedYogiAggregator
    from federation.builtin.aggregators.fltrust import FLTrustAggregator
    from federation.builtin.aggregators.geometric_median import GeometricMedianAggregator
    from federation.builtin.aggregators.krum import KrumAggregator
    from federation.builtin.aggregators.median import MedianAggregator
    from federation.builtin.aggregators.multikrum import MultiKrumAggregator
    from federation.builtin.aggregators.norm_clipping import NormClippingAggregator
    from federation.builtin.aggregators.qfedavg import QFedAvgAggregator
    from federation.builtin.aggregators.scaffold import ScaffoldAggregator
    from federation.builtin.aggregators.trimmed_mean import TrimmedMeanAggregator
    from federation.builtin.learners.default import DefaultLearner
    from federation.builtin.learners.ditto import DittoLearner
    from federation.builtin.learners.feddyn import FedDynLearner
    from federation.builtin.learners.fedprox import FedProxLearner
    from federation.builtin.learners.scaffold import ScaffoldLearner
    from federation.builtin.learners.sklearn import SklearnLearner
    from federation.builtin.models.cnn import CNNModel
    from federation.builtin.models.linear import LinearModel
    from federation.builtin.models.logistic import LogisticModel
    from federation.builtin.models.lstm import LSTMModel
    from federation.builtin.models.mlp import MLPModel
    from federation.builtin.models.module import TorchModuleModel
    from federation.builtin.models.resnet18 import ResNet18Model
    from federation.builtin.models.torch_model import TorchModel
    from federation.builtin.trainers.asynchronous import AsyncTrainer
    from federation.builtin.trainers.default import DefaultTrainer

_HOMES = {
    "AsyncTrainer": "federation.builtin.trainers.asynchronous",
    "BulyanAggregator": "federation.builtin.aggregators.bulyan",
    "CNNModel": "federation.builtin.models.cnn",
    "CentredClippingAggregator": "federation.builtin.aggregators.centred_clipping",
    "DefaultLearner": "federation.builtin.learners.default",
    "DefaultTrainer": "federation.builtin.trainers.default",
    "DittoLearner": "federation.builtin.learners.ditto",
    "FLTrustAggregator": "federation.builtin.aggregators.fltrust",
    "FedAdagradAggregator": "federation.builtin.aggregators.fedadagrad",
    "FedAdamAggregator": "federation.builtin.aggregators.fedadam",
    "FedAsyncAggregator": "federation.builtin.aggregators.fedasync",
    "FedAvgAggregator": "federation.builtin.aggregators.fedavg",
    "FedAvgMAggregator": "federation.builtin.aggregators.fedavgm",
    "FedBuffAggregator": "federation.builtin.aggregators.fedbuff",
    "FedDynAggregator": "federation.builtin.aggregators.feddyn",
    "FedDynLearner": "federation.builtin.learners.feddyn",
    "FedNovaAggregator": "federation.builtin.aggregators.fednova",
    "FedProxAggregator": "federation.builtin.aggregators.fedprox",
    "FedProxLearner": "federation.builtin.learners.fedprox",
    "FedYogiAggregator": "federation.builtin.aggregators.fedyogi",
    "GeometricMedianAggregator": "federation.builtin.aggregators.geometric_median",
    "KrumAggregator": "federation.builtin.aggregators.krum",
    "LSTMModel": "federation.builtin.models.lstm",
    "LinearModel": "federation.builtin.models.linear",
    "LogisticModel": "federation.builtin.models.logistic",
    "MLPModel": "federation.builtin.models.mlp",
    "MedianAggregator": "federation.builtin.aggregators.median",
    "MultiKrumAggregator": "federation.builtin.aggregators.multikrum",
    "NormClippingAggregator": "federation.builtin.aggregators.norm_clipping",
    "QFedAvgAggregator": "federation.builtin.aggregators.qfedavg",
    "ResNet18Model": "federation.builtin.models.resnet18",
    "ScaffoldAggregator": "federation.builtin.aggregators.scaffold",
    "ScaffoldLearner": "federation.builtin.learners.scaffold",
    "SklearnLearner": "federation.builtin.learners.sklearn",
    "TorchModel": "federation.builtin.models.torch_model",
    "TorchModuleModel": "federation.builtin.models.module",
    "TrimmedMeanAggregator": "federation.builtin.aggregators.trimmed_mean",
}

__all__ = [
    "AsyncTrainer",
    "BulyanAggregator",
    "CNNModel",
    "CentredClippingAggregator",
    "DefaultLearner",
    "DefaultTrainer",
    "DittoLearner",
    "FLTrustAggregator",
    "FedAdagradAggregator",
    "FedAdamAggregator",
    "FedAsyncAggregator",
    "FedAvgAggregator",
    "FedAvgMAggregator",
    "FedBuffAggregator",
    "FedDynAggregator",
    "FedDynLearner",
    "FedNovaAggregator",
    "FedProxAggregator",
    "FedProxLearner",
    "FedYogiAggregator",
    "GeometricMedianAggregator",
    "KrumAggregator",
    "LSTMModel",
    "LinearModel",
    "LogisticModel",
    "MLPModel",
    "MedianAggregator",
    "MultiKrumAggregator",
    "NormClippingAggregator",
    "QFedAvgAggregator",
    "ResNet18Model",
    "ScaffoldAggregator",
    "ScaffoldLearner",
    "SklearnLearner",
    "TorchModel",
    "TorchModuleModel",
    "TrimmedMeanAggregator",
]

__getattr__, __dir__ = lazy(__name__, _HOMES, globals())
