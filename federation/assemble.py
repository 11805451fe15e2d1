"""From a configuration to the objects of one rank. Every rank of a run builds the same ones from the same file.

The registry and the configuration end here: what is built takes plain arguments and works without them.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from node_comm import Transport

from federation.config import Config, check_settings
from federation.core.aggregator import Aggregator
from federation.core.learner import Learner
from federation.core.model import Model
from federation.core.random import stream_seed
from federation.core.trainer import Trainer
from federation.data.manager import DataManager
from federation.data.partitioner import PARTITIONERS
from federation.data.provider import Dataset, load_dataset
from federation.errors import ConfigError
from federation.infra.recorder import Recorder
from federation.node.client import ClientNode
from federation.node.host import ClientHost
from federation.node.server import ServerNode
from federation.registry import load_plugins, resolve


@dataclass(frozen=True)
class Parts:
    """The component classes of a run, their settings checked, and the data."""

    config: Config
    trainer: type[Trainer]
    learner: type[Learner]
    aggregator: type[Aggregator]
    model: type[Model]
    data: DataManager | None

    def make_model(self) -> Model:
        """A model with its initial weights; sizes come from the data where the configuration leaves them out."""
        dataset = self.data.dataset if self.data is not None else None
        settings = dict(self.model.settings_from_data(dataset.input_shape, dataset.num_classes)) if dataset else {}
        if "seed" in inspect.signature(self.model).parameters:
            settings["seed"] = stream_seed(self.config.seed, "initialisation")
        return self.model(**(settings | dict(self.config.model_config)))

    def make_learner(self) -> Learner:
        """A learner with a model of its own."""
        return self.learner(model=self.make_model(), **self.config.learner_config)

    def make_host(self, transport: Transport | None = None) -> ClientHost:
        """The clients' host of one rank; its sums live in the transport's memory."""
        allocate = None if transport is None else _allocator(transport)
        return ClientHost(self.make_learner() if self.data is not None else None, self.data, seed=self.config.seed,
                          allocate=allocate)

    def make_server(self, transport: Transport) -> ServerNode:
        """Rank 0's node."""
        hosts = True if self.config.trainer_config.server_hosts_clients else None
        return ServerNode(transport=transport, host=self.make_host(transport), hosts_clients=hosts, setup=setup(self.config),
                          placement=self.config.trainer_config.placement,
                          round_timeout=self.config.trainer_config.round_timeout)

    def make_client(self, transport: Transport) -> ClientNode:
        """Any other rank's node."""
        return ClientNode({"node_id": f"rank_{transport.rank}"}, transport=transport, host=self.make_host(transport),
                          setup=setup(self.config))

    def make_trainer(self, server: ServerNode, recorder: Recorder) -> Trainer:
        """The trainer; of the services below, its constructor gets by name those that it asks for."""
        services: dict[str, Any] = {"seed": self.config.seed, "reduction": self.config.reduction,
                                    "on_divergence": self.config.on_divergence, "recorder": recorder}
        wanted = inspect.signature(self.trainer).parameters
        return self.trainer(server=server, model=self.make_model(),
                            aggregator=self.aggregator(**self.config.aggregator_config),
                            config=self.config.trainer_config,
                            **{name: service for name, service in services.items() if name in wanted})


def assemble(config: Config) -> Parts:
    """Import the components, check their settings, load and partition the data. ConfigError lists all problems."""
    load_plugins(config.plugins)
    names = config.components
    problems: list[str] = []

    def component(kind: str, name: str, base: type, settings: Mapping[str, Any], path: str, *reserved: str) -> Any:
        try:
            found = resolve(name, kind)
        except ConfigError as error:
            problems.extend(error.problems)
            return None
        if not issubclass(found, base):
            problems.append(f"components.{kind}: {name} is {found.__qualname__}, which is not a {base.__name__}")
            return None
        problems.extend(check_settings(found, settings, path, reserved))
        return found

    trainer = component("trainer", names.trainer, Trainer, {}, "trainer_config")
    learner = component("learner", names.learner, Learner, config.learner_config, "learner_config", "model", "data")
    aggregator = component("aggregator", names.aggregator, Aggregator, config.aggregator_config, "aggregator_config")
    model = component("model", names.model, Model, config.model_config, "model_config")
    if config.data.enabled:
        partitioner: Callable[..., Any] = PARTITIONERS[config.data.partitioner]
        problems.extend(check_settings(partitioner, config.data.partitioner_config, "data.partitioner_config",
                                       ("labels", "num_clients", "rng_seed")))
    if problems:
        raise ConfigError(problems)
    return Parts(config, trainer, learner, aggregator, model, _data(config) if config.data.enabled else None)


def _data(config: Config) -> DataManager:
    dataset: Dataset = load_dataset(config.data.dataset, root=config.data.root, seed=config.seed,
                                    test_fraction=config.data.test_fraction, config=config.data.dataset_config)
    partition = PARTITIONERS[config.data.partitioner](dataset.y_train, config.num_clients, config.seed,
                                                      **config.data.partitioner_config)
    return DataManager(dataset, partition, client_test_fraction=config.data.client_test_fraction, seed=config.seed)


def setup(config: Config) -> dict[str, str]:
    """What every rank must have in common for the same bits: the configuration and the numerical libraries."""
    return {"configuration": config.digest(), **versions()}


def versions() -> dict[str, str]:
    """Versions of this package and of the libraries that compute, as far as installed."""
    found = {"python": platform.python_version()}
    for name in ("federation-hpc", "numpy", "torch", "scikit-learn", "h5py", "mpi4py", "msgspec"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _allocator(transport: Transport) -> Callable[[int], Any]:
    import numpy as np

    return lambda nbytes: transport.allocate((nbytes,), np.dtype(np.uint8))
