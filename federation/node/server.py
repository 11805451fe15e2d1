"""Rank 0: knows who takes part, gives orders to the ranks, and brings their answers together.

It knows nothing of rounds as a whole; a trainer puts these verbs in order:

    await server.broadcast_weights(weights)        one broadcast
    fitted = await server.fit(plan)                one order to each rank, one report back
    await server.mean(fitted, out)                 one reduction    (or: updates = await server.updates(fitted), or the
                                                   verbs of a DistributedMatrix(server, fitted))
    await server.evaluate(round, ...)

What ranks are ordered they do one after the other, so an order may go out before the reports of the one before are in:
`begin_evaluation` returns once its orders are out, and a `fit` may follow; `begin_fit` does the same for those to train,
and `begin_broadcast` for the weights.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

import node_comm
from federation.core.aggregator import count_of
from federation.core.matrix import Matrix
from federation.core.types import ClientUpdate, EvalResult, TrainResult, WeightsLike
from federation.core.updates import UpdateSum
from federation.core.weights import Layout, Weights
from federation.data.manager import Part
from federation.errors import ClientError, FederationError, RoundError
from federation.infra.threads import apply_threads
from federation.infra.trace import Span
from federation.node.client_state import unpacked
from federation.node.compute import compute, doing
from federation.node.delivery import Delivery, is_direct
from federation.node.handout import Handout
from federation.node.host import ClientHost, allocator
from federation.node.matrix import DistributedMatrix
from federation.node.members import Members
from federation.node.orders import Orders
from federation.node.placement import Placement, Policy
from federation.node.protocol import (
    MESSAGES,
    Call,
    ClientState,
    Collect,
    Evaluate,
    EvaluateReport,
    FetchState,
    FetchUpdate,
    Fit,
    FitReport,
    Hello,
    Leave,
    Result,
    Shutdown,
    Update,
    WeightsFollow,
)
from federation.node.proxy import ClientProxy, ClientTable
from federation.node.round import Evaluated, Fitted, Plan, no_samples
from federation.node.settings import NodeSettings
from federation.node.state_keeper import StateKeeper
from node_comm import CommError, Transport
from node_comm.message import Failure, Message
from node_comm.node import Incoming, Lost, Node, RemoteFailure, give_up, together

logger = logging.getLogger(__name__)

FAREWELL = 5.0  #: seconds that a rank is given to end


class ServerNode:
    """The server's node, always rank 0.

    In a program of one's own: `config` is `node_id`, `transport: {mode: memory|mpi}` and `threads` (compute
    threads of this process, 1 unless given: other numbers may round differently); `start` opens the world.
    The engine gives a connected `transport`, a `host` (its data say who is in the shared partition), whether this
    rank `hosts_clients` beside the others (where there is no other it does), and `setup`, which every rank's must equal.
    """

    def __init__(self, config: Mapping[str, Any] | None = None, *, transport: Transport | None = None,
                 host: ClientHost | None = None, hosts_clients: bool = False, setup: Mapping[str, str] | None = None,
                 placement: Policy = "balanced", round_timeout: float | None = None) -> None:
        settings = NodeSettings.of(config, "server")
        self.node_id = settings.node_id
        self._mode = settings.mode
        self._threads = settings.threads if host is None else None  # the engine fixes its threads itself
        self.host = host or ClientHost()
        sizes = self.host.data.sizes if self.host.data is not None else None
        self.members = Members(self.node_id, ClientTable(sizes), setup or {}, hosts_clients)
        self.round_timeout = round_timeout
        self.placement = Placement(placement)
        self._transport = transport
        self._orders: Orders | None = None
        self._listening: asyncio.Task[None] | None = None
        self._sums: dict[int, np.ndarray] = {}  # room for those of other ranks
        self._round = 0
        self._delivery = Delivery()
        #: Gets the spans of each rank, where a trace is wanted.
        self.trace: Callable[[int, Sequence[Span]], None] | None = None
        self.states = StateKeeper(self.host.states)

    @property
    def orders(self) -> Orders:
        """What gives the ranks orders; raises before `start`."""
        if self._orders is None:
            raise FederationError("the server is not running: call start() first")
        return self._orders

    @property
    def node(self) -> Node:
        """The node below; raises before `start`."""
        return self.orders.node

    @property
    def clients(self) -> ClientTable:
        """All clients that can be asked to train."""
        return self.members.clients

    @property
    def ranks(self) -> list[int]:
        """This rank, and all that have registered."""
        return [0, *self.members.ranks]

    async def start(self) -> None:
        """Open the world (or take the transport given) and register who says hello."""
        if self._threads is not None:
            apply_threads(self._threads)
        if self._transport is None:
            self._transport = node_comm.connect(self._mode, name=self.node_id, serve=True)
        node = Node(self._transport, MESSAGES)
        self._orders = self._orders_over(node)
        await node.start()
        self._listening = asyncio.create_task(self._listen(node), name=f"{self.node_id} listening")

    async def stop(self, reason: str = "the run is over") -> None:
        """Tell every rank that the run is over, wait for them a little, and close."""
        if self._orders is None or self._listening is None:
            return
        node, listening, self._orders, self._listening = self._orders.node, self._listening, None, None
        await _hear_no_more(listening)  # who leaves before the others have heard is no loss
        farewells = {rank: node.request(rank, Shutdown(reason=reason), timeout=FAREWELL) for rank in self.members.ranks}
        for rank, answer in zip(farewells, await asyncio.gather(*farewells.values(), return_exceptions=True), strict=True):
            if isinstance(answer, CommError):
                logger.debug("rank %d did not take its leave: %s", rank, answer)
        await node.stop()
        await node.transport.finish()

    async def recover(self) -> None:
        """Go on in the world that comes after the one that has lost ranks; those that are left register anew.

        What clients keep is not known any more: `states.adopt` says what it was. Raises Disconnected where there is no
        such world, RoundError where no rank is left that trains, or where this one is not done with a client of its own.
        """
        transport = self._transport
        assert transport is not None
        self.host.stopping.set()
        if self._orders is not None and self._listening is not None:
            node, listening, self._orders, self._listening = self._orders.node, self._listening, None, None
            await _hear_no_more(listening)
            await node.stop()
        for rank in self.members.ranks:
            self.members.remove(rank)
        self._delivery = Delivery()
        self._transport = await transport.recover()
        if self._transport.size == 1 and not self.members.hosts_clients:
            raise RoundError("every rank that trains clients is lost")
        try:
            async with asyncio.timeout(self.round_timeout):
                await compute(self.host.forget, allocator(self._transport))  # once the client that is in training is done
        except TimeoutError:
            raise RoundError(f"rank 0 took longer than round_timeout={self.round_timeout:g} s for the client that it trained "
                             "when ranks were lost") from None
        self.host.stopping.clear()
        await self.start()

    # -- what a trainer uses -------------------------------------------------------------------------------------

    async def wait_for_clients(self, count: int, timeout: float | None = None) -> None:
        """Wait until every rank has registered and at least `count` clients are known.

        Says every 30 s what is missing; TooFewClients after `timeout` seconds (None: wait for ever).
        """
        await self.members.wait_for(self.node, count, timeout)

    def get_connected_clients(self) -> list[ClientProxy]:
        """All clients, in the table's order."""
        return [self.clients[index] for index in range(len(self.clients))]

    def new_weights(self, layout: Layout) -> Weights:
        """Weights, all zero, in memory that a broadcast moves with fewest copies."""
        return Weights.zeros(layout, self.host.allocate)

    async def broadcast_weights(self, weights: WeightsLike, num_model: int | None = None) -> None:
        """Give `weights` to every rank, in one broadcast: what clients start from until the next one.

        The first `num_model` arrays (all, unless given) are the model's; the others are shared beside it. What clients
        proposed to keep in the last round becomes their state.
        `weights` are borrowed when they are a Weights: clients of this machine read them where they are, so they must not change
        before the next broadcast.
        """
        await self.begin_broadcast(weights, num_model)
        await self.weights_arrived()

    async def begin_broadcast(self, weights: WeightsLike, num_model: int | None = None) -> None:
        """Do what `broadcast_weights` does, and return once orders may follow, which ranks obey with the new weights."""
        if not isinstance(weights, Weights):
            weights = self._named(weights)
        num_model = len(weights) if num_model is None else num_model
        proposed = self.states.proposed
        self.states.commit()
        self.host.start_from(weights, num_model)
        await self._deliver(WeightsFollow(layout=weights.layout.to_dict(), num_model=num_model), weights, proposed)

    async def weights_arrived(self) -> None:
        """Wait until every rank has the weights of `begin_broadcast`, or has been told where they are."""
        await self._delivery.arrived()
        await self.node.flush()

    async def fit(self, plan: Plan) -> Fitted:
        """Have the cohort trained where it is placed, or by a rank that is done early; returns when every rank has reported.

        Client failures are in the result. Raises UpdateError for an update that does not fit the model, RoundError
        when ranks take longer than `round_timeout`, RemoteFailure when a rank raised.
        """
        return await (await self.begin_fit(plan))

    async def begin_fit(self, plan: Plan) -> asyncio.Task[Fitted]:
        """Order what `fit` does, and return once the orders are out; await the task for what came of it."""
        self._round = plan.round
        order = plan.order(packed=self.is_open and bool(plan.compression))
        shares = self._shares(plan.cohort)
        await self._bring(shares)
        handout = self._handout(plan, order, shares)
        sums: dict[int, np.ndarray] = {}
        if handout is not None:  # sums grow from report to report then: a reduction brings them at the end
            reporting = await handout.begin(self.orders, self.ranks, doing(self.host.fit, is_long=True))
        else:
            sums = self._room_for_sums(plan, shares)
            orders = {rank: msgspec.structs.replace(order, clients=shares.get(rank, []), brings=rank in sums)
                      for rank in self.ranks}
            here = doing(self.host.fit, is_long=bool(shares.get(0)) or not sums)
            reporting = await self.orders.give(orders, FitReport, here, plan.round, sums)
        return asyncio.create_task(self._trained(plan, shares, reporting, sums))

    async def _trained(self, plan: Plan, shares: Mapping[int, list[str]], reporting: asyncio.Task[dict[int, FitReport]],
                       sums: Mapping[int, np.ndarray]) -> Fitted:
        try:
            await self.weights_arrived()
        except BaseException:
            await give_up(reporting)
            raise
        reports = await reporting
        self._trace(reports)
        fitted = self._fitted(plan, shares, reports)
        self.placement.observe(reports)
        keeping = [outcome.client_id for outcome in fitted.outcomes if outcome.keeps]
        self.states.propose({client_id: fitted.ranks[client_id] for client_id in keeping})
        if fitted.limbs > 1:  # in words of which reports bring none
            return fitted
        brought = []
        for rank, room in sums.items():
            place = reports[rank].place
            brought.append(room if place is None else self.node.transport.read_at(place))
        return replace(fitted, sums=brought)

    def _fitted(self, plan: Plan, shares: Mapping[int, list[str]], reports: Mapping[int, FitReport]) -> Fitted:
        """What the ranks report that were given these `shares`."""
        return Fitted.of(plan, shares, reports)

    async def mean(self, fitted: Fitted, out: Weights, divisor: Callable[[float], float] = lambda total: total) -> None:
        """Bring the ranks' sums together, in one reduction unless they came with the reports, and write their weighted mean
        into `out`.

        `divisor` makes what the sum is divided by of the sum of what clients count for. RoundError when the samples of
        all clients add up to zero.
        """
        collect = Collect(round=fitted.plan.round, limbs=fitted.limbs)
        total = self.host.updates.sum if fitted.sums else await self.reduced(collect)
        total.num_samples = sum(count_of(fitted.plan.weighting, outcome.num_samples) for outcome in fitted.outcomes)
        if total.num_samples == 0:
            raise no_samples(fitted)
        total.divisor = divisor(math.fsum(outcome.divisor for outcome in fitted.outcomes))

        def finish() -> None:
            total.take_in(fitted.sums)
            total.mean_into(out)

        await doing(finish, is_long=not fitted.sums)()  # sums that come with the reports are small

    async def updates(self, fitted: Fitted) -> list[ClientUpdate]:
        """Bring the rows to this rank, one at a time, in the order of the cohort; they are the caller's."""
        updates = []
        for outcome in fitted.outcomes:
            weights = Weights.zeros(self.weights.layout)
            fetch = FetchUpdate(round=fitted.plan.round, client_id=outcome.client_id)
            metrics = await self.fetch_row(fetch, fitted.ranks[outcome.client_id], weights)
            updates.append(ClientUpdate(outcome.client_id, weights, outcome.num_samples, metrics))
        return updates

    async def evaluate(self, round: int, num_shards: int, clients: Sequence[ClientProxy] = (),
                       part: Part = "test") -> Evaluated:
        """Evaluate the last broadcast on `num_shards` shards of `part` of the server's samples and on that part of these
        clients' samples, shared among ranks."""
        return await (await self.begin_evaluation(round, num_shards, clients, part))

    async def begin_evaluation(self, round: int, num_shards: int, clients: Sequence[ClientProxy] = (),
                               part: Part = "test") -> asyncio.Task[Evaluated]:
        """Order what `evaluate` does, and return once the orders are out; await the task for what came of it.

        The weights of the last broadcast must stay as they are until then. Clients whose rank has gone are left out.
        """
        clients = [client for client in clients if client.rank is None or client.rank in self.members]
        ranks = self.members.evaluating
        shards: dict[int, list[int]] = {rank: list(range(num_shards))[first::len(ranks)]
                                        for first, rank in enumerate(ranks)}
        own = self._shares(clients)
        await self._bring(own)
        orders = {rank: Evaluate(round=round, shards=shards.get(rank, []), clients=own.get(rank, []), part=part)
                  for rank in self.ranks}
        here = doing(self.host.evaluate, is_long=bool(shards.get(0) or own.get(0)))
        reporting = await self.orders.give(orders, EvaluateReport, here, round)
        return asyncio.create_task(self._evaluated(reporting, round))

    async def _evaluated(self, reporting: asyncio.Task[dict[int, EvaluateReport]], round: int) -> Evaluated:
        reports = await reporting
        self._trace(reports)
        for problem in (problem for report in reports.values() for problem in report.problems):
            logger.warning("%s failed to evaluate in round %d:\n%s", problem.client_id, round, problem.details)
        return Evaluated.of(reports.values())

    async def collect_states(self, coming: bool = False) -> dict[str, Weights]:
        """What every client keeps, by client; borrowed. With `coming`, as it will be once the next broadcast has committed the
        round that was trained."""
        return await self.states.collect(self.fetch_state, coming)

    async def fetch_state(self, client_id: str, rank: int, proposed: bool) -> Weights | None:
        """A copy of what a client on another rank keeps, or proposes to keep."""
        return unpacked(*await self.orders.request(rank, FetchState(client_id=client_id, proposed=proposed), ClientState))

    async def collect_results(self, clients: Sequence[ClientProxy], method: str,
                              config: Mapping[str, Any] | None = None) -> list[TrainResult | EvalResult]:
        """Call `method` of each client's learner; see Trainer.collect_results. Ranks work side by side."""
        if method not in ("fit", "evaluate"):
            raise ValueError(f"collect_results: no method {method!r}; clients answer to 'fit' and 'evaluate'")
        if method == "fit":
            self._round += 1
        results: dict[str, TrainResult | EvalResult] = {}

        async def ask(rank: int, share: list[str]) -> None:
            for client_id in share:
                call = Call(client_id=client_id, method=method, config=dict(config or {}),  # type: ignore[arg-type]
                            round=self._round)
                results[client_id] = await self._call(rank, call)

        shares = self._shares(clients)
        await self._bring(shares)
        await together(*(ask(rank, share) for rank, share in shares.items()))
        return [results[client.client_id] for client in clients]

    # -- what a matrix of updates uses --------------------------------------------------------------------------------

    @property
    def weights(self) -> Weights:
        """The weights of the last broadcast."""
        if self.host.weights is None:
            raise FederationError("no weights yet: broadcast_weights comes before fit and evaluate")
        return self.host.weights

    async def matrix(self, fitted: Fitted) -> Matrix:
        """The rows of a `fit` with needs "matrix", to work on where they are."""
        return DistributedMatrix(self, fitted)

    async def reduced(self, order: Collect) -> UpdateSum:
        """Bring the ranks' sums together in this rank's, one reduction for each word."""
        total = self.host.updates.sum
        total.ensure_limbs(order.limbs)
        async with self.orders.deadline(order.round, "the reduction of the updates"):
            await self.tell(order)
            if self.members.ranks:
                for own, limb in total.hand_over():
                    await self.node.attend(self.node.transport.reduce(own, out=limb, root=0))
        return total

    async def fetch_row(self, fetch: FetchUpdate, rank: int, out: Weights) -> Mapping[str, Any]:
        """Copy one client's update from `rank` into `out`; returns its metrics."""
        if rank == 0:
            weights, metrics = self.host.updates.row(fetch.client_id)
            out.copy_from(weights)
            return metrics
        update, _ = await self.orders.request(rank, fetch, Update, out.buffer)
        return update.metrics

    async def tell(self, message: Message) -> None:
        """Send `message` to every other rank."""
        await self.orders.tell(self.members.ranks, message)

    @property
    def is_open(self) -> bool:
        """Whether clients may come and go."""
        return False

    @property
    def recoverable(self) -> bool:
        """Whether `recover` can be tried when ranks are lost."""
        return self._transport is not None and self._transport.recoverable

    # -- how it is done ------------------------------------------------------------------------------------------

    def _orders_over(self, node: Node) -> Orders:
        return Orders(node, self.round_timeout)

    async def _bring(self, shares: Mapping[int, Sequence[str]]) -> None:
        if self.states.moves(shares):
            await self.orders.settle()  # an evaluation that is under way reads what clients keep
        async with self.orders.deadline(self._round, "moving what clients keep"):
            await self.states.bring(self.node, shares)

    async def _call(self, rank: int, call: Call) -> TrainResult | EvalResult:
        if rank == 0:
            result = await compute(self.host.call, call.client_id, call.method, call.config, call.round)
            if call.client_id in self.host.states:
                self.states.note(call.client_id, 0)
            return result
        weights = Weights.zeros(self.host.model_layout) if call.method == "fit" else None
        reply, _ = await self.orders.request(rank, call, Result, None if weights is None else weights.buffer)
        if reply.problem is not None:
            raise ClientError(call.client_id, reply.problem.details)
        if reply.keeps:
            self.states.note(call.client_id, rank)
        if weights is None:
            return EvalResult(reply.num_samples, reply.metrics)
        return TrainResult(weights, reply.num_samples, reply.metrics)

    def _shares(self, clients: Sequence[ClientProxy]) -> dict[int, list[str]]:
        """Which hosting rank does which of these clients."""
        return self.placement.shares(clients, self.members.hosting, self.states.homes)

    async def _deliver(self, order: WeightsFollow, weights: Weights, proposed: Sequence[str]) -> None:
        """Begin to give `weights` to the other ranks; clients had `proposed` to keep something new."""
        if self.members.ranks:
            await self._delivery.begin(self.orders, order, weights.buffer, self.members.ranks, self._round)

    def _room_for_sums(self, plan: Plan, shares: Mapping[int, Sequence[str]]) -> dict[int, np.ndarray]:
        """Where the sums go of the ranks that bring theirs with their reports; none do where a reduction is better."""
        slots, dtype = self.weights.layout.num_slots, np.dtype(np.int64 if plan.reduction == "exact" else plan.reduction)
        if plan.needs != "mean" or not is_direct(slots * dtype.itemsize, self.members.ranks, self.node.transport):
            return {}
        for rank in self.members.ranks:
            room = self._sums.get(rank)
            if room is None or room.shape != (slots,) or room.dtype != dtype:
                self._sums[rank] = np.empty(slots, dtype)
        return {rank: self._sums[rank] for rank in self.members.ranks if shares.get(rank)}

    def _handout(self, plan: Plan, order: Fit, shares: Mapping[int, Sequence[str]]) -> Handout | None:
        """How clients are given out bit by bit; None where there is nothing to gain (pieces would break up groups that a learner
        trains at once), or where it would be seen in the result: by a deadline, a client is late or not according to the rank that
        was to train it."""
        may_gain = len(shares) > 1 and self.host.at_once == 1 and self.placement.is_doubtful
        if not may_gain or plan.deadline is not None:
            return None
        fixed = {client.client_id for client in plan.cohort if client.rank is not None or client.client_id in self.states.homes}
        handout = Handout(order, shares, self.placement.seconds_of(plan.cohort), fixed)
        return handout if handout.is_worth_it else None

    def _trace(self, reports: Mapping[int, FitReport] | Mapping[int, EvaluateReport]) -> None:
        if self.trace is not None:
            for rank, report in reports.items():
                self.trace(rank, report.spans)

    async def _listen(self, node: Node) -> None:
        """Register ranks as they come; a rank's last word ends the server."""
        try:
            while True:
                await self._heard(node, await node.recv())
        except Exception as error:
            node.fail(error)

    async def _heard(self, node: Node, incoming: Incoming) -> None:
        """Act on what a rank says by itself."""
        match incoming.message:
            case Hello() as hello:
                await self.members.register(node, incoming, hello)
            case Leave():
                self._gone(incoming.source, "it has left")
            case Lost(reason=reason):
                self._gone(incoming.source, reason)
            case ClientState() as state:
                self.host.states.receive(incoming, state)
            case Failure(reason=reason, traceback=traceback):
                raise RemoteFailure(f"rank {incoming.source}: {reason}\n{traceback}")
            case other:
                raise CommError(f"rank {incoming.source} sent {type(other).__name__}, which is not for the server")

    def _gone(self, rank: int, reason: str) -> None:
        """A rank takes part no more."""
        self.members.remove(rank)

    def _named(self, arrays: Sequence[np.ndarray]) -> Weights:
        """A plain sequence as Weights, under the names that earlier weights had."""
        if self.host.weights is None:
            return Weights.of(arrays)
        weights = self.new_weights(self.host.weights.layout)
        weights.copy_from(arrays, who="broadcast_weights")
        return weights


async def _hear_no_more(listening: asyncio.Task[None]) -> None:
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
