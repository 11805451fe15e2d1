"""A program of one's own: a server and its clients as objects, in any kind of world.

    python -m federation.examples.program                          # all in this process
    python -m federation.examples.program --mode processes         # a process for each client
    mpirun -n 4 python -m federation.examples.program --mode mpi   # a rank for each client

Each client brings its own data. In all three worlds the result is the same, bit for bit.
"""

import argparse

from federation import ClientNode, ServerNode
from federation.builtin import DefaultLearner, DefaultTrainer, FedAvgAggregator, MLPModel
from federation.data.load import load_dataset
from federation.data.manager import DataManager
from federation.data.partitioner import iid
from node_comm import Transport, memory, mpi, processes

SIZES = {"input_size": 64, "output_size": 10, "hidden_sizes": (32,)}
CLIENTS = 3


async def serve(transport: Transport) -> str:
    """Rank 0: train for five rounds on whoever is there."""
    server = ServerNode({"node_id": "server"}, transport=transport)
    trainer = DefaultTrainer(server=server, model=MLPModel(**SIZES), aggregator=FedAvgAggregator(),
                             config={"max_rounds": 5, "min_clients": CLIENTS})
    await server.start()
    await trainer.run()
    await server.stop()
    digest = trainer.weights.sha256()
    print(f"after round {trainer.round}: {digest}")
    return digest


async def take_part(transport: Transport) -> None:
    """Any other rank: one client, with its share of the digits."""
    dataset = load_dataset("digits", root=None, seed=0, test_fraction=0.2, config={})
    index = transport.rank - 1
    data = DataManager(dataset, iid(dataset.y_train, CLIENTS, 0), seed=0).client(index)
    client = ClientNode({"node_id": f"client_{index}"}, transport=transport)
    client.bind(DefaultLearner(model=MLPModel(**SIZES), data=data, local_epochs=2, batch_size=32, client_lr=0.1))
    await client.start()
    await client.connect_and_register("server")
    await client.wait()
    await client.stop()


async def main(transport: Transport) -> str | None:
    """One rank's part."""
    if transport.rank == 0:
        return await serve(transport)
    return await take_part(transport)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=["memory", "processes", "mpi"], default="memory")
    match parser.parse_args().mode:
        case "memory":
            memory.run(main, CLIENTS + 1)
        case "processes":
            processes.run(main, CLIENTS + 1)
        case "mpi":
            mpi.run(main)
