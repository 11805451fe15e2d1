"""Synchronous rounds: draw a cohort, train it, aggregate, evaluate.

A round is evaluated, recorded and saved while the next one's cohort trains: each rank evaluates its share, and goes on to train
without waiting for the others.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Any, Literal

from federation.builtin.trainers.cohorts import Cohorts
from federation.builtin.trainers.evaluation import begin_evaluation, is_due
from federation.config import TrainerConfig, trainer_config
from federation.core.aggregator import Aggregator, MatrixAggregator, MeanAggregator, RoundStats
from federation.core.async_aggregator import AsyncAggregator
from federation.core.compression import Compression, Packing
from federation.core.model import Model
from federation.core.personal import LocalParameters
from federation.core.trainer import Trainer
from federation.core.types import ClientUpdate
from federation.core.weights import Weights
from federation.errors import ConfigError, RoundError
from federation.infra.checkpoint import Snapshot
from federation.infra.logger import round_number
from federation.infra.recorder import Recorder
from federation.infra.timer import Balance, Timer
from federation.node.round import Fitted, Plan, check_problems, check_updates
from federation.node.server import ServerNode
from node_comm.node import give_up

#: The key of a checkpoint's server state under which the arrays are that are shared beside the model.
SHARED = "shared"


class DefaultTrainer(Trainer):
    """Trains `model` for `config.max_rounds` rounds.

    A round is a transaction: `weights`, `round` and the aggregator's state change together, in `commit`, or not at
    all. `fit_config` goes to every client's `fit`. `recorder` keeps metrics and checkpoints; without one nothing is
    written.
    """

    def __init__(self, server: ServerNode, model: Model, aggregator: Aggregator,
                 config: TrainerConfig | Mapping[str, Any] | None = None, *,
                 fit_config: Mapping[str, Any] | None = None, seed: int = 0,
                 reduction: Literal["exact", "float32", "float64"] = "exact",
                 on_divergence: Literal["drop", "raise"] = "drop", recorder: Recorder | None = None) -> None:
        super().__init__(server, model, aggregator, config)
        self.server: ServerNode = server
        self.config: TrainerConfig = trainer_config(config)
        if isinstance(aggregator, AsyncAggregator):
            raise ConfigError(f"components.aggregator: {type(aggregator).__name__} takes updates as they come, in no round; "
                              "it goes with components.trainer: federated.trainer.async")
        if self.config.concurrency is not None:
            raise ConfigError("trainer_config.concurrency: is for federated.trainer.async; rounds train cohort_size clients")
        self.weights, self._num_model = _begun(server, model, aggregator)
        self._peaks: list[float] | None = None  # those of the weights
        self.round = 0
        self.seed = seed
        self.reduction = reduction
        self.on_divergence = on_divergence
        self.recorder = recorder or Recorder()
        self.timer = Timer(spans=server.host.spans)
        self.balance = Balance()
        self._cohorts = Cohorts(self.config, seed)
        self._compression = Compression(self.config.compression.codec, self.config.compression.fraction)
        self._fit_config = dict(fit_config or {})
        self._spare = server.new_weights(self.weights.layout)
        self._update_bytes = sum(array.nbytes for array in self.weights)
        if self._compression:
            local = LocalParameters(self.config.local_parameters, self.weights.head(self._num_model).layout)
            self._update_bytes = Packing(self._compression, self.weights, local.indices).nbytes
        self._client_states: tuple[int, Mapping[str, Weights]] = (0, {})
        self._lent: Weights | None = None  # those that a checkpoint may still be written from
        self._unrecorded: Fitted | None = None  # the last round, from its commit until it is recorded

    async def run(self) -> None:
        """All rounds that are left. Raises RoundError when too few clients succeed; the last commit stands then.

        Raises OutOfTime, after a checkpoint, where the job has no time for another round.
        """
        await self.wait_for_clients(self.config.min_clients, self.config.connect_timeout)
        await self.server.broadcast_weights(self.weights, self._num_model)
        if self._unrecorded is not None:
            await self._conclude(await self._evaluation())
        for number in range(self.round + 1, self.config.max_rounds + 1):
            self.recorder.check_time()
            fitted = await self._fit(number)
            if self._lent is self._spare:  # a checkpoint of the round before the last may not be written yet
                with self.timer.phase("checkpoint"):
                    self.recorder.settle()
                self._lent = None
            with self.timer.phase("reduce"):
                gathered = await self.gather(fitted)
                # Before the round commits: a client that is lost takes nothing with it that the checkpoint needs.
                states = await self.server.collect_states(coming=True) if self._is_due(number) else None
            with self.timer.phase("step"):
                self.commit(number, gathered, fitted.stats(len(self.server.clients)))
                if states is not None:
                    self._client_states = number, states
            self._unrecorded = fitted
            is_concluded_later = self._is_concluded_later(number)
            with self.timer.phase("broadcast"):
                await self.server.begin_broadcast(self.weights, self._num_model)
                if not is_concluded_later:
                    await self.server.weights_arrived()
            if not is_concluded_later:
                await self._conclude(await self._evaluation())
        self.model.set_weights(self.weights.head(self._num_model))

    async def _fit(self, number: int) -> Fitted:
        """Have round `number` trained; where the round before is not concluded yet, that is done meanwhile, and comes first.

        An error in one round does not keep the one before from its record and its checkpoint.
        """
        evaluation = None if self._unrecorded is None else await self._evaluation()
        begun = asyncio.Event()
        training = asyncio.create_task(self._train(number, begun))
        try:
            if evaluation is not None:
                await self._conclude(evaluation, begun)
            round_number.set(number)
            with self.timer.phase("fit"):
                return await training
        finally:
            await give_up(training)

    async def _train(self, number: int, begun: asyncio.Event) -> Fitted:
        """Have round `number` trained; sets `begun` once the orders are out, or it has failed before."""
        round_number.set(number)
        try:
            training = await self.server.begin_fit(self.plan(number))
        finally:
            begun.set()
        if number < self.config.max_rounds:
            self._cohorts.prepare(self.server.clients, number + 1)
        fitted = await training
        check_problems(fitted, self.config.min_clients, self.on_divergence)
        check_updates(fitted, self.aggregator)
        return fitted

    def _is_concluded_later(self, number: int) -> bool:
        """Whether round `number`, which has been committed, is concluded while the next one trains.

        Over a network, whoever is lost while it evaluates is not asked to train: clients are done with the one first.
        """
        config = self.config
        is_worth_it = is_due(config, number) or len(self.server.ranks) > 1
        return (number < config.max_rounds and is_worth_it and self.recorder.has_time()
                and (config.evaluate == "server" or not self.server.is_open))

    async def _evaluation(self) -> asyncio.Task[dict[str, float]]:
        """Order the evaluation of the last commit."""
        assert self._unrecorded is not None
        with self.timer.phase("evaluate"):
            return await begin_evaluation(self.server, self.config, self.round, self._unrecorded.plan.cohort)

    async def _conclude(self, evaluation: asyncio.Task[dict[str, float]], begun: asyncio.Event | None = None) -> None:
        """Wait for what `evaluation` has found of the last commit, record and save it.

        `begun`: tells that ranks have their orders to train meanwhile; None where they do not train.
        """
        assert self._unrecorded is not None
        with self.timer.phase("evaluate"):
            metrics = await evaluation
            if begun is not None:
                await begun.wait()  # the disk blocks this process, and no rank is to wait for it
        self.recorder.record(self.row(self._unrecorded, metrics))
        self._unrecorded = None
        with self.timer.phase("checkpoint"):
            # Ranks that train are asked for nothing: a job whose time is short since just now saves the round that they train.
            if begun is None or self._kept() is not None:
                await self.checkpoint(self.round)

    def plan(self, number: int) -> Plan:
        """Round `number`: a cohort drawn from (seed, round) alone, and what the aggregator needs of it."""
        cohort = self._cohorts.draw(self.server.clients, number)
        aggregator = self.aggregator
        mean = aggregator if isinstance(aggregator, MeanAggregator) else None
        config = dict(self._fit_config)
        if aggregator.metrics_needed:
            config["metrics"] = list(aggregator.metrics_needed)
        return Plan(number, cohort.clients, config, aggregator.needs, mean.weighting if mean else "samples",
                    mean.weighs if mean else False, self.reduction, cohort.deadline, cohort.late,
                    cohort.virtual_seconds, self._compression, self._peaks)

    async def gather(self, fitted: Fitted) -> Weights | list[ClientUpdate]:
        """What the aggregator needs of the clients' updates: their mean, what it makes of the matrix, or every row."""
        if isinstance(self.aggregator, MatrixAggregator):
            await self.aggregator.step(await self.server.matrix(fitted), self._spare)
            return self._spare
        if isinstance(self.aggregator, MeanAggregator):
            divisor, stats = self.aggregator.divisor, fitted.stats(len(self.server.clients))
            await self.server.mean(fitted, self._spare, lambda total: divisor(total, stats))
            return self._spare
        return await self.server.updates(fitted)

    def commit(self, number: int, gathered: Weights | list[ClientUpdate], stats: RoundStats) -> None:
        """Turn what was gathered into the new global weights. No await in here: a round commits whole or not at all."""
        if not isinstance(gathered, Weights):
            aggregated = self.aggregator.aggregate(gathered, self.weights.read_only())
            self._spare.copy_from(aggregated, who="the aggregator")
        elif isinstance(self.aggregator, MeanAggregator):
            self.aggregator.step(self.weights, gathered, stats)
        peaks = self._spare.peaks()
        if not all(map(math.isfinite, peaks)):
            raise RoundError(f"round {number}: {type(self.aggregator).__name__} returned NaN or infinity; the global "
                             "weights stay as they were")
        self.weights, self._spare, self._peaks = self._spare, self.weights, peaks
        self.round = number

    def row(self, fitted: Fitted, metrics: Mapping[str, float]) -> dict[str, Any]:
        """The round's record. All but `seconds` is the same in every mode; bytes are those of the cohort's weights, and of its
        updates as they are packed."""
        nbytes = sum(array.nbytes for array in self.weights)
        training = {key if key.startswith("train_") else f"train_{key}": value
                    for key, value in fitted.metrics.means().items()}
        failures = {problem.client_id: f"{problem.kind}: {problem.reason}" for problem in fitted.problems}
        return {"round": self.round, "cohort_size": len(fitted.plan.cohort), "clients_failed": len(failures),
                **({"failures": failures} if failures else {}), **self._lateness(fitted),
                "num_samples": fitted.num_samples, **training, **metrics, "seconds": self._seconds(fitted),
                "bytes_down": nbytes * (len(fitted.plan.cohort) + fitted.plan.late),
                "bytes_up": self._update_bytes * len(fitted.outcomes)}

    def _lateness(self, fitted: Fitted) -> dict[str, float]:
        """What is recorded of rounds that do not wait for everyone, or that are timed by the virtual clock."""
        plan = fitted.plan
        if plan.virtual_seconds is not None:
            return {"clients_late": plan.late, "virtual_seconds": plan.virtual_seconds}
        return {} if plan.deadline is None else {"clients_late": len(fitted.late)}

    def _seconds(self, fitted: Fitted) -> dict[str, float]:
        """Seconds by phase on this rank, and the longest and the mean fit over the ranks that trained."""
        ranks = set(fitted.ranks.values())
        trained = {rank: seconds for rank, seconds in fitted.seconds.items() if rank in ranks}
        self.balance.add(trained)
        return {**self.timer.take(), "fit_max": max(trained.values()), "fit_mean": sum(trained.values()) / len(trained)}

    async def checkpoint(self, number: int) -> None:
        """Save a checkpoint if one is due, the state of clients on other ranks included."""
        if self._is_due(number):
            if self._client_states[0] != number:
                self._client_states = number, await self.server.collect_states()
            snapshot = self.snapshot()
            assert snapshot is not None
            self.recorder.checkpoint(snapshot, lends_weights=True)
            self._lent = self.weights

    def _is_due(self, number: int) -> bool:
        return self.recorder.is_due(number, last=number == self.config.max_rounds)

    def snapshot(self) -> Snapshot | None:
        """All that the next round depends on, as of the last commit. Weights and state are live: copy to keep.

        None where clients keep state on other ranks that has not been fetched since: the last checkpoint stands then.
        """
        states = self._kept()
        if states is None:
            return None
        server = self.aggregator.state()
        if self._num_model < len(self.weights):
            server = {**server, SHARED: self.weights.tail(self._num_model)}
        return Snapshot(round=self.round, weights=self.weights.head(self._num_model), server=server, clients=states)

    def recover(self) -> bool:
        """Make ready to `run` again from the last commit, in a world that has lost ranks.

        False where what clients keep is lost with them: the last checkpoint has to stand then.
        """
        if self.server.is_open:  # clients are there, with what they keep as of the last commit
            self.server.states.forget_proposals()
            return True
        states = self._kept()
        if states is None:
            return False
        self.server.states.adopt(dict(states))
        return True

    def _kept(self) -> Mapping[str, Weights] | None:
        """What clients keep as of the last commit, where that is known here."""
        collected, states = self._client_states
        return states if collected == self.round else self.server.states.whole()

    def restore(self, snapshot: Snapshot) -> None:
        """Go on after the round of `snapshot`; UpdateError when its weights do not fit this model."""
        server = dict(snapshot.server)
        self.weights.head(self._num_model).copy_from(snapshot.weights, who="the checkpoint")
        if self._num_model < len(self.weights):
            self.weights.tail(self._num_model).copy_from(server.pop(SHARED), who="the checkpoint")
        self._peaks = None
        self.aggregator.load(server)
        self.server.states.adopt(snapshot.clients)
        self.round = snapshot.round


def _begun(server: ServerNode, model: Model, aggregator: Aggregator) -> tuple[Weights, int]:
    """The model's weights, then what the aggregator shares beside them, zero at first; and the number of the former."""
    own = model.weights
    shared = aggregator.shared(own.layout)
    weights = server.new_weights(own.layout if shared is None else own.layout.followed_by(shared))
    weights.head(len(own)).copy_from(own)
    return weights, len(own)
