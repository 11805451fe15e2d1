"""What robust aggregation costs when the updates stay on their ranks: peak memory of each rank, and time of each verb.

    python benchmarks/bench_matrix.py [--clients 64] [--values 1000000] [--ranks 4] [--json FILE]

Rank 0 is the server and hosts no client; the others hold the updates (float32) that they trained. Peak memory is that
of the process above what it had before the round, so it counts the updates, blocks in transit (shared memory included)
and results. Each verb is timed once, after a first call that allocates.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from federation import ClientNode, EvalResult, Learner, Model, ServerNode, TrainResult
from federation.core.columns import Kernel
from federation.core.weights import Weights
from federation.data.dataset import Dataset
from federation.data.manager import DataManager
from federation.data.partition import Partition
from federation.node.host import ClientHost
from federation.node.matrix import DistributedMatrix
from federation.node.round import Plan
from node_comm import Transport, processes
from node_comm.processes import ensure_main_guard


class OneArray(Model):
    """A model that is one float32 array."""

    def __init__(self, values: int) -> None:
        self._weights = Weights.of({"w": np.zeros(values, np.float32)})
        self._weights.borrowed = True

    @property
    def weights(self) -> Weights:
        """The live weights."""
        return self._weights

    def get_weights(self) -> Weights:
        """A copy."""
        return self._weights.copy()

    def set_weights(self, weights: Any) -> None:
        """Overwrite all."""
        self._weights.copy_from(weights)


class Noise(Learner):
    """An update that is a little noise."""

    def fit(self, config: Any = None) -> TrainResult:
        """One update."""
        assert isinstance(self.model, OneArray)
        weights = self.model.weights["w"]
        for first in range(0, len(weights), 1 << 16):
            part = weights[first:first + (1 << 16)]
            part += np.float32(0.01) * self.random(f"update {first}").standard_normal(len(part), np.float32)
        return TrainResult(self.model.weights, 1)

    def evaluate(self, config: Any = None) -> EvalResult:
        """Nothing."""
        return EvalResult(0)


MARKS: list[int] = []


def mark() -> None:
    """Count from here."""
    Path("/proc/self/clear_refs").write_text("5")
    MARKS[:] = [memory("VmRSS")]


def memory(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


async def one_rank(transport: Transport, clients: int, values: int, folder: str) -> dict[str, Any] | None:
    """A round of `clients` updates, and every verb on them."""
    x, y = np.zeros((clients, 1), np.float32), np.zeros(clients, np.int64)
    data = DataManager(Dataset(x, y, x, y, 1, "nothing"), Partition(np.arange(clients), np.arange(clients + 1)))
    host = ClientHost(Noise(OneArray(values)), data)
    if transport.rank:
        node = ClientNode({"node_id": f"rank_{transport.rank}"}, transport=transport, host=host)
        await node.connect_and_register()
        mark()
        await node.wait()
        peak_file(folder, transport.rank).write_text(str(memory("VmHWM") - MARKS[0]))
        await node.stop()
        return None
    server = ServerNode(transport=transport, host=host)
    await server.start()
    await server.wait_for_clients(clients)
    start = np.random.default_rng(0).standard_normal(values, np.float32) * np.float32(0.05)
    await server.broadcast_weights(Weights.of({"w": start}))
    out = Weights.zeros(server.weights.layout)
    mark()
    fitted = await server.fit(Plan(1, server.get_connected_clients(), needs="matrix"))
    matrix = DistributedMatrix(server, fitted)
    coefficients = [1 / clients] * clients
    verbs = {"median": lambda: matrix.columnwise(Kernel("median"), out),
             "mean around median": lambda: matrix.columnwise(Kernel("mean_around_median", clients // 2), out),
             "gram": matrix.gram, "combine": lambda: matrix.combine(coefficients, out), "row": lambda: matrix.row(0, out)}
    seconds = {}
    for name, verb in verbs.items():
        await verb()
        began = time.perf_counter()
        await verb()
        seconds[name] = time.perf_counter() - began
    peak_file(folder, 0).write_text(str(memory("VmHWM") - MARKS[0]))
    await server.stop()
    rows = {rank: list(fitted.ranks.values()).count(rank) for rank in range(transport.size)}
    return {"seconds": seconds, "rows": rows}


def peak_file(folder: str, rank: int) -> Path:
    """Where a rank leaves its peak."""
    return Path(folder) / f"rank_{rank}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--values", type=int, default=1_000_000)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = processes.run(one_rank, given.ranks, given.clients, given.values, folder)
        found["peaks"] = {rank: int(peak_file(folder, rank).read_text()) for rank in range(given.ranks)}
    bound = 2 * given.clients * given.values * 4 / given.ranks
    print(f"{given.clients} clients, {given.values:,} float32 values, {given.ranks} ranks; "
          f"2 K P / ranks is {bound / 1e6:.0f} MB")
    for rank, peak in found["peaks"].items():
        print(f"  rank {rank}: {found['rows'][rank]:3d} rows, peak {peak / 1e6:7.1f} MB, {peak / bound:.2f} of the bound")
    for name, seconds in found["seconds"].items():
        print(f"  {name:20s} {seconds * 1e3:8.1f} ms")
    if given.json:
        given.json.write_text(json.dumps({**found, "bound": bound, **vars(given), "json": None}))


if __name__ == "__main__":
    ensure_main_guard()
    main()
