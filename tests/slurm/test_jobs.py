"""The job scripts as they are, on a real Slurm: the bits of one process, whatever happens to the job."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.mpi_helper import ROOT
from tests.slurm.cluster import Cluster
from tests.system.conftest import Finished, command
from tests.system.test_failure import wait_for_rows

SCRIPTS = ROOT / "jobs" / "slurm"
#: Six ranks on three nodes.
SHAPE = ("--nodes=3", "--ntasks-per-node=2")
#: A run that can be caught in the middle.
ROUNDS = 25
SETTINGS = [f"plugins=[{ROOT}/tests/system/faulty.py]", "components.learner=test.learner.faulty",
            "components.model=model.numpy.linear", "num_clients=10", f"trainer_config.max_rounds={ROUNDS}", "tracker=none"]
SLOW = "learner_config.delay=0.2"
#: No checkpoint is due before the end: what there is, a stop has written.
RARE = "checkpoint.every=1000"


def in_one_process(folder: Path, settings: list[str]) -> tuple[Any, ...]:
    """Digest, metrics and records of the run in serial mode: what every job has to come to."""
    subprocess.run(command(folder=folder, settings=settings, mode="serial"), check=True, timeout=120)
    return Finished(0, "", "", folder, 0).result


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    return in_one_process(tmp_path_factory.mktemp("serial"), SETTINGS)


class Submitted:
    """A job in the queue: its script's log, and its run's folder."""

    def __init__(self, cluster: Cluster, folder: Path, script: str, options: tuple[str, ...], settings: list[str],
                 env: Mapping[str, str]) -> None:
        self.cluster = cluster
        self.number = cluster.submit(*options, str(SCRIPTS / script), "--set", *settings, env=env, cwd=folder)
        self.name = Path(script).stem
        self.folder = folder / "runs" / f"{self.name}-{self.number}"
        self.log_path = folder / f"{self.name}-{self.number}.log"

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    @property
    def result(self) -> tuple[Any, ...]:
        return Finished(0, "", "", self.folder, 0).result

    def reach(self, rows: int) -> None:
        """Wait until the job has recorded `rows` rounds."""
        self.cluster.wait_for(self.number, "RUNNING")
        wait_for_rows(self.folder, rows)

    def finish(self) -> dict[str, str]:
        """Wait until the job is completed."""
        told = self.cluster.wait_for(self.number, "COMPLETED", 180)
        assert told["ExitCode"] == "0:0"
        return told


Submit = Callable[..., Submitted]


@pytest.fixture
def submit(cluster: Cluster, tmp_path: Path) -> Submit:
    """Submit a script of jobs/slurm, unchanged, from an empty folder."""
    def start(script: str, *options: str, settings: list[str], **env: str) -> Submitted:
        return Submitted(cluster, tmp_path, script, options, settings, env)

    return start


def test_the_same_bits_as_one_process(submit, expected):
    """Six ranks on three nodes, once; and no word of a restart."""
    job = submit("fedavg.sh", *SHAPE, settings=SETTINGS)
    assert job.finish()["Restarts"] == "0"
    assert job.result == expected
    summary = Finished(0, "", "", job.folder, 0).summary
    assert (summary["mode"], summary["world_size"]) == ("mpi", 6)
    assert f"Slurm job {job.number} has" in job.log
    assert f"round {ROUNDS}/{ROUNDS}" in job.log
    assert "\x1b" not in job.log


def test_a_warning_signal_requeues_the_job(cluster, submit, expected):
    """S-HPC-04: USR1 to the script, which passes it on: a checkpoint, status 75, and the same job goes on from there."""
    job = submit("fedavg.sh", *SHAPE, settings=[*SETTINGS, SLOW, RARE])
    job.reach(3)
    cluster.command("scancel", "--signal=USR1", "--batch", str(job.number))
    assert job.finish()["Restarts"] == "1"
    assert "stopped by SIGUSR1" in job.log
    assert resumed_after(job.log) >= 3
    assert job.result == expected


def test_an_impatient_scheduler(cluster, submit, expected):
    """S-HPC-04: TERM, and USR1 again while the checkpoint is being written, change nothing."""
    job = submit("fedavg.sh", *SHAPE, settings=[*SETTINGS, SLOW, RARE])
    job.reach(3)
    for sent in ("TERM", "USR1", "USR1"):
        cluster.command("scancel", f"--signal={sent}", "--batch", str(job.number), check=False)
    assert job.finish()["Restarts"] == "1"
    assert "An error occurred" not in job.log  # of a rank whose own status might have won over rank 0's
    assert resumed_after(job.log) >= 3
    assert job.result == expected


@pytest.mark.parametrize("how", ["scontrol requeue", "a job of higher priority"])
def test_a_preempted_job_goes_on(cluster, submit, tmp_path, expected, how):
    """Slurm takes the nodes away and starts the job again later; it goes on from its newest checkpoint."""
    job = submit("fedavg.sh", *SHAPE, settings=[*SETTINGS, SLOW])
    job.reach(3)
    if how == "scontrol requeue":
        cluster.command("scontrol", "requeue", str(job.number))
    else:
        other = cluster.submit("--partition=urgent", "--nodes=3", "--exclusive", "--wrap=sleep 1", "--output=/dev/null",
                               cwd=tmp_path)
        cluster.wait_for(other, "COMPLETED")
    assert job.finish()["Restarts"] == "1"
    assert resumed_after(job.log) >= 2
    assert job.result == expected


def test_a_killed_rank(cluster, submit, expected):
    """S-LIFE-03: the job ends with a status that is not 0; put back into the queue, it goes on."""
    job = submit("fedavg.sh", *SHAPE, settings=[*SETTINGS, SLOW])
    job.reach(3)
    os.kill(rank(cluster, 3), signal.SIGKILL)
    told = cluster.wait_for(job.number, "FAILED")
    assert told["ExitCode"] not in ("0:0", "75:0")
    cluster.wait_until(lambda: not cluster.processes("federation.launch"), "the end of the other ranks")
    cluster.command("scontrol", "requeue", str(job.number))
    job.finish()
    assert resumed_after(job.log) >= 2
    assert job.result == expected


def test_a_killed_rank_is_outlived(cluster, submit, expected):
    """S-LIFE-03: with ULFM the same job goes on without it."""
    job = submit("fedavg.sh", *SHAPE, settings=[*SETTINGS, SLOW], ULFM="yes")
    job.reach(3)
    os.kill(rank(cluster, 3), signal.SIGKILL)
    assert job.finish()["Restarts"] == "0"
    assert "rank 3 lost" in job.log
    assert job.result == expected


def test_submit_writes_a_script_that_runs(cluster, tmp_path, expected):
    """`python -m federation.slurm submit`, from a shell that has no environment activated."""
    shown = subprocess.run(
        [sys.executable, "-m", "federation.slurm", "submit", "--nodes", "3", "--ntasks-per-node", "2", "--time", "5",
         "--job-name", "mine", "--output_dir", "here", "--set", *SETTINGS],
        cwd=tmp_path, env=cluster.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True).stdout
    number = int(re.search(r"Submitted batch job (\d+)", shown)[1])
    assert cluster.wait_for(number, "COMPLETED", 120)["ExitCode"] == "0:0"
    assert Finished(0, "", "", tmp_path / "here", 0).result == expected


def test_signals_to_other_ranks_change_nothing(cluster, submit, expected):
    """Rank 0 decides: what a scheduler sends to the ranks that train is left for it."""
    job = submit("fedavg.sh", *SHAPE, settings=[*SETTINGS, SLOW])
    job.reach(2)
    for number in (1, 4, 5):
        for sent in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            os.kill(rank(cluster, number), sent)
    assert job.finish()["Restarts"] == "0"
    assert job.result == expected


def test_the_end_of_the_jobs_time(submit, expected):
    """A job of a minute, for rounds that take longer: it stops by itself in time, and starts again.

    Slurm's own warning may come a minute early, so it is one without effect here. Nothing depends on how fast the
    machine is: a slower one needs more restarts, and each of them has to leave a checkpoint.
    """
    job = submit("fedavg.sh", *SHAPE, "--time=1", "--signal=B:CONT@1", settings=[*SETTINGS, "learner_config.delay=1.2", RARE])
    told = job.finish()
    assert int(told["Restarts"]) >= 1
    assert job.log.count("stopped by the job's time") == int(told["Restarts"])
    assert "SIGUSR1" not in job.log
    assert job.result == expected


def test_a_bad_configuration_is_not_started_again(cluster, submit):
    """Status 2, once."""
    job = submit("fedavg.sh", *SHAPE, settings=["trainer_config.max_rouns=3"])
    told = cluster.wait_for(job.number, "FAILED")
    assert (told["ExitCode"], told["Restarts"]) == ("2:0", "0")
    assert "max_rounds" in job.log


def test_a_sweep(cluster, submit, tmp_path):
    """An array of two, of which one is warned: each comes to the result of its own settings."""
    common = ["trainer_config.max_rounds=60", "components.model=model.numpy.linear", "num_clients=10", "tracker=none"]
    array = submit("sweep.sh", "--array=0,4", "--ntasks-per-node=2", settings=common).number
    sweep = tmp_path / "runs" / f"sweep-{array}"
    folders = {0: sweep / "seed-0-rate-0.05", 4: sweep / "seed-1-rate-0.1"}
    wait_for_rows(folders[4], 2)
    cluster.command("scancel", "--signal=USR1", "--batch", f"{array}_4")
    restarts = {task: cluster.wait_for(f"{array}_{task}", "COMPLETED")["Restarts"] for task in folders}
    assert restarts == {0: "0", 4: "1"}
    for task, (seed, rate) in {0: (0, 0.05), 4: (1, 0.1)}.items():
        alone = in_one_process(tmp_path / f"alone-{task}", [*common, f"seed={seed}", f"learner_config.client_lr={rate}"])
        assert Finished(0, "", "", folders[task], 0).result == alone
        assert (tmp_path / f"sweep-{array}_{task}.log").exists()


def test_server_and_clients(submit, tmp_path):
    """grpc.sh: a server and a client for each of six tasks on three nodes, with certificates of their own."""
    settings = [*(text for text in SETTINGS if not text.startswith("num_clients")), "trainer_config.min_clients=6"]
    job = submit("grpc.sh", *SHAPE, settings=settings)
    assert job.finish()["Restarts"] == "0"
    assert job.result == in_one_process(tmp_path / "serial", [*settings, "num_clients=6"])


def test_ranks_and_gpus(cluster, submit, tmp_path):
    """S-HPC-05: each rank, the server's too, trains, and is told of the GPUs that its node has.

    The cluster's GPUs are empty files: the ranks compute on the CPU, and Slurm sets no CUDA_VISIBLE_DEVICES.
    """
    common = ["trainer_config.max_rounds=60", "components.model=model.numpy.linear", "num_clients=10", "tracker=none"]
    job = submit("fedavg_gpu.sh", *SHAPE, "--gpus-per-node=2", "--cpus-per-task=1", settings=common, DEVICE="cpu")
    wait_for_rows(job.folder, 1)
    for number in range(6):
        environment = Path(f"/proc/{rank(cluster, number)}/environ").read_bytes().split(b"\0")
        assert b"SLURM_GPUS_ON_NODE=2" in environment
    job.finish()
    alone = in_one_process(tmp_path / "alone", [*common, "learner_config.device=cpu", "trainer_config.server_hosts_clients=true"])
    assert job.result == alone


def rank(cluster: Cluster, number: int) -> int:
    """The process that is rank `number` of the one job that runs."""
    wanted = f"OMPI_COMM_WORLD_RANK={number}".encode()
    found = [pid for pid in cluster.processes("federation.launch")
             if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")]
    assert len(found) == 1
    return found[0]


def resumed_after(log: str) -> int:
    """The round after which the one restart that `log` tells of went on."""
    assert log.count("resumed after round ") == 1, log
    return int(log.partition("resumed after round ")[2].split()[0])
