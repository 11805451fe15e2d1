"""Runs that lose ranks, workers, or all their processes, at random moments: do they end as if nothing had been?

    python benchmarks/bench_survival.py [--runs 50] [--deaths 3] [--only mpi|parallel|job] [--set KEY=VALUE ...] [--json FILE]

Three kinds of misfortune, `--runs` runs of each: `--deaths` kill -9 of client ranks under `mpirun --with-ft ulfm -n 6`; as
many of workers in parallel mode; and one kill -9 of everything (serial, parallel and mpirun -n 3 in turn), after which the
run is started again with --resume. Each must end with status 0 and with the digest and the rows of the undisturbed run.

Recovery is the time from a kill until the server has said that it goes on (all ranks that are left have registered, and the
round is sent out again); after the death of a whole job, from its second start until its next round is recorded. `--set` gives
the runs more settings, such as other rules and trainers.
This file is the plugin of the runs as well: its learner takes a step towards the client's mean, and a little time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from federation import EvalResult, Learner, TrainResult, register

HERE = Path(__file__).resolve()
SETTINGS = [f"plugins=[{HERE}]", "components.learner=bench.learner.steps", "components.model=model.numpy.linear",
            "num_clients=12", "trainer_config.max_rounds=100", "tracker=none"]
GOES_ON = re.compile(r"going on after round \d+ with (\d+) ranks")


@register("bench.learner.steps")
class Steps(Learner):
    """Half the way to the mean of the client's samples."""

    def fit(self, config: Any = None) -> TrainResult:
        """One step, and 10 ms."""
        time.sleep(0.01)
        weights = [array.copy() for array in self.get_weights()]
        weights[0] += 0.5 * (self.data.x.mean(axis=0) - weights[0])
        return TrainResult(weights, self.data.get_num_samples())

    def evaluate(self, config: Any = None) -> EvalResult:
        """A number that depends on every weight."""
        return EvalResult(len(self.data.y_test), {"size": float(abs(self.get_weights()[0]).sum())})


class Run:
    """One run as a process of its own, whose log is read as it comes."""

    def __init__(self, folder: Path, mode: str, ranks: int = 0, ulfm: bool = False, resume: bool = False) -> None:
        line = [sys.executable, "-m", "federation.launch", *(["--resume"] if resume else []), "--quiet",
                *([] if ranks else ["--mode", mode]), "--output_dir", str(folder), "--set", *SETTINGS, "num_workers=2"]
        if ranks:
            program = Path(sys.executable).parent / "mpirun"
            line = [str(program if program.exists() else shutil.which("mpirun")), *(["--with-ft", "ulfm"] if ulfm else []),
                    *(["--allow-run-as-root"] if os.geteuid() == 0 else []), "--oversubscribe", "-n", str(ranks), *line]
        self.folder = folder
        self.said: list[float] = []
        self.log: list[str] = []
        self.began = time.monotonic()
        self.process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, errors="replace",
                                        env={**os.environ, "OMP_NUM_THREADS": "1"})
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if GOES_ON.search(line):
                self.said.append(time.monotonic())

    def rows(self) -> list[dict[str, Any]]:
        """What has been recorded so far, without times."""
        try:
            text = (self.folder / "metrics.jsonl").read_text()
        except FileNotFoundError:
            return []
        return [{key: value for key, value in json.loads(line).items() if key != "seconds"}
                for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def wait_for_row(self, number: int) -> None:
        """Until round `number` is recorded, or the run has ended."""
        while len(self.rows()) < number and self.process.poll() is None:
            time.sleep(0.005)

    def clients(self) -> list[int]:
        """Processes of ranks 1 and above."""
        below = descendants(self.process.pid)
        return [pid for pid in below if _environment(pid).get("OMPI_COMM_WORLD_RANK", "0") != "0"] or \
               [pid for pid in below if "forkserver" in _line(_parent(pid))]

    def end(self) -> int:
        """Its status."""
        try:
            status = self.process.wait(timeout=120)
        except subprocess.TimeoutExpired:
            self.kill()
            status = -1
        self._reader.join()
        return status

    def kill(self) -> None:
        """All of it, at once."""
        for pid in [self.process.pid, *descendants(self.process.pid)]:
            _kill(pid)
        self.process.wait()


def lose_ranks(run: Run, deaths: int, draws: random.Random) -> list[float]:
    """Kill `deaths` client ranks, at random moments of the first rounds; seconds of each recovery."""
    recoveries = []
    run.wait_for_row(1)
    for _ in range(deaths):
        time.sleep(draws.uniform(0.0, 0.6))
        known, there = len(run.said), run.clients()
        if not there or run.process.poll() is not None:
            break
        killed = time.monotonic()
        _kill(draws.choice(there))
        while len(run.said) == known and run.process.poll() is None and time.monotonic() < killed + 30:
            time.sleep(0.001)
        if len(run.said) > known:
            recoveries.append(run.said[known] - killed)
    return recoveries


def lose_everything(folder: Path, number: int, draws: random.Random) -> tuple[Run, list[float]]:
    """Kill a whole run at a random moment, and start it again in the next mode; seconds until its next round."""
    modes: list[Callable[..., Run]] = [lambda **how: Run(folder, "serial", **how), lambda **how: Run(folder, "parallel", **how),
                                       lambda **how: Run(folder, "mpi", ranks=3, **how)]
    first = modes[number % 3]()
    time.sleep(draws.uniform(0.3, 5.0))
    first.kill()
    done = len(first.rows())
    second = modes[(number + 1) % 3](resume=True)
    second.wait_for_row(done + 1)
    return second, [time.monotonic() - second.began]


def measure(kind: str, runs: int, deaths: int, folder: Path, reference: Run) -> dict[str, Any]:
    """`runs` runs of one kind."""
    seconds: list[float] = []
    good = 0
    for number in range(runs):
        draws = random.Random(f"{kind} {number}")
        place = folder / f"{kind}{number}"
        if kind == "job":
            run, found = lose_everything(place, number, draws)
        else:
            run = Run(place, "parallel") if kind == "parallel" else Run(place, "mpi", ranks=6, ulfm=True)
            found = lose_ranks(run, deaths, draws)
        status = run.end()
        same = status == 0 and digest(run) == digest(reference) and run.rows() == reference.rows()
        complete = len(found) == (1 if kind == "job" else deaths)
        if not same or not complete:
            print(f"{kind} {number}: status {status}, {len(found)} recoveries\n{''.join(run.log)}", file=sys.stderr)
        good += same and complete
        seconds += found
        shutil.rmtree(place)
    seconds.sort()
    return {"runs": runs, "good": good, "deaths": len(seconds), "median": statistics.median(seconds),
            "p90": seconds[int(0.9 * (len(seconds) - 1))], "longest": seconds[-1]}


def digest(run: Run) -> str:
    """Of the final weights."""
    return str(json.loads((run.folder / "summary.json").read_text())["weights_sha256"])


def descendants(pid: int) -> list[int]:
    """All processes below `pid`."""
    found, front = [], [pid]
    while front:
        front = [int(child) for parent in front for child in _children(parent).split()]
        found += front
    return found


def _children(pid: int) -> str:
    try:
        return " ".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    except OSError:
        return ""


def _environment(pid: int) -> dict[str, str]:
    try:
        text = Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:
        return {}
    return dict(part.split("=", 1) for part in text.split("\0") if "=" in part)


def _line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def main() -> int:
    """Measure and print; 1 where a run did not end as it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--deaths", type=int, default=3)
    parser.add_argument("--only", choices=["mpi", "parallel", "job"])
    parser.add_argument("--set", nargs="+", default=["trainer_config.cohort_size=6"], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    SETTINGS.extend(given.set)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        reference = Run(Path(folder) / "reference", "serial")
        assert reference.end() == 0, "".join(reference.log)
        print("| what dies | runs | as undisturbed | deaths | recovery: median | 90 % | longest |\n| --- |" + " --- |" * 6)
        names = {"mpi": "client ranks (ULFM)", "parallel": "workers", "job": "the whole job"}
        for kind in [given.only] if given.only else list(names):
            found = results[kind] = measure(kind, given.runs, given.deaths, Path(folder), reference)
            print(f"| {names[kind]} | {found['runs']} | {found['good']} | {found['deaths']} | {found['median']:.2f} s | "
                  f"{found['p90']:.2f} s | {found['longest']:.2f} s |", flush=True)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1))
    return int(any(found["good"] < found["runs"] for found in results.values()))


if __name__ == "__main__":
    sys.exit(main())
