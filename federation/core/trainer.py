"""The trainer: the program that the server runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from federation.core.aggregator import Aggregator
from federation.core.model import Model
from federation.core.types import EvalResult, TrainResult, WeightsLike


class Proxy(Protocol):
    """A client as the server's program sees it."""

    @property
    def client_id(self) -> str:
        """The client's name, unique in the run."""
        ...


class Server(Protocol):
    """What a trainer needs of the node that it runs on."""

    async def wait_for_clients(self, count: int, timeout: float | None = None) -> None: ...
    async def broadcast_weights(self, weights: WeightsLike) -> None: ...
    def get_connected_clients(self) -> Sequence[Proxy]: ...
    async def collect_results(self, clients: Sequence[Proxy], method: str, config: Mapping[str, Any] | None = None,
                              ) -> Sequence[Any]: ...


class Trainer(ABC):
    """Runs the rounds. A subclass writes `run` with the four verbs below; they work in every mode.

    `config` is the `trainer_config` of the configuration. After `run`, `model` holds the result.
    """

    def __init__(self, server: Any, model: Model, aggregator: Aggregator, config: Any = None) -> None:
        self.server = server
        self.model = model
        self.aggregator = aggregator
        self.config = config

    @abstractmethod
    async def run(self) -> None:
        """Train until done."""

    async def wait_for_clients(self, count: int, timeout: float | None = None) -> None:
        """Wait until at least `count` clients are connected; RoundError after `timeout` seconds."""
        await self.server.wait_for_clients(count, timeout)

    async def broadcast_weights(self, weights: WeightsLike) -> None:
        """Give `weights` to every rank: what its clients start from until the next broadcast.

        From the first broadcast on, no rank joins any more.
        """
        await self.server.broadcast_weights(weights)

    def get_connected_clients(self) -> Sequence[Proxy]:
        """The connected clients, in an order that is the same in every mode."""
        clients: Sequence[Proxy] = self.server.get_connected_clients()
        return clients

    async def collect_results(self, clients: Sequence[Proxy], method: str, config: Mapping[str, Any] | None = None,
                              ) -> Sequence[TrainResult | EvalResult]:
        """Call `method` ("fit" or "evaluate") of each client's learner with `config`; results in the order of `clients`.

        Each call starts from the weights of the last broadcast. Results own their weights. Raises ClientError,
        with the client's name and traceback, when a client's code raises.
        """
        results: Sequence[TrainResult | EvalResult] = await self.server.collect_results(clients, method, config)
        return results
