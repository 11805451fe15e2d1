"""Data at scale: partitions of 10^6 clients, cohorts of 10^3, and the memory of eight ranks that share 1 GB.

    python benchmarks/bench_data.py [--json FILE] [--clients 1000000] [--samples 60000000] [--ranks 8] [--megabytes 1000]

Times are those of one process, seconds of the clock and of the processor. Memory is the proportional set size (PSS) of
Linux: a page that several processes map counts in parts, so that the sum over ranks is what the node has in use.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from federation.data.load import load_dataset, load_partition
from federation.data.manager import DataManager
from federation.data.partitioner import PARTITIONERS
from federation.data.sampling import SAMPLERS
from federation.node.placement import place
from federation.node.proxy import ClientTable

ROUNDS = 50


def partitions(num_clients: int, num_samples: int) -> list[dict[str, Any]]:
    """Seconds for each partitioner, and for the digest of what it made."""
    labels = (np.arange(num_samples, dtype=np.int64) * 7) % 10
    found = []
    for name, settings in (("iid", {}), ("dirichlet", {"alpha": 0.3}), ("label", {}), ("shards", {}), ("power_law", {}),
                           ("inner_dirichlet", {"alpha": 0.3})):
        began, used = time.perf_counter(), time.process_time()
        partition = PARTITIONERS[name](labels, num_clients, 0, **settings)
        found.append({"partitioner": name, "seconds": time.perf_counter() - began, "cpu_s": time.process_time() - used,
                      "bytes": partition.order.nbytes + partition.offsets.nbytes})
    return found


def planning(num_clients: int, cohort_size: int, ranks: int) -> list[dict[str, Any]]:
    """Milliseconds to draw a cohort and to place it, the median over rounds."""
    sizes = np.full(num_clients, 60, np.int64)
    found = []
    for name in SAMPLERS:
        table = ClientTable(sizes)
        times = []
        for number in range(1, ROUNDS + 1):
            began = time.perf_counter()
            cohort = table.draw(SAMPLERS[name], 0, number, cohort_size)
            place({client.client_id: float(client.num_samples) for client in cohort}, {}, list(range(1, ranks + 1)),
                  "balanced")
            times.append(1000 * (time.perf_counter() - began))
        found.append({"sampler": name, "first_ms": times[0], "ms": statistics.median(times[1:])})
    return found


def memory(ranks: int, megabytes: int) -> dict[str, Any]:
    """What `ranks` processes have in use, once each has cut out all of its clients; and what one of them needs to start."""
    with tempfile.TemporaryDirectory() as folder:
        count = megabytes * 10**6 // 784
        np.save(Path(folder) / "x.npy", np.random.default_rng(0).integers(0, 256, (count, 784), dtype=np.uint8))
        np.save(Path(folder) / "y.npy", np.arange(count) % 10)
        began = time.perf_counter()
        load_dataset(f"{folder}/", cache=Path(folder) / "cache")
        stored_s = time.perf_counter() - began
        context = multiprocessing.get_context("spawn")
        pipes, workers = [], []
        for rank in range(ranks):
            here, there = context.Pipe()
            workers.append(context.Process(target=_rank, args=(folder, rank, ranks, there)))
            pipes.append(here)
        for worker in workers:
            worker.start()
        opened = [pipe.recv() for pipe in pipes]
        pss = sum(_pss(worker.pid or 0) for worker in workers)
        for pipe in pipes:
            pipe.send(None)
        for worker in workers:
            worker.join()
    return {"ranks": ranks, "dataset_mb": megabytes, "all_ranks_mb": pss / 1e6, "store_s": stored_s,
            "open_s": statistics.median(opened)}


def _rank(folder: str, rank: int, ranks: int, pipe: Connection) -> None:
    began = time.perf_counter()
    dataset = load_dataset(f"{folder}/", cache=Path(folder) / "cache")
    partition = load_partition("iid", dataset, 1000, cache=Path(folder) / "cache")
    manager = DataManager(dataset, partition)
    seconds = time.perf_counter() - began
    for client in range(rank, 1000, ranks):
        manager.client(client, 1)
    pipe.send(seconds)
    pipe.recv()


def _pss(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--clients", type=int, default=1_000_000)
    parser.add_argument("--samples", type=int, default=60_000_000)
    parser.add_argument("--cohort", type=int, default=1000)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--megabytes", type=int, default=1000)
    given = parser.parse_args()
    report = {"machine": {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine(),
                          "python": platform.python_version(), "numpy": np.__version__},
              "memory": memory(given.ranks, given.megabytes),
              "planning": planning(given.clients, given.cohort, given.ranks),
              "partitions": partitions(given.clients, given.samples)}
    print(f"{given.clients:,} clients, {given.samples:,} samples")
    for row in report["partitions"]:
        print(f"  {row['partitioner']:16}{row['seconds']:7.1f} s ({row['cpu_s']:.1f} s of processor), "
              f"{row['bytes'] / 1e6:.0f} MB")
    print(f"a round's plan, cohort of {given.cohort}")
    for row in report["planning"]:
        print(f"  {row['sampler']:16}{row['ms']:7.2f} ms (first {row['first_ms']:.2f} ms)")
    shared = report["memory"]
    print(f"{shared['ranks']} ranks on {shared['dataset_mb']} MB: {shared['all_ranks_mb']:.0f} MB in all; stored in "
          f"{shared['store_s']:.1f} s, opened in {shared['open_s']:.2f} s")
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
