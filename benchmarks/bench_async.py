"""What more ranks bring to asynchronous training by the virtual clock, whose result they do not change.

    python benchmarks/bench_async.py [--rounds 60] [--workers 1 2] [--json FILE]

FedBuff with a buffer of 5 and ten clients in training, the 784-200-10 network on made-up data. Seconds are those of the
phases `fit` and `step` in metrics.jsonl, without the first five versions; the server sleeps while workers train.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import federation


def measure(folder: str, rounds: int, workers: int | None) -> tuple[float, str]:
    """Seconds a version, and the digest; None for serial mode."""
    config: dict[str, Any] = {
        "mode": "serial" if workers is None else "parallel", "num_workers": workers, "num_clients": 40, "seed": 1,
        "components": {"trainer": "federated.trainer.async", "aggregator": "federated.aggregator.fedbuff"},
        "aggregator_config": {"buffer_size": 5},
        "trainer_config": {"max_rounds": rounds, "concurrency": 10, "evaluate": "none",
                           "latency": {"kind": "lognormal", "spread": 0.5}},
        "learner_config": {"local_epochs": 5, "batch_size": 20, "client_lr": 0.05},
        "data": {"dataset": "synthetic", "dataset_config": {"num_samples": 8000, "num_features": 784}},
        "checkpoint": {"every": rounds}, "tracker": "none", "output_dir": f"{folder}/{workers}"}
    digest = federation.run(config).weights_sha256
    rows = [json.loads(line) for line in (Path(folder) / str(workers) / "metrics.jsonl").read_text().splitlines()][5:]
    return sum(row["seconds"]["fit"] + row["seconds"]["step"] for row in rows) / len(rows), digest


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        serial, digest = measure(folder, given.rounds, None)
        print(f"serial: {serial * 1e3:.1f} ms a version of 5 updates")
        for workers in given.workers:
            seconds, found = measure(folder, given.rounds, workers)
            same = "the same digest" if found == digest else f"ANOTHER DIGEST: {found}"
            print(f"{workers} workers: {seconds * 1e3:.1f} ms, {serial / seconds:.2f} times as fast as serial, {same}")
            results[workers] = seconds
    if given.json:
        given.json.write_text(json.dumps({"serial": serial, "workers": results, "digest": digest}))


if __name__ == "__main__":
    main()
