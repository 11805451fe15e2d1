"""What a round costs beyond local training: 10 clients, the 784-200-10 MLP (159,010 parameters), one process.

    python benchmarks/bench_overhead.py [--json FILE] [--rounds 60] [--repeats 5]

Work as in the usual overhead benchmark: 60 samples a client, batches of 20, one local epoch, SGD, exact reduction.
Three loops over the same clients, alternating in one run, medians over repeats:

    plain        set_weights and fit, client after client, nothing else: no sum, no round
    round        DefaultTrainer.run without evaluation and files: cohort, placement, exact sum, mean, commit
    recorded     the same with evaluation on 2,000 samples, metrics.jsonl, and a checkpoint a round
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from federation.builtin import DefaultLearner, DefaultTrainer, FedAvgAggregator, MLPModel
from federation.core.learner import Context
from federation.data.manager import DataManager
from federation.data.partitioner import iid
from federation.data.provider import Dataset
from federation.infra.checkpoint import Checkpoints
from federation.infra.recorder import Recorder
from federation.infra.run_folder import RunFolder
from federation.infra.threads import apply_threads
from federation.node.host import ClientHost
from federation.node.server import ServerNode
from node_comm import memory

CLIENTS, SAMPLES, TEST = 10, 60, 2000


def make_data() -> DataManager:
    """600 training samples of 784 values, ten classes, ten clients."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(CLIENTS * SAMPLES + TEST, 784)).astype(np.float32)
    y = np.argmax(x[:, :10], axis=1)
    dataset = Dataset(x[TEST:], y[TEST:], x[:TEST], y[:TEST], 10, "noise")
    return DataManager(dataset, iid(dataset.y_train, CLIENTS, 0), seed=0)


def make_learner() -> DefaultLearner:
    """The learner of every loop."""
    return DefaultLearner(MLPModel(), local_epochs=1, batch_size=20, client_lr=0.05)


def plain(data: DataManager, rounds: int) -> float:
    """Seconds a round of local training alone."""
    learner = make_learner()
    start = learner.get_weights()
    began = time.perf_counter()
    for number in range(rounds):
        for index in range(CLIENTS):
            learner.bind(data.client(index), Context(f"client_{index}", number, 0))
            learner.set_weights(start)
            learner.fit({"round": number})
        start = learner.get_weights()  # learns on, as the engine does: steps slow down as gradients become subnormal
    return (time.perf_counter() - began) / rounds


def engine(data: DataManager, rounds: int, folder: Path | None) -> float:
    """Seconds a round of the whole engine; recorded in `folder` if there is one."""

    async def main() -> float:
        server = ServerNode(transport=memory.world(1)[0], host=ClientHost(make_learner(), data))
        recorder = Recorder()
        if folder is not None:
            run_folder = RunFolder(folder)
            run_folder.prepare("")
            recorder = Recorder(run_folder, checkpoints=Checkpoints(folder / "checkpoints"))
        trainer = DefaultTrainer(server, MLPModel(), FedAvgAggregator(), {
            "max_rounds": rounds, "min_clients": 1, "evaluate": "none" if folder is None else "server"}, recorder=recorder)
        await server.start()
        began = time.perf_counter()
        await trainer.run()
        recorder.close()
        seconds = (time.perf_counter() - began) / rounds
        await server.stop()
        if folder is not None:
            run_folder.close()
        return seconds

    return asyncio.run(main())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    apply_threads(1)
    data = make_data()
    seconds: dict[str, list[float]] = {"plain": [], "round": [], "recorded": []}
    plain(data, 5)
    for _ in range(options.repeats):
        seconds["plain"].append(plain(data, options.rounds))
        seconds["round"].append(engine(data, options.rounds, None))
        with tempfile.TemporaryDirectory() as folder:
            seconds["recorded"].append(engine(data, options.rounds, Path(folder)))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    result = {"machine": platform.processor() or platform.machine(), "ms_a_round": {k: 1e3 * v for k, v in medians.items()},
              "overhead": {name: 1 - medians["plain"] / medians[name] for name in ("round", "recorded")}}
    for name, value in medians.items():
        beyond = "" if name == "plain" else f"   overhead {100 * result['overhead'][name]:5.1f} % of the round"
        print(f"{name:10s} {1e3 * value:8.2f} ms a round{beyond}")
    if options.json:
        options.json.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
