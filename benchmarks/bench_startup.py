"""From the command to the end of the first round: `python -m federation.launch`, serial, parallel and under mpirun.

    python benchmarks/bench_startup.py [--repeats 5] [--json FILE]

The 784-200-10 network in torch, 10 clients; the clock stops when the first row is in metrics.jsonl. For comparison: a Python
that imports torch and does nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from workloads import WORKLOADS

HERE = Path(__file__).resolve().parent


def seconds_to_first_row(mode: str) -> float:
    """Of one start."""
    given = WORKLOADS["w1"]
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, "-m", "federation.launch", "--quiet", "--set", f"mode={mode}", "num_workers=2",
                "components.model=workloads:W1Model", "data.dataset=workloads:w1", "data.cache=off", "data.test_fraction=0",
                "num_clients=10", "learner_config.local_epochs=1", f"learner_config.batch_size={given.batch}",
                "trainer_config.max_rounds=2", "trainer_config.evaluate=none", "tracker=none", f"output_dir={folder}/run"]
        if mode == "mpi":
            root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
            line = [str(Path(sys.executable).with_name("mpirun")), *root, "--oversubscribe", "-n", "3", *line]
        began = time.perf_counter()
        process = subprocess.Popen(line, env={**os.environ, "OMP_NUM_THREADS": "1",
                                              "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"})
        rows = Path(folder, "run", "metrics.jsonl")
        while not (rows.exists() and rows.stat().st_size):
            if process.poll():
                sys.exit(f"{mode} ended with {process.returncode}")
            time.sleep(0.005)
        taken = time.perf_counter() - began
        process.wait()
    return taken


def seconds_of_torch() -> float:
    """Python and torch alone."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, list[float]] = {}
    for _ in range(options.repeats + 1):
        found.setdefault("import torch", []).append(seconds_of_torch())
        for mode in ("serial", "parallel", "mpi"):
            found.setdefault(mode, []).append(seconds_to_first_row(mode))
    medians = {name: statistics.median(values[1:]) for name, values in found.items()}
    for name, value in medians.items():
        print(f"| {name} | {value:.2f} s |")
    if options.json:
        options.json.write_text(json.dumps(medians))


if __name__ == "__main__":
    main()
