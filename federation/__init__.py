"""Federated learning that a supercomputer can trust.

    from federation import run
    result = run({"num_clients": 20, "trainer_config": {"max_rounds": 30}})

Names are loaded when they are first used: importing this package loads neither torch nor MPI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from federation.lazy import lazy

if TYPE_CHECKING:
    from federation.config import load_config, load_config_from_dict
    from federation.core.aggregator import Aggregator, MeanAggregator
    from federation.core.learner import Learner
    from federation.core.model import Model
    from federation.core.trainer import Trainer
    from federation.core.types import ClientUpdate, EvalResult, TrainResult
    from federation.core.weights import Layout, Weights
    from federation.errors import FederationError
    from federation.launch import run
    from federation.node.client import ClientNode
    from federation.node.server import ServerNode
    from federation.registry import register
    from federation.session import RunResult

_HOMES = {
    "Aggregator": "federation.core.aggregator",
    "ClientNode": "federation.node.client",
    "ClientUpdate": "federation.core.types",
    "EvalResult": "federation.core.types",
    "FederationError": "federation.errors",
    "Layout": "federation.core.weights",
    "Learner": "federation.core.learner",
    "MeanAggregator": "federation.core.aggregator",
    "Model": "federation.core.model",
    "RunResult": "federation.session",
    "ServerNode": "federation.node.server",
    "TrainResult": "federation.core.types",
    "Trainer": "federation.core.trainer",
    "Weights": "federation.core.weights",
    "load_config": "federation.config",
    "load_config_from_dict": "federation.config",
    "register": "federation.registry",
    "run": "federation.launch",
}

__all__ = [
    "Aggregator",
    "ClientNode",
    "ClientUpdate",
    "EvalResult",
    "FederationError",
    "Layout",
    "Learner",
    "MeanAggregator",
    "Model",
    "RunResult",
    "ServerNode",
    "TrainResult",
    "Trainer",
    "Weights",
    "load_config",
    "load_config_from_dict",
    "register",
    "run",
]

__getattr__, __dir__ = lazy(__name__, _HOMES, globals())
