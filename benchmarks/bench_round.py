"""A round of this project against loops by hand and against other frameworks, on the same work (see workloads.py).

    python benchmarks/bench_round.py [--work w1 w2 w3] [--repeats 3] [--peers appfl flower pfl] [--bf16]
                                      [--json FILE] [--plot FILE]

Every competitor is a process of its own, and they take turns, `--repeats` times; the table has the medians over all rounds but
each first one. Runs of this project have the exact reduction, metrics.jsonl and progress; no evaluation and one checkpoint at
the end, as the others have none. A peer is installed by this script, in an environment of its own under ~/.cache; one that
cannot be installed or run is skipped, with the reason.

    plain        a loop as a user writes it (1 process)
    optimised    a loop written for speed (1 process); the measure of all others
    serial, compiled, bf16, parallel, mpi    this project: 1 process, with learner_config.compile, with precision: bfloat16 (only
                 where asked for, as it does not pay without hardware for it), 2 workers, and mpirun -n 3
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from workloads import WORKLOADS

HERE = Path(__file__).resolve().parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"}
PEERS = {"pfl": ("pfl[pytorch]",), "flower": ("flwr[simulation]",), "appfl": ("appfl==1.12.0", "openmpi", "mpi4py")}
#: torch as it is here, so that nobody has another.
TORCH = ("torch==2.13.0", "numpy")


def by_hand(loop: str, work: str) -> list[float]:
    """A loop of workloads.py."""
    return numbers([sys.executable, str(HERE / "workloads.py"), loop, work])


def ours(mode: str, work: str) -> list[float]:
    """A run of this project."""
    given = WORKLOADS[work]
    learner = ["components.learner=workloads:Scaling"] if work == "w3" else [
        "learner_config.local_epochs=1", f"learner_config.batch_size={given.batch}", f"learner_config.client_lr={given.rate}",
        *(["learner_config.compile=true"] if mode == "compiled" else []),
        *(["learner_config.precision=bfloat16"] if mode == "bf16" else [])]
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"components.model=workloads:{work.upper()}Model", *learner, f"data.dataset=workloads:{work}",
                    "data.cache=off", "data.test_fraction=0", f"num_clients={given.clients}", "num_workers=2",
                    f"trainer_config.max_rounds={given.rounds + 1}", f"trainer_config.cohort_size={given.cohort}",
                    "trainer_config.evaluate=none", f"checkpoint.every={given.rounds + 1}", "tracker=none",
                    f"output_dir={folder}/run"]
        line = [sys.executable, "-m", "federation.launch", "--set", *settings]
        if mode == "mpi":
            line = [*three_ranks(Path(sys.executable).parent), *line, "mode=mpi"]
        else:
            line.append(f"mode={'parallel' if mode == 'parallel' else 'serial'}")
        run(line)
        rows = [json.loads(text) for text in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    # fit_max and fit_mean are parts of fit.
    return [1e3 * sum(seconds for phase, seconds in row["seconds"].items() if not phase.startswith("fit_")) for row in rows[1:]]


def peer(name: str, work: str) -> list[float]:
    """A peer's script, in the peer's environment."""
    programs = environment(name) / "bin"
    start = three_ranks(programs) if name == "appfl" else []
    return numbers([*start, str(programs / "python"), str(HERE / "peers" / f"{name}_round.py"), work])


def three_ranks(programs: Path) -> list[str]:
    """The beginning of a line that runs under the mpirun of an environment: the server, and 2 that train."""
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    return [str(programs / "mpirun"), *root, "--oversubscribe", "-n", "3"]


def environment(name: str) -> Path:
    """Made at the first call."""
    folder = Path.home() / ".cache" / "federation-benchmarks" / name
    if not (folder / "made").exists():
        shutil.rmtree(folder, ignore_errors=True)
        run([sys.executable, "-m", "venv", str(folder)])
        run([str(folder / "bin" / "pip"), "install", "-q", *TORCH, *PEERS[name]])
        (folder / "made").touch()
    return folder


def run(line: list[str]) -> str:
    """Standard output; RuntimeError with the last words of one that fails."""
    done = subprocess.run(line, env=ENVIRONMENT, capture_output=True, text=True, timeout=1800, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(line[:4])} ... ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout


def numbers(line: list[str]) -> list[float]:
    """The list of milliseconds that a script prints last."""
    return [float(number) for number in json.loads(run(line).strip().splitlines()[-1])]


def measure(work: str, competitors: list[str], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of every round of each competitor that runs."""
    times: dict[str, list[float]] = {name: [] for name in competitors}
    for _ in range(repeats):
        for name in list(times):
            try:
                if name in PEERS:
                    times[name] += peer(name, work)
                elif name in ("plain", "optimised"):
                    times[name] += by_hand(name, work)
                else:
                    times[name] += ours(name, work)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                print(f"{work}: {name} is left out: {error}", file=sys.stderr)
                del times[name]
    return times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="+", choices=sorted(WORKLOADS), default=sorted(WORKLOADS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peers", nargs="*", choices=sorted(PEERS), default=[])
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    found = {}
    for work in options.work:
        steps = work != "w3"
        competitors = ["plain", "optimised", "serial", *(["compiled"] if steps else []),
                       *(["bf16"] if options.bf16 and steps else []), "parallel", "mpi", *options.peers]
        times = measure(work, competitors, options.repeats)
        medians = {name: statistics.median(values) for name, values in times.items() if values}
        found[work] = medians
        print(f"\n{work} on {platform.processor() or platform.machine()}, {os.cpu_count()} cores\n\n"
              "| | ms a round | pace of the optimised loop | pace of serial |\n| --- | --- | --- | --- |")
        for name, median in medians.items():
            hand, serial = medians.get("optimised", median), medians.get("serial", median)
            print(f"| {name} | {median:.1f} | {hand / median:.2f} | {serial / median:.2f} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    if options.plot:
        plot(found, options.plot)


def plot(found: dict[str, dict[str, float]], path: Path) -> None:
    """Bars of the paces."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found), figsize=(4 * len(found), 3), squeeze=False)
    for axis, (work, medians) in zip(axes[0], found.items(), strict=True):
        axis.barh(list(medians), [medians["optimised"] / value for value in medians.values()])
        axis.axvline(1.0, color="black", linewidth=0.8)
        axis.set_title(work)
        axis.set_xlabel("pace, optimised loop = 1")
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
