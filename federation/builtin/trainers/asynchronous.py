"""Asynchronous training: each client starts from the weights of the moment, and counts when it is done."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np

from federation.builtin.trainers.cohorts import latency_of
from federation.builtin.trainers.evaluation import evaluate, is_due
from federation.config import TrainerConfig, trainer_config
from federation.core.aggregator import Aggregator
from federation.core.async_aggregator import AsyncAggregator, LateUpdate, staleness_of
from federation.core.metrics import MetricSum
from federation.core.model import Model
from federation.core.random import stream
from federation.core.trainer import Trainer
from federation.core.weights import Weights
from federation.data.draws import below
from federation.data.latency import Latency
from federation.errors import ConfigError, Diverged, RoundError
from federation.infra.checkpoint import Snapshot
from federation.infra.logger import round_number
from federation.infra.recorder import Recorder
from federation.infra.timer import Timer
from federation.node.jobs import Done, Job, Jobs
from federation.node.proxy import ClientProxy
from federation.node.server import ServerNode

logger = logging.getLogger(__name__)

#: Settings of synchronous rounds, which have no meaning here.
_SYNCHRONOUS = ("cohort_size", "fraction", "over_select", "deadline", "local_parameters")


@dataclass(frozen=True)
class Flight:
    """A client in training: where it started from, and when it will be done by the virtual clock."""

    number: int
    index: int
    client: ClientProxy
    version: int
    finish: float
    start: Weights


@final
class AsyncTrainer(Trainer):
    """Keeps `config.concurrency` clients in training until the global weights have had `config.max_rounds` versions.

    The aggregator (FedAsync, FedBuff) takes updates one at a time; each change of the weights is a version, recorded as a
    round. By the virtual clock, clients finish in the order that `config.latency` says, so that a run is the same bits on
    any number of ranks; by the real clock, in the order of arrival. Clients are drawn uniformly among those that are not
    in training. A client that fails or has no samples counts for nothing, and another takes its place.

    The start weights of clients in training are kept, one copy for each version that any of them started from.
    Raises ConfigError for a synchronous aggregator, and for settings of synchronous rounds.
    """

    def __init__(self, server: ServerNode, model: Model, aggregator: Aggregator,
                 config: TrainerConfig | Mapping[str, Any] | None = None, *, seed: int = 0,
                 on_divergence: Literal["drop", "raise"] = "drop", recorder: Recorder | None = None) -> None:
        super().__init__(server, model, aggregator, config)
        self.server: ServerNode = server
        self.config: TrainerConfig = trainer_config(config)
        self.aggregator: AsyncAggregator = _checked(self.config, aggregator)
        self.weights = Weights.of(model.weights)
        self.round = 0
        self.seed = seed
        self.on_divergence = on_divergence
        self.recorder = recorder or Recorder()
        self.timer = Timer(spans=server.host.spans)
        self._latency = latency_of(self.config.latency) or Latency()
        self._now = 0.0
        self._dispatched = 0
        self._flights: dict[int, Flight] = {}
        self._results: dict[int, asyncio.Future[Done]] = {}
        self._since = _Since()
        self._at_version = False
        self._unrecorded = False

    async def run(self) -> None:
        """All versions that are left. Raises RoundError where client after client counts for nothing; the last version stands.

        Raises OutOfTime, after a checkpoint, where the job has no time for another version.
        """
        await self.wait_for_clients(self.config.min_clients, self.config.connect_timeout)
        await self.broadcast_weights(self.weights)
        if self._unrecorded:
            await self._finish_version()
        async with Jobs(self.server) as jobs:
            for flight in self._flights.values():
                self._send(jobs, flight)
            while self.round < self.config.max_rounds:
                self.recorder.check_time()
                round_number.set(self.round + 1)
                with self.timer.phase("fit"):
                    self._dispatch(jobs)
                    flight, done = await self._next()
                with self.timer.phase("step"):
                    is_new = self._receive(flight, done)
                if is_new:
                    await self._finish_version()
        self.model.set_weights(self.weights)

    def _dispatch(self, jobs: Jobs) -> None:
        """Send clients off until `concurrency` are in training."""
        self._at_version = False
        eligible = np.flatnonzero(self.server.clients.sizes)
        if not len(eligible):
            raise RoundError("no client has samples: check the partition")
        busy = {flight.index for flight in self._flights.values()}
        while len(self._flights) < min(self.config.concurrency or 10, len(eligible)):
            self._dispatched += 1
            generator = stream(self.seed, "dispatch", self._dispatched)
            index = int(eligible[below(generator, len(eligible), 1)[0]])
            while index in busy:
                index = int(eligible[below(generator, len(eligible), 1)[0]])
            busy.add(index)
            client = self.server.clients[index]
            seconds = self._latency.seconds(self.seed, client.client_id, self._dispatched, client.num_samples)
            flight = Flight(self._dispatched, index, client, self.round, self._now + seconds, self._start())
            self._flights[flight.number] = flight
            self._since.sent += 1
            self._send(jobs, flight)

    def _start(self) -> Weights:
        """A copy of the weights of this version, one for all that start from it."""
        for flight in self._flights.values():
            if flight.version == self.round:
                return flight.start
        return self.weights.copy()

    def _send(self, jobs: Jobs, flight: Flight) -> None:
        self._results[flight.number] = jobs.submit(Job(flight.number, flight.client, flight.start, flight.finish))

    async def _next(self) -> tuple[Flight, Done]:
        """The client that is done next, by the clock that counts."""
        if self.config.clock == "virtual":
            number = min(self._flights, key=lambda number: (self._flights[number].finish, number))
            await self.server.node.attend(self._results[number])
        else:
            await self.server.node.attend(asyncio.wait(self._results.values(), return_when=asyncio.FIRST_COMPLETED))
            number = next(number for number, result in self._results.items() if result.done())
        done = self._results.pop(number).result()  # of a rank that was lost there is none: its client is sent once more
        flight = self._flights.pop(number)
        self._now = max(self._now, flight.finish)
        return flight, done

    def _receive(self, flight: Flight, done: Done) -> bool:
        """Give an update to the aggregator; whether the weights are a new version now."""
        name, report, since = flight.client.client_id, done.report, self._since
        if report.problem is not None:
            logger.warning("%s %s and contributes nothing: %s", name, report.problem.kind, report.problem.details)
            if report.problem.kind == "diverged" and self.on_divergence == "raise":
                raise Diverged(name, report.problem.parameter)
            since.failures[name] = f"{report.problem.kind}: {report.problem.reason}"
        if report.problem is not None or not report.num_samples:
            since.in_a_row += 1
            if since.in_a_row > len(self.server.clients) + len(self._flights):
                raise RoundError(f"{since.in_a_row} clients failed or had no samples, one after the other, the last of them "
                                 f"{name}; the global weights stay at version {self.round}")
            return False
        assert done.weights is not None
        staleness = staleness_of(self.round, flight.version, name)
        is_new = self.aggregator.receive(
            self.weights, LateUpdate(name, done.weights, flight.start, report.num_samples, staleness))
        since.add(flight.client, report.num_samples, report.metrics, staleness)
        if is_new and not self.weights.all_finite():
            raise RoundError(f"version {self.round + 1}: {type(self.aggregator).__name__} made NaN or infinity of the "
                             "global weights; resume from the last checkpoint")
        self.round += is_new
        self._unrecorded = is_new
        return is_new

    async def _finish_version(self) -> None:
        """Evaluate, record and save a new version, where that is due."""
        with self.timer.phase("evaluate"):
            metrics: dict[str, float] = {}
            if is_due(self.config, self.round):
                await self.broadcast_weights(self.weights)
                metrics = await evaluate(self.server, self.config, self.round, self._since.clients)
        self.recorder.record(self._row(metrics))
        self._unrecorded = False
        self._since = _Since()
        self._at_version = True
        with self.timer.phase("checkpoint"):
            if self.recorder.is_due(self.round, last=self.round == self.config.max_rounds):
                snapshot = self.snapshot()
                assert snapshot is not None
                self.recorder.checkpoint(snapshot)

    def _row(self, metrics: Mapping[str, float]) -> dict[str, Any]:
        """The version's record: of all that was sent and received since the one before."""
        since, nbytes = self._since, sum(array.nbytes for array in self.weights)
        training = {key if key.startswith("train_") else f"train_{key}": value for key, value in since.metrics.means().items()}
        return {"round": self.round, "cohort_size": len(since.clients), "clients_failed": len(since.failures),
                **({"failures": since.failures} if since.failures else {}),
                **({"virtual_seconds": self._now} if self.config.clock == "virtual" else {}),
                "staleness": sum(since.staleness) / len(since.staleness), "staleness_max": max(since.staleness),
                "num_samples": since.num_samples, **training, **metrics, "seconds": self.timer.take(),
                "bytes_down": nbytes * since.sent, "bytes_up": nbytes * len(since.clients)}

    def snapshot(self) -> Snapshot | None:
        """All that the next version depends on, clients in training included; None between two versions."""
        if not self._at_version:
            return None
        flights = [{"number": flight.number, "index": flight.index, "version": flight.version, "finish": flight.finish}
                   for flight in self._flights.values()]
        starts = {flight.version: flight.start for flight in self._flights.values()}
        return Snapshot(round=self.round, weights=self.weights,
                        server={"aggregator": self.aggregator.state(), "now": self._now, "dispatched": self._dispatched,
                                "flights": flights, "starts": starts})

    def recover(self) -> bool:
        """Make ready to `run` again, in a world that has lost ranks: what was in training is sent once more."""
        self._results.clear()
        return True

    def restore(self, snapshot: Snapshot) -> None:
        """Go on after the version of `snapshot`: clients that were in training start again from where they started."""
        self.weights.copy_from(snapshot.weights, who="the checkpoint")
        self.aggregator.load(snapshot.server["aggregator"])
        self.round = snapshot.round
        self._now, self._dispatched = snapshot.server["now"], snapshot.server["dispatched"]
        starts = {}
        for version, weights in snapshot.server["starts"].items():
            starts[version] = Weights.zeros(self.weights.layout)
            starts[version].copy_from(weights, who="the checkpoint")
        for given in snapshot.server["flights"]:
            flight = Flight(given["number"], given["index"], self.server.clients[given["index"]], given["version"],
                            given["finish"], starts[given["version"]])
            self._flights[flight.number] = flight


class _Since:
    """What has happened since the last version."""

    def __init__(self) -> None:
        self.clients: list[ClientProxy] = []
        self.staleness: list[int] = []
        self.failures: dict[str, str] = {}
        self.metrics = MetricSum()
        self.num_samples = 0
        self.sent = 0
        self.in_a_row = 0  # clients that counted for nothing, one after the other

    def add(self, client: ClientProxy, num_samples: int, metrics: Mapping[str, Any], staleness: int) -> None:
        self.clients.append(client)
        self.staleness.append(staleness)
        self.metrics.add(metrics, num_samples)
        self.num_samples += num_samples
        self.in_a_row = 0


def _checked(config: TrainerConfig, aggregator: Aggregator) -> AsyncAggregator:
    problems = [f"trainer_config.{name}: has no meaning in asynchronous training; leave it out" for name in _SYNCHRONOUS
                if getattr(config, name)]
    if config.compression.codec != "none":
        problems.append(f"trainer_config.compression: {config.compression.codec} is for rounds; leave it out")
    if config.sampling != "uniform":
        problems.append(f"trainer_config.sampling: {config.sampling} is for rounds; asynchronous training draws uniformly")
    if not isinstance(aggregator, AsyncAggregator):
        problems.append(f"components.aggregator: {type(aggregator).__name__} needs whole rounds; federated.trainer.async "
                        "goes with federated.aggregator.fedasync or federated.aggregator.fedbuff")
    if problems or not isinstance(aggregator, AsyncAggregator):
        raise ConfigError(problems)
    return aggregator
