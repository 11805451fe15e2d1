"""What compression saves, and what it costs in accuracy and time.

    python benchmarks/bench_compression.py [--json FILE] [--seeds 3] [--rounds 30]

Digits, 20 clients with an even share each, all in every round, the 64-200-10 network (15,010 parameters), 2 local epochs.
For each codec: the bytes of an update against the model's own, the accuracy after half of the rounds and after all of them
(means over seeds, and the spread), and the milliseconds to pack and unpack an update of a million float32.

Then what `transport.compression: zstd` makes of the trained weights, of a client's change, and of an exact sum's words.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import federation
from federation.core.compression import Compression, Packing
from federation.core.updates import ExactSum
from federation.core.weights import Weights
from node_comm.wire import Outgoing

CODECS: dict[str, dict[str, Any]] = {
    "none": {"codec": "none"}, "bfloat16": {"codec": "bfloat16"}, "float16": {"codec": "float16"}, "int8": {"codec": "int8"},
    "topk 10 %": {"codec": "topk", "fraction": 0.1}, "topk 1 %": {"codec": "topk", "fraction": 0.01},
    "topk 0.1 %": {"codec": "topk", "fraction": 0.001},
}


def train(folder: str, rounds: int, compression: dict[str, Any], seed: int = 0) -> Any:
    """A run in `folder`."""
    return federation.run({
        "seed": seed, "num_clients": 20, "mode": "serial", "output_dir": f"{folder}/{rounds}", "tracker": "none",
        "components": {"model": "model.torch.mlp"}, "learner_config": {"local_epochs": 2, "batch_size": 16, "client_lr": 0.1},
        "trainer_config": {"max_rounds": rounds, "compression": compression}, "checkpoint": {"every": rounds}}, quiet=True)


def accuracies(compression: dict[str, Any], seed: int, rounds: int) -> tuple[float, float, float]:
    """Accuracy at half time and at the end, and the bytes of one update."""
    with tempfile.TemporaryDirectory() as folder:
        train(folder, rounds, compression, seed)
        rows = [json.loads(line) for line in (Path(folder) / str(rounds) / "metrics.jsonl").read_text().splitlines()]
    return rows[rounds // 2 - 1]["accuracy"], rows[-1]["accuracy"], rows[-1]["bytes_up"] / 20


def milliseconds(compression: dict[str, Any]) -> tuple[float, float]:
    """To pack and to unpack a million values."""
    random = np.random.default_rng(0)
    start = Weights.of({"w": random.normal(size=1_000_000).astype(np.float32)})
    arrays = [start[0] + random.normal(0, 1e-3, 1_000_000).astype(np.float32)]
    packing = Packing(Compression(**compression), start)
    took: list[tuple[float, float]] = []
    for _ in range(7):
        began = time.perf_counter()
        packed = packing.pack("c", arrays, random)
        between = time.perf_counter()
        assert packed is not None
        packing.unpack("c", packed.data)
        took.append((between - began, time.perf_counter() - between))
    return 1e3 * statistics.median(pack for pack, _ in took), 1e3 * statistics.median(unpack for _, unpack in took)


def zipped() -> dict[str, float]:
    """What is left of arrays of a run, as a share."""
    with tempfile.TemporaryDirectory() as folder:
        start, end = (Weights.of(train(folder, rounds, {}).weights) for rounds in (5, 6))
    total = ExactSum(start.layout, start, total_samples=1437, cohort_size=20)
    total.add("c", end, 72)
    change = np.concatenate([(after - before).reshape(-1) for after, before in zip(end, start, strict=True)])
    arrays = {"weights, float32": end.buffer.view(np.float32), "a change, float32": change, "an exact sum, int64": total.limbs[0]}
    return {name: sum(map(len, Outgoing(b"", array, 1))) / array.nbytes for name, array in arrays.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    print("| codec | bytes of an update | accuracy, half time | at the end | spread | pack, ms | unpack, ms |\n"
          "| --- | --- | --- | --- | --- | --- | --- |")
    for name, compression in CODECS.items():
        runs = [accuracies(compression, seed, options.rounds) for seed in range(options.seeds)]
        half, end = [run[0] for run in runs], [run[1] for run in runs]
        pack, unpack = (0.0, 0.0) if name == "none" else milliseconds(compression)
        found[name] = {"bytes": runs[0][2], "half": half, "end": end, "pack_ms": pack, "unpack_ms": unpack}
        share = runs[0][2] / found["none"]["bytes"]
        print(f"| {name} | {100 * share:.2g} % | {statistics.mean(half):.3f} | {statistics.mean(end):.3f} | "
              f"{max(end) - min(end):.3f} | {pack:.1f} | {unpack:.1f} |", flush=True)
    found["zstd"] = zipped()
    for name, share in found["zstd"].items():
        print(f"zstd leaves {100 * share:.0f} % of {name}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
