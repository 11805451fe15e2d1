"""A real Slurm cluster of three nodes on this machine: the distribution's daemons, in a folder of their own.

Nothing outside the folder is written, no service is started, and `stop` ends what `start` began, by process id.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.mpi_helper import sweep

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "squeue")
PACKAGES = "slurmctld slurmd slurm-client munge"
NODES = ("n1", "n2", "n3")

# A requeued job waits until the credentials of its first start have expired: 5 s here, 2 minutes by default.
_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
JobRequeue=1
KillWait=5
MinJobAge=3600
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[0]} CPUs=4 RealMemory=4000 Gres=gpu:2 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=4000 Gres=gpu:2 State=UNKNOWN
NodeName=n3 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=4000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=ALL PriorityTier=9 MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """What keeps a cluster from being started here, in words; empty where nothing does."""
    if os.geteuid() != 0:
        return "Slurm's daemons have to be started as root"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"no {', '.join(absent)} here: apt-get install {PACKAGES}" if absent else ""


class Cluster:
    """Starts the daemons, submits jobs and waits for them. Everything is in `folder`, which must be new."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.environ = _environment() | {"SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        """Until all three nodes are idle. Raises AssertionError with the daemons' logs where one does not come up."""
        folder = self.folder
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (folder / name).mkdir(parents=True)
        for path in (folder, *folder.parents):
            if path.stat().st_uid == 0 and len(path.parts) > 2:
                path.chmod(path.stat().st_mode | 0o011)  # munge wants to see that everyone may reach its socket
        controller, *ports = _free_ports(4)
        (folder / "slurm.conf").write_text(_CONF.format(
            host=socket.gethostname().partition(".")[0], folder=folder, controller_port=controller, ports=ports))
        for name in ("gpu0", "gpu1"):
            (folder / name).touch()
        (folder / "gres.conf").write_text(f"AutoDetect=off\nName=gpu File={folder}/gpu[0-1]\n")
        key = folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        self._daemon("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={key}",
                     f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munged.seed",
                     f"--log-file={folder}/munged.log")
        self.wait_until((folder / "munge.socket").exists, "munge's socket")
        self._daemon("slurmctld", "-D", "-c")
        for node in NODES:
            self._daemon("slurmd", "-D", "-N", node)
        self.wait_until(lambda: self.command("sinfo", "-h", "-p", "main", "-o", "%T:%D", check=False) == "idle:3",
                        "three idle nodes")

    def stop(self) -> None:
        """Cancel all jobs, end the daemons, and whatever their jobs have left running."""
        if "slurmctld" in self.daemons:
            self.command("scancel", "--full", "--state=RUNNING", "-u", "root", check=False)
            self.command("scancel", "-u", "root", check=False)
            try:
                self.wait_until(lambda: not self.command("squeue", "-h", check=False), "an empty queue", 30)
            except AssertionError as error:
                print(error, file=sys.stderr)
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it ended by itself
        sweep()

    def processes(self, *words: str) -> list[int]:
        """Processes that came out of this cluster's jobs and steps and whose command lines hold all of `words`."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    ours = f"SLURM_CONF={self.folder}/".encode() in (entry / "environ").read_bytes()
                    command = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                except OSError:
                    continue  # it has ended
                if ours and all(word in command for word in words):
                    found.append(int(entry.name))
        return found

    def submit(self, *arguments: str, env: Mapping[str, str] | None = None, cwd: Path) -> int:
        """`sbatch` with `arguments`; the job's id. Jobs see `env` on top of this cluster's surroundings."""
        answer = self.command("sbatch", "--parsable", *arguments, env=env, cwd=cwd)
        return int(answer.partition(";")[0])

    def command(self, *words: str, check: bool = True, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
        """One of Slurm's commands; what it prints, stripped. AssertionError where it fails, unless `check` is False."""
        done = subprocess.run(words, capture_output=True, text=True, env={**self.environ, **(env or {})}, cwd=cwd, timeout=60)
        assert not check or done.returncode == 0, f"{words}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    def job(self, job: int | str) -> dict[str, str]:
        """What `scontrol show job` tells, such as JobState, ExitCode and Restarts."""
        text = self.command("scontrol", "--oneliner", "show", "job", str(job))
        return dict(re.findall(r"(\w+)=(\S*)", text))

    def wait_for(self, job: int | str, state: str, seconds: float = 120) -> dict[str, str]:
        """Wait until `job` is in `state`. AssertionError once it has ended otherwise."""
        over = {"COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY"} - {state}

        def reached() -> bool:
            told = self.job(job)
            assert told["JobState"] not in over, f"job {job} was to be {state}: {told}\n{self._output(told)}"
            return told["JobState"] == state

        self.wait_until(reached, f"job {job} {state}", seconds)
        return self.job(job)

    def wait_until(self, is_so: Callable[[], bool], what: str, seconds: float = 60) -> None:
        """AssertionError with the daemons' last words where `is_so` does not become true, or a daemon ends."""
        limit = time.monotonic() + seconds
        while not is_so():
            dead = {name: daemon.returncode for name, daemon in self.daemons.items() if daemon.poll() is not None}
            is_late = bool(dead) or time.monotonic() >= limit
            assert not is_late, f"waited for {what}; ended daemons: {dead}\n{self._logs()}"
            time.sleep(0.1)

    def _daemon(self, program: str, *options: str) -> None:
        name = " ".join((program, *options[-1:])) if program == "slurmd" else program
        with open(self.folder / f"{name.replace(' ', '-')}.out", "wb") as output:
            self.daemons[name] = subprocess.Popen([shutil.which(program) or program, *options], stdin=subprocess.DEVNULL,
                                                  stdout=output, stderr=output, env=self.environ, start_new_session=True)

    def _logs(self) -> str:
        paths = sorted({*self.folder.glob("*.log"), *self.folder.glob("*.out")})
        return "\n".join(f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-15:]) for path in paths)

    @staticmethod
    def _output(told: Mapping[str, str]) -> str:
        path = Path(told.get("StdOut", ""))
        return f"--- {path}\n{path.read_text(errors='replace')}" if path.is_file() else ""


def _environment() -> dict[str, str]:
    """This process's environment without a launcher's variables; as root, mpirun has to be told that this is meant."""
    inherited = re.compile(r"OMPI_|PMIX_|PMI_|PRTE_|MPI_LOCAL|SLURM_|SBATCH_")
    found = {name: value for name, value in os.environ.items() if not inherited.match(name)}
    found["PATH"] = f"{Path(sys.executable).parent}:{found['PATH']}:/usr/sbin"
    return found | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
