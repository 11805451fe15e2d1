"""From a configuration to the objects of one rank. Every rank of a run builds the same ones from the same file.

The registry and the configuration end here: what is built takes plain arguments and works without them.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from federation.builtin.table import LEARNERS
from federation.config import Config, revealed
from federation.config_schema import plain
from federation.config_settings import setting_parameters
from federation.core.aggregator import Aggregator, MeanAggregator
from federation.core.learner import Context, Learner
from federation.core.model import Model
from federation.core.random import stream_seed
from federation.core.trainer import Trainer
from federation.data.cache import cache_folder
from federation.data.dataset import Dataset
from federation.data.load import clients_test_samples, column_of, load_dataset, load_partition
from federation.data.manager import DataManager
from federation.data.sampling import cohort_size_of
from federation.data.transforms import Transforms
from federation.errors import ConfigError, RoundError
from federation.infra.recorder import Recorder
from federation.infra.trace import Spans
from federation.node.client import ClientNode
from federation.node.host import ClientHost, allocator
from federation.node.open_server import OpenServerNode
from federation.node.proxy import partition_client
from federation.node.server import ServerNode
from federation.registry.registry import load_plugins, resolve
from node_comm import Transport
from node_comm.star import Star


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
        given = revealed(self.config.model_config)
        replaced = {name: value for name, value in given.items() if name in settings}
        if "seed" in inspect.signature(self.model).parameters:
            settings["seed"] = stream_seed(self.config.seed, "initialisation")
        model = self.model(**(settings | given))
        if dataset is not None and replaced:
            _check_sizes(model, dataset, replaced)
        return model

    def make_learner(self) -> Learner:
        """A learner with a model of its own."""
        return self.learner(model=self.make_model(), **revealed(self.config.learner_config))

    def make_host(self, transport: Transport, trains: bool = True) -> ClientHost:
        """The clients' host of one rank; its sums live in the transport's memory. One that `trains` has a learner."""
        learner = self.make_learner() if trains and self.data is not None else None
        return ClientHost(learner, self.data, seed=self.config.seed, allocate=allocator(transport),
                          aggregator=self.make_aggregator(), local_parameters=self.config.trainer_config.local_parameters,
                          spans=Spans(self.config.timer.trace))

    def make_aggregator(self) -> Aggregator:
        """An aggregator: the server's, or one that weighs updates on another rank."""
        return self.aggregator(**revealed(self.config.aggregator_config))

    def make_server(self, transport: Transport) -> ServerNode:
        """Rank 0's node."""
        config = self.config.trainer_config
        if isinstance(transport, Star):
            wanted = {self.aggregator.learner: "used"} if self.aggregator.learner else {}
            return OpenServerNode(transport=transport, host=self.make_host(transport),
                                  setup={**remote_setup(self.config, self), **wanted}, round_timeout=config.round_timeout,
                                  expected=self.config.num_clients)
        host = self.make_host(transport, trains=config.server_hosts_clients or transport.size == 1)
        return ServerNode(transport=transport, host=host, hosts_clients=config.server_hosts_clients, setup=setup(self.config),
                          placement=config.placement, round_timeout=config.round_timeout)

    def make_client(self, transport: Transport) -> ClientNode:
        """Any other rank's node."""
        return ClientNode({"node_id": f"rank_{transport.rank}"}, transport=transport, host=self.make_host(transport),
                          setup=setup(self.config), round_timeout=self.config.trainer_config.round_timeout)

    def make_remote_client(self, transport: Transport) -> ClientNode:
        """The node of one client of a network: a share of the partition, or the whole of data of its own."""
        client_id, name, host = self.config.client_id, client_name(self.config), self.make_host(transport)
        hosts = {}
        if self.data is None or host.learner is None:
            raise ConfigError("data.enabled: false: a client in mode client has its data from the configuration")
        if isinstance(client_id, int):
            hosts[name] = int(self.data.sizes[client_id])
        else:
            host.own[name] = host.learner
            host.learner.bind(self.data.client(0, 1), Context(name, 0, self.config.seed))
        ours = (self.config.components.learner, *self.learner.implements)
        learners = {wanted: "used" if wanted in ours else "not used" for wanted in LEARNERS.values()}
        return ClientNode({"node_id": name}, transport=transport, host=host,
                          setup={**remote_setup(self.config, self), **learners}, hosts=hosts,
                          patience=self.config.transport.patience)

    def make_trainer(self, server: ServerNode, recorder: Recorder) -> Trainer:
        """The trainer; of the services below, its constructor gets by name those that it asks for."""
        services: dict[str, Any] = {"seed": self.config.seed, "reduction": self.config.reduction,
                                    "on_divergence": self.config.on_divergence, "recorder": recorder}
        wanted = inspect.signature(self.trainer).parameters
        return self.trainer(server=server, model=self.make_model(),
                            aggregator=self.make_aggregator(),
                            config=self.config.trainer_config,
                            **{name: service for name, service in services.items() if name in wanted})


def _check_sizes(model: Model, dataset: Dataset, given: Mapping[str, Any]) -> None:
    """Raise ConfigError where sizes that are `given`, in place of the data's, make a model that cannot take these."""
    shape, classes = getattr(model, "input_shape", None), getattr(model, "num_classes", None)
    what = f"model_config: {', '.join(f'{name}: {value}' for name, value in given.items())}"
    advice = "leave it out, and it is taken from the data"
    if shape is not None and math.prod(shape) != math.prod(dataset.input_shape):
        raise ConfigError(f"{what}: the model is for samples of {math.prod(shape)} values, and those of {dataset.name} have "
                          f"{math.prod(dataset.input_shape)}; {advice}")
    if classes is not None and classes < (dataset.num_classes or math.inf):
        has = f"{dataset.num_classes} classes" if dataset.num_classes else "targets and no classes"
        raise ConfigError(f"{what}: the model is for {classes} classes, and {dataset.name} has {has}; {advice}")


def assemble(config: Config) -> Parts:
    """Import the components of a checked configuration, and load and partition the data.

    Raises ConfigError for a component that cannot be imported, DataError for data that cannot be had.
    """
    load_plugins(config.plugins)
    names = config.components
    parts = Parts(config, resolve(names.trainer, "trainer"), resolve(names.learner or "", "learner"),
                  resolve(names.aggregator, "aggregator"), resolve(names.model, "model"),
                  load_data(config) if config.data.enabled else None)
    trainer = config.trainer_config
    cohort = trainer.cohort_size or cohort_size_of(trainer.fraction or 1.0, config.num_clients)
    try:
        parts.make_aggregator().check_updates(cohort, f"a cohort of {cohort} clients")
    except RoundError as error:
        raise ConfigError(f"components.aggregator: {error}") from None
    return parts


def load_data(config: Config) -> DataManager:
    """The data set and its partition: the same on every rank. Raises DataError, and ConfigError where clients are to be
    measured and have no samples for it."""
    data, seed, cache = config.data, config.seed, cache_folder(config.data.cache)
    dataset = load_dataset(data.dataset, root=data.root, seed=seed, test_fraction=data.test_fraction,
                           validation_fraction=data.validation_fraction, config=revealed(data.dataset_config),
                           cache=cache)
    settings = revealed(data.partitioner_config)
    partition = load_partition(data.partitioner, dataset, config.num_clients, seed=seed, config=settings, cache=cache)
    test_partition, evaluate = None, config.trainer_config.evaluate
    column = column_of(data.partitioner, settings)
    if column is not None and not data.client_test_fraction:
        test_partition = clients_test_samples(dataset, partition, column)
        if test_partition is None and evaluate in ("clients", "both"):
            raise ConfigError(f"trainer_config.evaluate: {evaluate} needs test data on the clients, and {dataset.name} "
                              "has none of its users: set data.client_test_fraction, such as 0.2, or evaluate: server")
    transforms = Transforms(dataset.input_shape, scale=dataset.scale, num_clients=config.num_clients, seed=seed,
                            **msgspec.structs.asdict(data.transforms))
    manager = DataManager(dataset, partition, data.client_test_fraction, seed, transforms=transforms,
                          test_partition=test_partition, client_validation_fraction=data.client_validation_fraction)
    has_own = config.mode in ("server", "client")  # clients of a network may have other data than the partition
    if evaluate in ("clients", "both") and not (has_own or manager.test_sizes.any() or manager.validation_sizes.any()):
        raise ConfigError(f"trainer_config.evaluate: {evaluate} needs test data on the clients, and none of the "
                          f"{config.num_clients} clients has any: the largest has {partition.sizes.max()} samples; set a larger "
                          "data.client_test_fraction, use fewer clients, or evaluate: server")
    return manager


def client_name(config: Config) -> str:
    """The name under which a client of a network comes."""
    return partition_client(config.client_id) if isinstance(config.client_id, int) else str(config.client_id)


def remote_setup(config: Config, parts: Parts) -> dict[str, str]:
    """What a server and a client of a network must have in common: the seed of all draws, the model's layout, the arrays that
    stay with clients, and an aggregator that weighs updates, as it does so where they are trained; and the number of clients, where
    it says what a share of the partition is."""
    layout, aggregator, rule = parts.make_model().weights.layout, parts.make_aggregator(), "none that weighs updates"
    if isinstance(aggregator, MeanAggregator) and aggregator.weighs:
        defaults = {name: parameter.default for name, (parameter, _) in setting_parameters(parts.aggregator).items()}
        settings = sorted((defaults | plain(config.aggregator_config)).items())
        weighing = {name: value for name, value in settings if name not in aggregator.server_settings}
        rule = f"{type(aggregator).__qualname__} with {weighing}"
    shares = {} if isinstance(config.client_id, str) else {"num_clients": str(config.num_clients)}
    return {**shares, "seed": str(config.seed), "model": str(layout.to_dict()),
            "local_parameters": ", ".join(config.trainer_config.local_parameters) or "none",
            "aggregator": rule}


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
