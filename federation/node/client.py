"""A rank that hosts clients: it does what the server asks, until the server says that the run is over."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
import traceback
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import numpy as np

import node_comm
from federation import kernels
from federation.core.aggregator import Aggregator
from federation.core.learner import Learner
from federation.core.types import TrainResult
from federation.core.weights import Layout, Weights
from federation.errors import ClientError, FederationError
from federation.infra.threads import apply_threads
from federation.node.compute import compute
from federation.node.host import ClientHost
from federation.node.matrix import take_part_in_columnwise, take_part_in_gram
from federation.node.orders import expect
from federation.node.protocol import (
    MESSAGES,
    Call,
    ClientRecord,
    ClientState,
    Collect,
    Columnwise,
    Combine,
    Evaluate,
    FetchState,
    FetchSum,
    FetchUpdate,
    Fit,
    Gram,
    Hello,
    Leave,
    Move,
    Moved,
    Problem,
    Result,
    Shutdown,
    Sum,
    Train,
    Update,
    WeightsFollow,
    Welcome,
)
from federation.node.settings import NodeSettings
from node_comm import CommError, Disconnected, Timeout, Transport
from node_comm.arrays import describe
from node_comm.message import Failure
from node_comm.node import Incoming, Lost, Node
from node_comm.star import Star

logger = logging.getLogger(__name__)

SERVER = 0  #: the server's rank, in every world
#: Global weights of so many bytes stay in the caches, and are read where the server has them; larger ones are copied once, since
#: shared memory has small pages, and each client reads them twice.
IN_PLACE_BYTES = 1 << 22
HEARTBEAT = 5.0  #: seconds between signs of life
#: What orders are called in a trace.
_WORK: dict[type, str] = {WeightsFollow: "broadcast", Fit: "train", Collect: "reduce", FetchSum: "reduce", FetchUpdate: "reduce",
                          Columnwise: "columnwise", Gram: "gram", Combine: "combine", Evaluate: "evaluate"}


class ClientNode:
    """A node with one or many clients.

    In a program of one's own: `bind` a learner (its `data` bound or not), `start`, `connect_and_register`. The engine
    gives a `transport` that is already connected and a `host` for clients of the shared partition, and calls `serve`;
    over a network, `hosts` are the clients of the partition that this node alone has, with their samples, and `patience` the
    seconds in which the server has to answer their introduction (None: no limit).

    `config`: `node_id` (the client's name), `transport: {mode: memory|mpi}`, `threads` (compute threads of this
    process, 1 unless given: other numbers may round differently).
    """

    def __init__(self, config: Mapping[str, Any] | None = None, *, transport: Transport | None = None,
                 host: ClientHost | None = None, setup: Mapping[str, str] | None = None,
                 round_timeout: float | None = None, hosts: Mapping[str, int] | None = None,
                 patience: float | None = None) -> None:
        settings = NodeSettings.of(config, "client")
        self.node_id = settings.node_id
        self._mode = settings.mode
        self._threads = settings.threads if host is None else None  # the engine fixes its threads itself
        self.host = host or ClientHost()
        self.round_timeout = round_timeout
        self._hosts = dict(hosts or {})
        self._patience = patience
        self._setup = dict(setup or {})
        self._transport = transport
        self._node: Node | None = None
        self._serving: asyncio.Task[None] | None = None
        self._awaited = False
        self._is_dismissed = False  # the server has said that the run is over
        self._began = 0.0  # when the order was taken that is being obeyed; of several to train in one round, the first

    def bind(self, learner: Learner, client_id: str | None = None, aggregator: Aggregator | None = None) -> None:
        """Let `learner` be the client `client_id` (by default this node's name), with the data that it holds.

        An aggregator that weighs updates by a rule of its own (FedNova, q-FedAvg, clipping) does so here: give the same.
        """
        name = client_id or self.node_id
        if name in self.host.own:
            raise FederationError(f"{self.node_id} already has a client {name!r}: pass another client_id")
        self.host.own[name] = learner
        self.host.updates.aggregator = aggregator or self.host.updates.aggregator

    async def start(self) -> None:
        """Fix the compute threads of this process, so that results do not depend on the machine."""
        if self._threads is not None:
            apply_threads(self._threads)

    async def connect_and_register(self, server_id: str = "server") -> None:
        """Join the world of `server_id`, introduce the clients, and serve in the background until `stop`."""
        if self._transport is None:
            self._transport = node_comm.connect(self._mode, name=server_id)
        await self._register(server_id)
        self._serving = asyncio.create_task(self._serve(), name=f"{self.node_id} serving")

    async def serve(self) -> None:
        """Register and serve until the server ends the run; what the engine's ranks do.

        In a world that outlives the loss of ranks, this one registers anew in the next.
        """
        while True:
            try:
                await self.connect_and_register()
                await self.wait()
                assert self._transport is not None
                await self._transport.finish()
                return
            except Disconnected:
                if self._transport is None or not self._transport.recoverable:
                    raise
            await self._recover(self._transport)

    async def _recover(self, lost: Transport) -> None:
        """Go on in the world that comes after `lost`, as if this rank had never been given an order."""
        assert self._node is not None
        self.host.stopping.set()
        await self._node.stop()
        self._transport = await lost.recover()
        async with _own_end(self.round_timeout):
            await compute(self.host.forget)  # once the client that is in training is done
        self.host.stopping.clear()

    async def wait(self) -> None:
        """Wait until the server ends the run; raises what ended this node, if something did."""
        if self._serving is not None:
            self._awaited = True
            await self._serving

    async def stop(self) -> None:
        """Leave the run. Raises what ended this node, if something did and `wait` has not raised it already."""
        node, serving, self._node, self._serving = self._node, self._serving, None, None
        if node is None:
            return
        self.host.stopping.set()
        if serving is not None and not serving.done():
            try:
                await node.send(SERVER, Leave())
            except CommError:
                logger.debug("%s leaves a server that is gone", self.node_id)
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
        await node.stop()
        if serving is not None and not serving.cancelled() and not self._awaited:
            serving.result()

    async def _register(self, server_id: str) -> None:
        assert self._transport is not None
        self._is_dismissed = False
        self._node = Node(self._transport, MESSAGES, heartbeat=HEARTBEAT, beat_to=[SERVER])
        await self._node.start()
        own = {name: _samples(learner) for name, learner in self.host.own.items()}
        records = [ClientRecord(name, samples) for name, samples in (own | self._hosts).items()]
        hello = Hello(node_id=self.node_id, clients=records, setup=self._setup)
        try:
            answer, _ = await self._node.request(SERVER, hello, timeout=self._patience)
        except Timeout:
            raise Timeout(f"{server_id} has not answered the introduction of {self.node_id} within {self._patience:g} s: it "
                          "hangs, loads its data for longer than that, or has gone; see its log, or set a longer "
                          "transport.patience") from None
        expect(answer, Welcome)
        logger.debug("%s is registered at %s", self.node_id, server_id)

    async def _serve(self) -> None:
        """The rank's loop: one order after the other. An error is told to the server, then raised here."""
        assert self._node is not None
        while True:
            with self.host.spans.span("idle"):
                incoming = await self._node.recv()
            try:
                with self.host.spans.span(_WORK.get(type(incoming.message), "other")):
                    is_over = not await self._node.attend(self._obey_in_time(incoming))
                if is_over:
                    return
            except Disconnected:
                if self._is_dismissed:  # whether the server still hears it or not
                    return
                raise
            except Exception as error:
                failure = Failure(reason=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
                try:
                    await self._node.send(SERVER, failure)
                except CommError:  # from which this node may recover
                    logger.error("%s has failed, of which the server cannot be told:\n%s", self.node_id, failure.traceback)
                    raise
                if isinstance(self._transport, Star) and not isinstance(error, CommError | FederationError):
                    what = type(incoming.message).__name__  # of a server that is not this program's own, maybe
                    raise CommError(f"{what}, which the server has sent, cannot be obeyed here:\n{failure.traceback}") from error
                raise

    async def _obey_in_time(self, incoming: Incoming) -> bool:
        """Obey; where the others can do without this rank, it ends itself rather than let them wait."""
        assert self._transport is not None
        if not (isinstance(incoming.message, Fit) and incoming.message.goes_on):
            self._began = time.monotonic()
        async with _own_end(self.round_timeout if self._transport.recoverable else None, time.monotonic() - self._began):
            return await self._obey(incoming)

    async def _obey(self, incoming: Incoming) -> bool:
        node, host = self._node, self.host
        assert node is not None
        match incoming.message:
            case WeightsFollow() as order:
                host.states.commit(order.keeps)
                await self._take_weights(node, order, incoming.buffer)
            case Fit() as order:
                report = await compute(host.fit, order)
                with host.spans.span("reduce" if order.brings else "report"):
                    total = host.updates.sum.limbs[0] if order.brings and report.limbs == 1 else None
                    place = None if total is None else node.transport.place_of(total)
                    report = msgspec.structs.replace(report, place=place)
                    await node.reply(incoming, report, total if place is None else None)
            case Collect(limbs=limbs):
                host.updates.sum.ensure_limbs(limbs)
                for limb in host.updates.sum.limbs:
                    await node.attend(node.transport.reduce(limb, root=SERVER))
            case FetchSum(limbs=limbs, word=word):
                host.updates.sum.ensure_limbs(limbs)
                await node.reply(incoming, Sum(), host.updates.sum.limbs[word])
            case FetchUpdate(client_id=client_id):
                buffer, metrics = host.updates.of(client_id)
                await node.reply(incoming, Update(metrics=dict(metrics)), buffer)
            case Columnwise() as order:
                await take_part_in_columnwise(node, host, order)
            case Gram() as order:
                await take_part_in_gram(node, host, order)
            case Combine() as order:
                await node.reply(incoming, await compute(host.updates.combine, order))
            case Move() as order:
                return await self._move(incoming, order)
            case FetchState(client_id=client_id, proposed=proposed):
                state = host.states.whole(client_id, proposed)
                await node.reply(incoming, ClientState(client_id=client_id, layout=state.layout.to_dict()), state.buffer)
            case ClientState() as state:
                host.states.receive(incoming, state)
            case Evaluate() as order:
                await node.reply(incoming, await compute(host.evaluate, order))
            case Train() as order:
                await self._train(incoming, order)
            case Call(client_id=client_id, method=method, config=config, round=round):
                await self._call(incoming, client_id, method, config, round)
            case Lost(reason=reason):
                raise Disconnected(reason)
            case Shutdown(reason=reason):
                logger.debug("%s ends: %s", self.node_id, reason)
                self._is_dismissed = True
                await node.reply(incoming, Leave())
                return False
            case other:
                raise CommError(f"{type(other).__name__} is not for a client's rank")
        return True

    async def _take_weights(self, node: Node, order: WeightsFollow, beside: np.ndarray | None) -> None:
        """Start from the weights of `order`: where they lie, or from a copy of those there, or `beside` it, or of a broadcast."""
        layout = Layout.from_dict(order.layout)
        given = None if order.place is None else node.transport.read_at(order.place)
        if given is not None and given.nbytes <= IN_PLACE_BYTES:
            self.host.start_from(Weights(layout, given), order.num_model)
            return
        if beside is not None and (beside.dtype != np.uint8 or beside.shape != (layout.nbytes,)):
            raise CommError(f"weights of {layout.nbytes} bytes follow, says the server, and {describe(beside)} has come")
        weights = self.host.expect(layout, order.num_model)
        if given is not None:
            await compute(kernels.copy, weights.buffer, given)
        elif beside is not None:
            weights.buffer[:] = beside
        else:
            await node.attend(node.transport.broadcast(weights.buffer, root=SERVER))

    async def _move(self, incoming: Incoming, order: Move) -> bool:
        """Give and take clients' states; false where the run ends meanwhile."""
        assert self._node is not None
        sending = asyncio.ensure_future(self.host.states.send(self._node, order.give))
        try:
            while any(client_id not in self.host.states for client_id in order.take):
                if not await self._obey(await self._node.recv()):
                    return False
            await self._node.attend(sending)
        finally:
            sending.cancel()
        await self._node.reply(incoming, Moved())
        return True

    async def _train(self, incoming: Incoming, order: Train) -> None:
        assert self._node is not None
        assert incoming.buffer is not None, "the weights travel beside the order"
        layout = self.host.model_layout
        start, out = Weights(layout, incoming.buffer), Weights.zeros(layout)
        report = await compute(self.host.train, order, start, out)
        await self._node.reply(incoming, report, None if report.problem or report.refused else out.buffer)

    async def _call(self, incoming: Incoming, client_id: str, method: str, config: Mapping[str, Any],
                    round: int) -> None:
        assert self._node is not None
        try:
            result = await compute(self.host.call, client_id, method, config, round)
        except ClientError as error:
            problem = Problem(client_id, "failed", str(error.__cause__), error.traceback)
            await self._node.reply(incoming, Result(problem=problem))
            return
        buffer = result.weights.buffer if isinstance(result, TrainResult) else None  # type: ignore[union-attr]
        reply = Result(num_samples=int(result.num_samples), metrics=dict(result.metrics),
                       keeps=client_id in self.host.states)
        await self._node.reply(incoming, reply, buffer)


@asynccontextmanager
async def _own_end(seconds: float | None, spent: float = 0.0) -> AsyncIterator[None]:
    """Give the block so many seconds, of which some are spent; this process kills itself after that."""
    try:
        async with asyncio.timeout(None if seconds is None else seconds - spent) as limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise  # one of a learner's own, as where its data are asked for over a network
        logger.error("this rank has not done what it was asked to within round_timeout=%g s, and ends itself", seconds)
        os.kill(os.getpid(), signal.SIGKILL)


def _samples(learner: Learner) -> int:
    """How many samples a client of its own says it has; 1 where its data cannot tell (it trains all the same)."""
    count = getattr(learner.data, "get_num_samples", None)
    return 1 if count is None else int(count())
