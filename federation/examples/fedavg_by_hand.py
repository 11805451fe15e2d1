"""Federated averaging by hand: no registry, no configuration, no trainer.

    python -m federation.examples.fedavg_by_hand

Every noun of the package once, in the order in which a round uses it. The same program runs in a world of many
ranks; here the world is this process, and its only rank hosts all clients.
"""

import asyncio

from federation.builtin.aggregators.fedavg import FedAvgAggregator
from federation.builtin.learners.default import DefaultLearner
from federation.builtin.models.mlp import MLPModel
from federation.core.weights import Weights
from federation.data.load import load_dataset
from federation.data.manager import DataManager
from federation.data.partitioner import dirichlet
from federation.data.sampling import draw_cohort
from federation.node.host import ClientHost
from federation.node.round import Plan
from federation.node.server import ServerNode
from node_comm import memory

SEED, CLIENTS, COHORT, ROUNDS = 1, 20, 8, 30


async def main() -> float:
    dataset = load_dataset("digits", root=None, seed=SEED, test_fraction=0.2, config={})
    partition = dirichlet(dataset.y_train, CLIENTS, SEED, alpha=0.3)
    data = DataManager(dataset, partition, seed=SEED)

    model = MLPModel(input_size=64, output_size=10, hidden_sizes=(64,), seed=SEED)
    learner = DefaultLearner(model=model, local_epochs=5, batch_size=20, client_lr=0.1)
    [transport] = memory.world(1)
    server = ServerNode(transport=transport, host=ClientHost(learner, data, seed=SEED))
    aggregator = FedAvgAggregator()

    await server.start()
    weights = Weights.of(model.get_weights())
    await server.broadcast_weights(weights)
    accuracy = 0.0
    for number in range(1, ROUNDS + 1):
        cohort = [server.clients[index] for index in draw_cohort(SEED, number, CLIENTS, COHORT)]
        fitted = await server.fit(Plan(number, cohort))
        mean = Weights.zeros(weights.layout)
        await server.mean(fitted, out=mean)
        aggregator.step(weights, mean, fitted.stats(CLIENTS))
        weights = mean
        await server.broadcast_weights(weights)
        found = await server.evaluate(number, len(data.test_shards()))
        accuracy = found.shards.means()["accuracy"]
        print(f"round {number:2d}  accuracy {accuracy:.3f}")
    await server.stop()
    return accuracy


if __name__ == "__main__":
    asyncio.run(main())
