"""How a round grows: with the ranks, with the number of clients there are, and with the parameters.

    python benchmarks/bench_scaling.py [--json FILE]

ranks: the w1 network of workloads.py in parallel mode with 1 to as many workers as there are cores; strong (a cohort of 12) and
weak (6 clients a worker). clients: serial rounds of 100 out of 10^2 to 10^6 clients whose training does nothing, with the
server's resident memory. parameters: serial rounds of 4 clients that touch every one of 10^4 to 10^8 float32 once; what is
beyond that touch is the engine's.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from federation import EvalResult, Learner, TrainResult

HERE = Path(__file__).resolve().parent
TOUCHING = ("components.model=bench_matrix:OneArray", "components.learner=bench_scaling:Touch", "mode=serial",
            "data.dataset=bench_scaling:points")


class Touch(Learner):
    """Multiplies every parameter once."""

    def fit(self, config: Mapping[str, Any] | None = None) -> TrainResult:
        """One pass."""
        weights = self.model.weights
        np.multiply(weights[0], np.float32(0.999), out=weights[0])
        return TrainResult(weights, 1)

    def evaluate(self, config: Mapping[str, Any] | None = None) -> EvalResult:
        """Nothing."""
        return EvalResult(0)


def points(count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """For data.dataset: as many samples as there are clients."""
    return np.zeros((count, 1), np.float32), np.arange(count) % 2


def run(*settings: str) -> tuple[float, float]:
    """Milliseconds a round (the median of all but the first two) and the peak of resident memory in MB."""
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, "-m", "federation.launch", "--quiet", "--set", *settings, "data.test_fraction=0", "data.cache=off",
                "trainer_config.evaluate=none", "checkpoint.every=1000", "tracker=none", f"output_dir={folder}/run"]
        process = subprocess.Popen(line, env={**os.environ, "OMP_NUM_THREADS": "1",
                                              "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"})
        peak = 0.0
        while process.poll() is None:
            try:
                found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
            except OSError:
                break
            peak = max(peak, int(found[1]) / 1e3 if found else 0.0)
            time.sleep(0.05)
        if process.wait():
            sys.exit(f"{' '.join(settings)} ended with {process.returncode}")
        rows = [json.loads(text) for text in Path(folder, "run", "metrics.jsonl").read_text().splitlines()][2:]
    return 1e3 * statistics.median(sum(seconds for phase, seconds in row["seconds"].items() if not phase.startswith("fit_"))
                                   for row in rows), peak


def ranks() -> dict[str, Any]:
    """Strong and weak."""
    common = ("components.model=workloads:W1Model", "data.dataset=workloads:w1", "num_clients=100", "learner_config.local_epochs=1",
              "learner_config.batch_size=20", "trainer_config.max_rounds=25")
    found: dict[str, Any] = {}
    for workers in range(1, (os.cpu_count() or 1) + 1):
        for kind, cohort in (("strong", 12), ("weak", 6 * workers)):
            mode = ("mode=serial",) if workers == 1 else ("mode=parallel", f"num_workers={workers}")
            found[f"{kind}, {workers}"] = run(*common, *mode, f"trainer_config.cohort_size={cohort}")[0]
            first = found[f"{kind}, 1"]
            efficiency = first / found[f"{kind}, {workers}"] / (workers if kind == "strong" else 1)
            taken = found[f"{kind}, {workers}"]
            print(f"| {kind} scaling, {workers} workers | {taken:.1f} ms | efficiency {efficiency:.2f} |", flush=True)
    return found


def clients() -> dict[str, Any]:
    """From 100 to a million."""
    found: dict[str, Any] = {}
    for power in range(2, 7):
        taken, memory = run(*TOUCHING, "model_config.values=100", f"data.dataset_config.count={10**power}",
                            f"num_clients={10**power}", "trainer_config.cohort_size=100", "trainer_config.max_rounds=12")
        found[f"10^{power} clients"] = taken, memory
        print(f"| 10^{power} clients, 100 in a round | {taken:.1f} ms | {memory:.0f} MB |", flush=True)
    return found


def parameters() -> dict[str, Any]:
    """From ten thousand to a hundred million."""
    found: dict[str, Any] = {}
    for power in range(4, 9):
        taken, memory = run(*TOUCHING, "data.dataset_config.count=4", f"model_config.values={10**power}", "num_clients=4",
                            "trainer_config.max_rounds=8")
        found[f"10^{power} parameters"] = taken, memory
        print(f"| 10^{power} parameters, 4 clients | {taken:.1f} ms | {memory:.0f} MB |", flush=True)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = {"ranks": ranks(), "clients": clients(), "parameters": parameters()}
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
