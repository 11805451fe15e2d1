"""Ranks that are lost: the run goes on, to the same end."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mpi_helper import kill_tree
from tests.system.conftest import ENVIRONMENT, Finished, command
from tests.system.test_failure import faulty, wait_for_rows

SETTINGS = [*faulty("none", delay=0.03), "num_clients=8", "trainer_config.cohort_size=4", "trainer_config.max_rounds=25"]
#: What a run under ULFM says each time that it has lost ranks.
SAID = re.compile(r"ranks? ([\d, ]+) lost \(.*\): going on after round (\d+) with (\d+) ranks")


# In parallel mode


def workers(pid: int) -> list[int]:
    """Processes of ranks 1 and above of the run `pid`; none while they are being started."""
    return [worker for child in _children(pid) if "forkserver" in _line(child) for worker in _children(child)]


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def run_killing(folder: Path, moments: list[float], settings: list[str], number: signal.Signals = signal.SIGKILL,
                rows: int = 0) -> Finished:
    """Run, and send a worker `number` at each of these moments: seconds after the last time; at first, after there are workers, or
    after `rows` rounds."""
    began = time.monotonic()
    with subprocess.Popen(command(folder=folder, settings=settings, mode="parallel"), start_new_session=True, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **ENVIRONMENT}) as process:
        try:
            if rows:
                wait_for_rows(folder, rows)
            while not workers(process.pid) and process.poll() is None:
                time.sleep(0.02)
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
        run = run_killing(tmp_path / f"killed{attempt}", [draws.uniform(0.4, 1.6) for _ in range(3)], SETTINGS)
        assert run.status == 0, run.stderr
        assert run.result == reference.result
        said += len(re.findall(r"rank \d was killed by SIGKILL(: going on after round| while it was started)", run.stderr))
    assert said >= 3, "the kills did not meet the runs"


def test_what_clients_keep_survives_with_the_checkpoint(launch, tmp_path):
    """SCAFFOLD: the variates of clients that lived on the dead worker come back."""
    settings = ["num_clients=6", "components.aggregator=federated.aggregator.scaffold", "trainer_config.max_rounds=12",
                "trainer_config.cohort_size=3", "data.dataset=synthetic", "components.model=model.numpy.linear",
                "num_workers=2", "tracker=none"]
    reference = launch(mode="serial", settings=settings)
    run = run_killing(tmp_path / "killed", [2.0, 0.8], settings)
    assert run.status == 0, run.stderr
    assert run.result == reference.result


def test_a_frozen_worker_is_replaced(launch, tmp_path):
    """One that gets SIGSTOP is dead after round_timeout."""
    settings = [*SETTINGS, "trainer_config.round_timeout=1"]
    # Once it has begun: round_timeout is about rounds, and a busy machine may take longer to start than any number of seconds.
    run = run_killing(tmp_path / "frozen", [0.3], settings, signal.SIGSTOP, rows=1)
    assert run.status == 0, run.stderr
    # It may have stopped in the middle of its training, or while weights or sums were on their way.
    assert re.search(r"(no report within|took longer than) round_timeout=1 s", run.stderr)
    assert run.rows == launch(mode="serial", settings=SETTINGS).rows


def test_a_worker_that_dies_at_once_each_time_ends_the_run(launch):
    """S-LIFE-03: after three worlds that got no further, with the reason and a status of 1, and with its checkpoint."""
    run = launch(mode="parallel", settings=faulty("segfault", client="client_1", round=2), status=1)
    assert len(re.findall(r"rank \d was killed by SIGSEGV: going on after round 1", run.stderr)) == 3
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
    resumed = launch("--resume", folder=folder, settings=SETTINGS, mode="serial")
    assert resumed.result == launch(mode="serial", settings=SETTINGS).result


# Under mpirun, with ULFM


def run_deadly(launch: Callable[..., Finished], folder: Path, ranks: int, deaths: str, settings: list[str],
               ulfm: bool = True, timeout: float = 90) -> Finished:
    """Run on `ranks` ranks, of which some end as `deaths` says (see deadly.py)."""
    given = {text.partition("=")[0]: text for text in settings}
    if "plugins" in given:
        given["plugins"] = "plugins=[tests/system/faulty.py,tests/system/deadly.py]"
    else:
        given["plugins"] = "plugins=[tests/system/deadly.py]"
    return launch(folder=folder, ranks=ranks, settings=list(given.values()), extra=["--with-ft", "ulfm"] if ulfm else [],
                  env={"DEADLY": deaths}, timeout=timeout, status=None)


QUICK = [*faulty("none"), "num_clients=8", "trainer_config.cohort_size=5", "trainer_config.max_rounds=12"]
MEDIAN = [*QUICK, "components.aggregator=federated.aggregator.median"]
KRUM = [*QUICK, "components.aggregator=federated.aggregator.krum"]
SCAFFOLD = ["num_clients=6", "components.aggregator=federated.aggregator.scaffold", "trainer_config.max_rounds=8",
            "trainer_config.cohort_size=4", "data.dataset=synthetic", "components.model=model.numpy.linear", "tracker=none",
            "components.learner=federated.learner.scaffold"]
ASYNC = [*faulty("none"), "num_clients=8", "trainer_config.max_rounds=20", "components.trainer=federated.trainer.async",
         "components.aggregator=federated.aggregator.fedasync", "trainer_config.concurrency=4", "trainer_config.eval_every=3"]


@pytest.mark.parametrize(("settings", "ranks", "deaths"), [
    pytest.param(QUICK, 5, "broadcast 1 4,reduce 2 3,fit 3 6", id="broadcast-reduce-fit"),
    pytest.param(QUICK, 4, "read_at 1 4,fit 3 6", id="weights-in-place"),
    pytest.param(QUICK, 4, "place_of 2 3,fit 3 6", id="sum-in-place"),
    pytest.param(QUICK, 6, "fit 1 3,fit 3 3,send 2 9,evaluate 4 8", id="two-at-once-report-evaluate"),
    pytest.param(QUICK, 4, "recover 1 1,fit 2 2,recover 3 1", id="while-recovering-none-but-rank-0-left"),
    pytest.param(QUICK, 5, "fit 2 3,_register 1 2,reduce 3 6", id="while-registering-anew"),
    pytest.param(MEDIAN, 5, "alltoall 1 3,gather 2 4,alltoall 3 7", id="columns"),
    pytest.param(KRUM, 4, "alltoall 1 2,reduce 3 5", id="inner-products"),
    pytest.param(SCAFFOLD, 4, "fit 1 3,evaluate 2 5", id="what-clients-keep"),
    pytest.param([*SCAFFOLD, "checkpoint.every=5"], 4, "fit 1 4,broadcast 2 9", id="what-clients-keep-rolled-back"),
    pytest.param(ASYNC, 5, "send 1 5,evaluate 2 2,recv 3 12", id="asynchronous"),
])
def test_lost_ranks(launch, tmp_path, settings, ranks, deaths):
    """Every run has the digest, the rows and the status of the one that lost nobody."""
    reference = launch(mode="serial", settings=settings)
    run = run_deadly(launch, tmp_path / "deadly", ranks, deaths, settings)
    lost = {int(rank) for said in SAID.finditer(run.stderr) for rank in said[1].split(",")}
    dead = {int(order.split()[1]) for order in deaths.split(",")}
    if len(dead) == ranks - 1:
        assert run.status == 1, run.stderr
        assert "every rank that trains clients is lost" in run.stderr
        run = launch("--resume", folder=run.folder, settings=settings, mode="serial")
    else:
        assert run.status == 0, run.stderr
        assert lost == dead, run.stderr
    assert run.result == reference.result


def test_down_to_the_last_rank(launch, tmp_path):
    run = run_deadly(launch, tmp_path / "last", 6, "fit 1 2,reduce 2 4,broadcast 3 6,fit 5 9", QUICK)
    assert run.status == 0, run.stderr
    assert [said[3] for said in SAID.finditer(run.stderr)][-1] == "2"
    assert run.result == launch(mode="serial", settings=QUICK).result


@pytest.mark.parametrize("how", ["stop", "hang"])
def test_a_rank_that_stands_still_is_dead(launch, tmp_path, how):
    """S-LIFE-08: after round_timeout; frozen, or in a computation that never ends."""
    run = run_deadly(launch, tmp_path / "frozen", 4, f"{how}:fit 2 4", [*QUICK, "trainer_config.round_timeout=2"])
    assert run.status == 0, run.stderr
    assert [said[1] for said in SAID.finditer(run.stderr)] == ["2"]
    assert run.rows == launch(mode="serial", settings=QUICK).rows


@pytest.mark.parametrize(("ulfm", "ranks", "deaths"), [(True, 3, "fit 0 3"), (True, 2, "broadcast 0 5"),
                                                       (False, 3, "fit 2 3"), (False, 3, "reduce 1 4"),
                                                       (False, 3, "place_of 1 4")])
def test_without_remedy_the_job_ends_and_is_resumed(launch, tmp_path, ulfm, ranks, deaths):
    """Rank 0 is lost, or the launcher knows no ULFM: the job ends within 10 s, not with status 0, and resumes exactly."""
    settings = [*QUICK, "trainer_config.server_hosts_clients=true"]
    run = run_deadly(launch, tmp_path / "ended", ranks, deaths, settings, ulfm=ulfm, timeout=30)
    assert run.status != 0
    resumed = launch("--resume", folder=run.folder, settings=settings, mode="serial")
    assert resumed.result == launch(mode="serial", settings=settings).result
