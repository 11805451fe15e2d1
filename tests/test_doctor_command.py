"""`python -m federation.doctor` as a user calls it: alone, under mpirun, and where things are missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.mpi_helper import mpirun, needs_mpi, report, sweep

QUICK = ["components.model=model.numpy.linear", "num_clients=4"]


def doctor(*arguments: str, folder: Path, before: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command in `folder`; the program `before` runs first, in the same process."""
    code = f"import sys\nsys.argv[0] = 'doctor'\n{textwrap.dedent(before)}\nfrom federation.doctor.__main__ import main\n" \
           "sys.exit(main())"
    start = ["-c", code] if before else ["-m", "federation.doctor"]
    return subprocess.run([sys.executable, *start, *arguments], capture_output=True, text=True, timeout=120, cwd=folder,
                          env={**os.environ, "OMP_NUM_THREADS": "1", **env})


def findings(text: str) -> dict[str, dict[str, Any]]:
    """The findings in the JSON `text`, by subject; the worst of each."""
    order = {"ok": 0, "warning": 1, "problem": 2}
    return {found["subject"]: found for found in sorted(json.loads(text)["findings"], key=lambda found: order[found["level"]])}


def settings(folder: Path, *more: str) -> list[str]:
    """A quick configuration; of settings with the same key, the last counts."""
    return ["--set", *{text.partition("=")[0]: text for text in (*QUICK, f"output_dir={folder / 'runs/x'}", *more)}.values()]


def test_alone_without_a_configuration(tmp_path: Path) -> None:
    done = doctor(folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    for subject in ("MPI", "placement", "threads", "versions", "memory", "output folder", "file locks", "disk space"):
        assert any(line[9:].startswith(subject) for line in lines), subject
    assert "none given" in done.stdout
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_alone_with_a_configuration(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("num_clients: 4\ncomponents: {model: model.numpy.linear}\noutput_dir: runs/x\n")
    done = doctor("--config", str(file), "--json", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["status"] == 0
    found = findings(done.stdout)
    assert "mode serial" in found["configuration"]["message"]
    assert str(tmp_path) in found["output folder"]["message"]
    assert not (tmp_path / "runs").exists()


def test_what_breaks_a_run_is_status_1(tmp_path: Path) -> None:
    done = doctor("--json", *settings(tmp_path, "data.dataset=none.npz", "output_dir=/proc/x"), folder=tmp_path)
    assert done.returncode == 1
    found = findings(done.stdout)
    assert {subject for subject in found if found[subject]["level"] == "problem"} == {"configuration", "output folder"}
    assert "none.npz" in found["configuration"]["message"]


@pytest.mark.parametrize(("arguments", "words"), [
    (["--jsn"], ["--jsn"]), (["--config", "none.yaml"], ["none.yaml"]),
    (["--set", "num_client=3", "learner_config.client_lr=fast"], ["num_clients", "fast"]),
])
def test_usage_is_status_2(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    done = doctor(*arguments, folder=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_help_says_what_the_statuses_mean(tmp_path: Path) -> None:
    done = doctor("--help", folder=tmp_path)
    assert done.returncode == 0
    for word in ("--config", "--set", "--json", "exit status"):
        assert word in done.stdout


def test_mode_parallel_is_planned(tmp_path: Path) -> None:
    """Three workers on a process that may use one core, of which none is started."""
    done = doctor("--json", *settings(tmp_path, "mode=parallel", "num_workers=3"), folder=tmp_path,
                  before="import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])")
    assert done.returncode == 0, done.stdout + done.stderr
    found = findings(done.stdout)
    assert found["threads"]["level"] == "warning"
    assert "3 compute threads of ranks 1-3 share 1 cores" in found["threads"]["message"]


HIDDEN = """
    import importlib.abc, importlib.util, importlib.metadata
    HIDDEN = ("torch", "mpi4py")
    class Hide(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in HIDDEN:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])
    sys.meta_path.insert(0, Hide())
    there, version = importlib.util.find_spec, importlib.metadata.version
    importlib.util.find_spec = lambda name, package=None: None if name in HIDDEN else there(name, package)
    def find_version(name):
        if name in HIDDEN:
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)
    importlib.metadata.version = find_version
"""


def test_without_torch_and_mpi4py(tmp_path: Path) -> None:
    """S-PKG-01: says so; a NumPy model can be run, a torch model cannot."""
    done = doctor("--json", *settings(tmp_path), folder=tmp_path, before=HIDDEN)
    assert done.returncode == 0, done.stdout + done.stderr
    found = findings(done.stdout)
    assert "mpi4py is not installed" in found["MPI"]["message"]
    assert "torch is not installed" in found["GPUs"]["message"]
    assert "torch" not in found["versions"]["message"]
    done = doctor("--json", *settings(tmp_path, "components.model=model.torch.mlp"), folder=tmp_path, before=HIDDEN)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "torch" in findings(done.stdout)["configuration"]["message"]


def test_processes_that_a_launcher_started_without_mpi4py(tmp_path: Path) -> None:
    """S-HPC-01, S-PKG-01: one of them says what is missing."""
    for rank in ("0", "1"):
        done = doctor(folder=tmp_path, before=HIDDEN, PMI_SIZE="2", PMI_RANK=rank)
        assert done.returncode == 1
        assert ("mpi4py is not installed" in done.stdout) == (rank == "0")


@pytest.mark.parametrize("env", [{"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}, {"PMI_SIZE": "4", "PMI_RANK": "0"},
                                 {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}])
def test_many_worlds_of_one_are_found(tmp_path: Path, env: dict[str, str]) -> None:
    """S-HPC-01: each process is alone; the first says so, with both sizes, the library and a hint."""
    pytest.importorskip("mpi4py")
    done = doctor("--json", folder=tmp_path, **env)
    assert done.returncode == 1
    found = findings(done.stdout)["MPI"]
    assert found["level"] == "problem"
    for word in ("4", "size 1", "srun --mpi"):
        assert word in found["message"]
    others = doctor("--json", folder=tmp_path, **{name: "3" if name.endswith(("RANK", "PROCID")) else value
                                                  for name, value in env.items()})
    assert (others.returncode, others.stdout) == (1, "")
    sweep()  # Open MPI's files: it believes in a launcher that is not there


def test_in_an_allocation_mpi_is_not_started(tmp_path: Path) -> None:
    """S-HPC-03: variables of a job alone are no launch."""
    done = doctor("--json", folder=tmp_path, SLURM_JOB_ID="7", SLURM_NTASKS="4", SLURM_PROCID="0")
    assert done.returncode == 0
    assert "not started" in findings(done.stdout)["MPI"]["message"]


@needs_mpi
def test_under_mpirun(tmp_path: Path) -> None:
    done = mpirun(3, sys.executable, "-m", "federation.doctor", "--json", *settings(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, report(done)
    found = findings(done.stdout)
    assert "3 ranks" in found["MPI"]["message"]
    assert "thread level" in found["MPI"]["message"]
    assert "ranks 0-2" in found["placement"]["message"]
    assert "the same on all ranks" in found["versions"]["message"]
    assert "flock works" in found["file locks"]["message"]
    for collective in ("broadcast", "reduce"):
        assert "/s in pieces of 16.8 MB" in found[collective]["message"]
    assert list(tmp_path.iterdir()) == []


@needs_mpi
def test_one_rank_is_another(tmp_path: Path) -> None:
    """Rank 2 has another NumPy and does not find the data: status 1 from all, and no rank waits for another."""
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent("""
        import importlib.metadata, os, sys
        version = importlib.metadata.version
        if os.environ["OMPI_COMM_WORLD_RANK"] == "2":
            importlib.metadata.version = lambda name: "1.0" if name == "numpy" else version(name)
            import federation.doctor.probes.run as run
            def fail(config):
                raise run.FederationError("no data on this host")
            run.assemble = fail
        from federation.doctor.__main__ import main
        sys.exit(main())
    """))
    done = mpirun(3, sys.executable, str(program), "--json", *settings(tmp_path), cwd=tmp_path)
    assert done.returncode == 1, report(done)
    found = findings(done.stdout)
    assert "1.0 on rank 2" in found["versions"]["message"]
    assert "rank 2 on" in found["configuration"]["message"]
    assert "no data on this host" in found["configuration"]["message"]


@needs_mpi
def test_ulfm_is_seen(tmp_path: Path) -> None:
    done = mpirun(2, sys.executable, "-m", "federation.doctor", "--json", *settings(tmp_path), cwd=tmp_path,
                  extra=["--with-ft", "ulfm"])
    assert done.returncode == 0, report(done)
    assert "this launch has it on" in findings(done.stdout)["lost ranks"]["message"]


@needs_mpi
def test_usage_under_mpirun_is_said_once(tmp_path: Path) -> None:
    done = mpirun(3, sys.executable, "-m", "federation.doctor", "--set", "num_client=3", cwd=tmp_path)
    assert done.returncode == 2, report(done)
    assert done.stderr.count("did you mean num_clients") == 1


def test_a_fault_of_its_own_is_no_finding(tmp_path: Path) -> None:
    done = doctor(folder=tmp_path, before="import federation.doctor.probes.host as host\nhost.cores = lambda: 1 / 0")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
