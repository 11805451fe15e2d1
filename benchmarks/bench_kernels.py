"""Times the native kernels on one core against NumPy's ``a += c * x``, in one run.

    python benchmarks/bench_kernels.py [--values 25000000] [--repeats 9] [--variant avx2] [--json FILE]

Prints for each kernel the median and the fastest of the repeats, in milliseconds, and its ratio to NumPy's median.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from federation import kernels

WARM_UPS = 2


def timed(function: Callable[[], object], repeats: int) -> list[float]:
    """Milliseconds of each repeat, after warming up."""
    for _ in range(WARM_UPS):
        function()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append((time.perf_counter() - began) * 1e3)
    return times


def measure(values: int, repeats: int) -> dict[str, dict[str, float]]:
    """Median, fastest and ratio to NumPy for each kernel, on float32 arrays of `values` elements."""
    rng = np.random.default_rng(0)
    start = rng.standard_normal(values, np.float32)
    update = start + np.float32(0.01) * rng.standard_normal(values, np.float32)
    running = np.zeros(values, np.float32)
    total, upper = np.zeros(values, np.int64), np.zeros(values, np.int64)
    out = np.empty_like(start)
    share, factor = 0.01, 2.0**45

    def numpy_axpy() -> None:
        nonlocal running
        running += np.float32(share) * update

    def exact_in_numpy() -> None:
        nonlocal total
        total += np.rint((update.astype(np.float64) - start) * factor).astype(np.int64)

    subjects: dict[str, Callable[[], object]] = {
        "numpy a += c * x": numpy_axpy,
        "numpy, exact": exact_in_numpy,
        "numpy copyto": lambda: np.copyto(out, start),
        "accumulate": lambda: kernels.accumulate(total, update, start, factor),
        "accumulate, large values": lambda: kernels.accumulate(total, update, start, factor * 2.0**12),
        "accumulate_wide, 2 limbs": lambda: kernels.accumulate_wide([total, upper], update, start, factor),
        "finish": lambda: kernels.finish(out, start, [total], 2.0**-45, 100.0),
        "finish, 2 limbs": lambda: kernels.finish(out, start, [total, upper], 2.0**-45, 100.0),
        "axpy": lambda: kernels.axpy(running, update, share),
        "examine": lambda: kernels.examine(update),
        "copy": lambda: kernels.copy(out, start),
    }
    times = {name: timed(subject, repeats) for name, subject in subjects.items()}
    reference = statistics.median(times["numpy a += c * x"])
    return {name: {"median_ms": statistics.median(each), "fastest_ms": min(each),
                   "ratio_to_numpy": statistics.median(each) / reference} for name, each in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--values", type=int, default=25_000_000, help="elements of an array (default 25 million)")
    parser.add_argument("--repeats", type=int, default=9, help="timed repeats of each kernel (default 9)")
    parser.add_argument("--variant", choices=kernels.variants(), default=kernels.variant(), help="instruction set")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE too")
    arguments = parser.parse_args()
    kernels.select_variant(arguments.variant)
    results = measure(arguments.values, arguments.repeats)
    print(f"{arguments.values} values, variant {arguments.variant}")
    print(f"{'':26}{'median':>10}{'fastest':>10}{'to NumPy':>10}")
    for name, result in results.items():
        print(f"{name:26}{result['median_ms']:>8.2f}ms{result['fastest_ms']:>8.2f}ms{result['ratio_to_numpy']:>10.2f}")
    if arguments.json:
        report = {"values": arguments.values, "variant": arguments.variant, "machine": platform.machine(),
                  "numpy": np.__version__, "results": results}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
