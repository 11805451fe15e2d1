"""Workers of parallel mode that are killed: the run goes on, to the same end."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.mpi_helper import kill_tree
from tests.system.conftest import ENVIRONMENT, Finished, command
from tests.system.test_failure import faulty

SETTINGS = [*faulty("none", delay=0.03), "num_clients=8", "trainer_config.cohort_size=4", "trainer_config.max_rounds=25"]


def workers(pid: int) -> list[int]:
    """Processes of ranks 1 and above of the run `pid`; none while they are being started."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        try:
            if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text():
                found.append(int(child))
        except FileNotFoundError:
            continue
    return found


def run_killing(folder: Path, moments: list[float], settings: list[str], number: signal.Signals = signal.SIGKILL) -> Finished:
    """Run, and kill a worker at each of these moments: seconds after the last kill, or after the start."""
    began = time.monotonic()
    with subprocess.Popen(command(folder=folder, settings=settings, mode="parallel"), start_new_session=True, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **ENVIRONMENT}) as process:
        try:
            for moment in moments:
                time.sleep(moment)
                for victim in random.Random(moment).sample(there := workers(process.pid), k=min(1, len(there))):
                    os.kill(victim, number)
            stdout, stderr = process.communicate(timeout=120)
        except BaseException:
            kill_tree(process.pid)
            raise
    return Finished(process.returncode, stdout, stderr, folder, time.monotonic() - began)


def test_killed_workers_are_replaced(launch, tmp_path):
    """Three deaths a run at random moments, start-up included: the digest and the rows of the undisturbed run, status 0."""
    reference = launch(mode="serial", settings=SETTINGS)
    draws = random.Random(11)
    said = 0
    for attempt in range(3):
        run = run_killing(tmp_path / f"killed{attempt}", [draws.uniform(0.2, 2.5) for _ in range(3)], SETTINGS)
        assert run.status == 0, run.stderr
        assert run.result == reference.result
        said += run.stderr.count("was killed by SIGKILL: starting new workers, to go on after round")
    assert said >= 3, "the kills did not meet the runs"


def test_what_clients_keep_survives_with_the_checkpoint(launch, tmp_path):
    """SCAFFOLD: the variates of clients that lived on the dead worker come back."""
    settings = ["num_clients=6", "components.aggregator=federated.aggregator.scaffold", "trainer_config.max_rounds=12",
                "trainer_config.cohort_size=3", "data.dataset=synthetic", "components.model=model.numpy.linear",
                "num_workers=2", "tracker=none"]
    reference = launch(mode="serial", settings=settings)
    run = run_killing(tmp_path / "killed", [2.0, 1.5], settings)
    assert run.status == 0, run.stderr
    assert run.result == reference.result


def test_a_worker_that_dies_at_once_each_time_ends_the_run(launch):
    """S-LIFE-03: after three worlds that got no further, with the reason and a status of 1, and with its checkpoint."""
    run = launch(mode="parallel", settings=faulty("segfault", client="client_1", round=2), status=1)
    assert run.stderr.count("was killed by SIGSEGV: starting new workers, to go on after round 1") == 3
    assert "giving up" in run.stderr
    assert [row["round"] for row in run.rows] == [1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_stops_the_run(launch, tmp_path, number):
    """It means the run, not a worker: a checkpoint and status 75, and nothing is started again."""
    folder = tmp_path / "stopped"
    with subprocess.Popen(command(folder=folder, settings=SETTINGS, mode="parallel"), start_new_session=True, text=True,
                          stderr=subprocess.PIPE, env={**os.environ, **ENVIRONMENT}) as process:
        deadline = time.monotonic() + 60
        while not list(folder.glob("checkpoints/round_*.h5")) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(process.pid, number)
        stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 75, stderr
    assert "starting new workers" not in stderr
    resumed = launch("--resume", folder=folder, settings=SETTINGS, mode="serial")
    assert resumed.result == launch(mode="serial", settings=SETTINGS).result
