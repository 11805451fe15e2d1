"""Times the columnwise kernels on one core against NumPy, in one run.

    python benchmarks/bench_columnwise.py [--values 1000000] [--clients 4 8 16 ...] [--repeats 3] [--json FILE]

Prints, for each number of clients, the median of the repeats of each kernel in milliseconds (float32), and how many times
as fast as `numpy.median(rows, axis=0)` the median is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from federation import columnwise, kernels


def timed(function: Callable[[], object], repeats: int) -> float:
    """Milliseconds, the median of the repeats after one to warm up."""
    function()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times)


def measure(clients: int, values: int, repeats: int) -> dict[str, float]:
    """Milliseconds of each kernel, of NumPy's median, and their ratio."""
    rows = np.random.default_rng(0).standard_normal((clients, values), np.float32)
    out = np.empty(values, np.float32)
    found = {
        "numpy.median": timed(lambda: np.median(rows, axis=0), 1),
        "median": timed(lambda: columnwise.median(rows, out), repeats),
        "trimmed_mean": timed(lambda: columnwise.trimmed_mean(rows, out, (clients - 1) // 4), repeats),
        "mean_around_median": timed(lambda: columnwise.mean_around_median(rows, out, -(-clients // 2)), repeats),
    }
    return {**found, "times as fast": found["numpy.median"] / found["median"]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, nargs="+", default=[4, 8, 16, 32, 64, 128, 1024])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    print(f"{given.values:,} float32 values, variant {kernels.variant()}; milliseconds")
    results = {}
    for clients in given.clients:
        values = min(given.values, 10**8 // clients)
        results[clients] = {"values": values, **measure(clients, values, given.repeats)}
        line = "  ".join(f"{name} {value:.1f}" for name, value in results[clients].items() if name != "values")
        print(f"K = {clients:5d}: {line}" + ("" if values == given.values else f"  ({values:,} values)"))
    if given.json:
        given.json.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
