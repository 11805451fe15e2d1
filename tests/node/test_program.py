"""Programs of one's own, in the shape that users write them: objects, a named server, clients that connect to it."""

from __future__ import annotations

import asyncio

import pytest

from federation import ClientNode, ServerNode
from federation.builtin import DefaultLearner, DefaultTrainer, FedAvgAggregator, MLPModel
from federation.core.weights import Weights
from federation.errors import FederationError
from federation.node.protocol import MESSAGES, Shutdown, WeightsFollow, Welcome
from node_comm import AddressError, CommError, Disconnected, memory
from node_comm.node import Node
from tests.node.worlds import Answers, Arrays, constant, f32


async def train(name: str, clients: int) -> str:
    """Five rounds of clients without data of their own; the digest of the result."""
    server = ServerNode({"node_id": name, "transport": {"mode": "memory"}})
    trainer = DefaultTrainer(server=server, model=MLPModel(input_size=12, output_size=3), aggregator=FedAvgAggregator(),
                             config={"max_rounds": 5, "min_clients": 2})
    nodes = []
    for index in range(clients):
        node = ClientNode({"node_id": f"client_{index}"})
        node.bind(DefaultLearner(model=MLPModel(input_size=12, output_size=3)))
        nodes.append(node)
    await server.start()
    for node in nodes:
        await node.start()
        await node.connect_and_register(name)
    await trainer.run()
    with pytest.raises(CommError):
        await ClientNode({"node_id": "late"}).connect_and_register(name)
    for node in nodes:
        await node.stop()
    await server.stop()
    assert trainer.round == 5
    return trainer.weights.sha256()


def test_a_program_in_memory():
    """It trains, refuses who comes too late, cleans up, and does the same again under the same name."""
    first = asyncio.run(train("server", 3))
    assert asyncio.run(train("server", 3)) == first
    assert asyncio.run(train("server", 4)) != first


def test_a_server_that_is_not_there():
    async def main():
        await ClientNode({"node_id": "a"}).connect_and_register("nobody")

    with pytest.raises(AddressError, match="nobody"):
        asyncio.run(main())


def test_settings_of_nodes_are_strict():
    with pytest.raises(FederationError, match="nodeid"):
        ServerNode({"nodeid": "x"})
    with pytest.raises(FederationError, match="server_id"):
        ClientNode({"server_id": "x"})


@pytest.mark.parametrize("is_taken", [True, False], ids=["the leave is taken", "the leave is not taken"])
def test_a_server_that_is_gone_before_a_rank_has_said_its_leave(is_taken):
    """The run is over then all the same: nobody looks for another server."""

    async def main():
        here, there = memory.world(2)
        server, client = Node(here, MESSAGES), ClientNode({"node_id": "late"}, transport=there)
        client.bind(Answers(Arrays({"w": f32(0)}), constant([f32(1)])))
        original = there.send

        async def send(dest, header, buffer=None):
            if b"Leave" in header:
                client._node.fail(Disconnected("the server is gone"))
                if not is_taken:
                    raise Disconnected("the server is gone")
                await asyncio.sleep(60)
            await original(dest, header, buffer)

        there.send = send
        await server.start()
        joining = asyncio.create_task(client.connect_and_register())
        hello = await server.recv()
        await server.reply(hello, Welcome(server_id="server"))
        await joining
        asking = asyncio.create_task(server.request(1, Shutdown(reason="the run is over")))
        async with asyncio.timeout(5):
            await client.wait()
        await client.stop()
        asking.cancel()
        await server.stop()
        here, client._transport = memory.world(2)  # in which a loss is a loss again
        server = Node(here, MESSAGES)
        await server.start()
        joining = asyncio.create_task(client.connect_and_register())
        await server.reply(await server.recv(), Welcome(server_id="server"))
        await joining
        await server.send(1, WeightsFollow(layout=Weights.of({"w": f32(0)}).layout.to_dict(), num_model=1))
        while client.host.weights is None:
            await asyncio.sleep(0.001)
        await server.stop()  # instead of a broadcast
        with pytest.raises(Disconnected):
            await client.wait()
        await client.stop()

    asyncio.run(main())
