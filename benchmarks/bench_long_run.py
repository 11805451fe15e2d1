"""Ten thousand rounds of a tiny model: does anything grow?

    python benchmarks/bench_long_run.py [--rounds 10000] [--modes serial parallel mpi] [--json FILE]

Each process of the run (the server, a worker, a rank) writes down, every hundredth of the run: resident memory, open files,
threads, and pieces of shared memory. The table shows each at 10 % of the run and at its end. The learner of the
runs is here as well: it takes a step towards the client's mean. Checkpoints are written every 100 rounds, metrics every round.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from federation import EvalResult, Learner, TrainResult

HERE = Path(__file__).resolve()
WATCHED = ("resident_mb", "files", "threads", "segments")


class Watched(Learner):
    """Half the way to the mean of the client's samples; looks at its process now and then."""

    every = 1
    last = 0

    def __init__(self, model: Any = None, data: Any = None, notes: str = "", every: int = 100) -> None:
        super().__init__(model, data)
        self.notes = Path(notes)
        self.every = every

    def fit(self, config: Any = None) -> TrainResult:
        """One step."""
        weights = [array.copy() for array in self.get_weights()]
        weights[0] += 0.5 * (self.data.x.mean(axis=0) - weights[0])
        round = self.context.round
        if round % self.every == 0 and round != self.last:
            self.last = round
            note(self.notes, f"trains-{os.getpid()}", round)
        return TrainResult(weights, self.data.get_num_samples())

    def evaluate(self, config: Any = None) -> EvalResult:
        """A number that depends on every weight."""
        return EvalResult(len(self.data.y_test), {"size": float(abs(self.get_weights()[0]).sum())})


def note(folder: Path, who: str, round: int) -> None:
    """Append what this process holds at present."""
    files = os.listdir("/proc/self/fd")
    maps = Path("/proc/self/maps").read_text()
    row = {"round": round, "resident_mb": int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6,
           "files": len(files), "threads": len(os.listdir("/proc/self/task")),
           "segments": sum("/dev/shm" in line or "memfd:" in line for line in maps.splitlines())}
    with (folder / f"{who}.jsonl").open("a") as notes:
        notes.write(json.dumps(row) + "\n")


def watch_server(folder: Path, every: int) -> None:
    """Have rank 0 of this process's run write its notes too, at each record."""
    from federation.infra.recorder import Recorder

    record = Recorder.record

    def watched(self: Recorder, row: Any) -> None:
        record(self, row)
        if row["round"] % every == 0:
            note(folder, "serves", row["round"])

    Recorder.record = watched  # type: ignore[method-assign]


def run(mode: str, rounds: int, folder: Path) -> dict[str, Any]:
    """One run; the first and the last notes of each process."""
    notes = folder / f"notes-{mode}"
    notes.mkdir()
    line = [sys.executable, str(HERE), "--inside", mode, str(rounds), str(notes), str(folder / mode)]
    if mode == "mpi":
        program = Path(sys.executable).parent / "mpirun"
        line = [str(program if program.exists() else shutil.which("mpirun")),
                *(["--allow-run-as-root"] if os.geteuid() == 0 else []), "--oversubscribe", "-n", "3", *line]
    began = time.monotonic()
    subprocess.run(line, check=True, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)})
    found: dict[str, Any] = {"seconds": time.monotonic() - began, "processes": {}}
    for path in sorted(notes.iterdir()):
        rows = [json.loads(text) for text in path.read_text().splitlines()]
        found["processes"][path.stem.partition("-")[0]] = {"early": rows[len(rows) // 10], "late": rows[-1]}
    found["rows"] = len((folder / mode / "metrics.jsonl").read_text().splitlines())
    return found


def inside(mode: str, rounds: int, notes: Path, folder: str) -> None:
    """What each process of the run does."""
    import federation

    every = max(1, rounds // 100)
    watch_server(notes, every)
    federation.run({
        "mode": mode, "num_workers": 2, "num_clients": 8, "output_dir": folder, "tracker": "none",
        "components": {"learner": "bench_long_run:Watched", "model": "model.numpy.linear"},
        "learner_config": {"notes": str(notes), "every": every}, "checkpoint": {"every": 100},
        "trainer_config": {"max_rounds": rounds, "cohort_size": 4}})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--modes", nargs="+", default=["serial", "parallel", "mpi"])
    parser.add_argument("--inside", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.inside:
        mode, rounds, notes, place = given.inside
        inside(mode, int(rounds), Path(notes), place)
        return
    results = {}
    print("| mode | process | " + " | ".join(WATCHED) + " | rounds | ms a round |\n| --- |" + " --- |" * (len(WATCHED) + 3))
    with tempfile.TemporaryDirectory() as folder:
        for mode in given.modes:
            found = results[mode] = run(mode, given.rounds, Path(folder))
            for who, rows in found["processes"].items():
                growth = " | ".join(f"{rows['early'][key]:.4g} to {rows['late'][key]:.4g}" for key in WATCHED)
                print(f"| {mode} | {who} | {growth} | {found['rows']} | {found['seconds'] / given.rounds * 1e3:.1f} |", flush=True)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
