"""The command as a user meets it: help, refusals, dry runs, what lies in the folder, what is missing."""

from __future__ import annotations

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from tests.mpi_helper import mpirun, sweep
from tests.system.test_failure import faulty

QUICK = [*faulty("none")]


def python(*arguments, timeout=60, **env):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=timeout,
                          env={**os.environ, "OMP_NUM_THREADS": "1", **env})


def test_importing_the_package_is_light():
    """S-PKG-01, S-LIFE-05: neither torch nor MPI, nor anything else that is heavy."""
    code = "import sys, federation, node_comm; print(sorted({m.partition('.')[0] for m in sys.modules} & " \
           "{'torch', 'mpi4py', 'h5py', 'sklearn', 'tensorboard', 'rich', 'grpc', 'mlflow'}))"
    assert python("-c", code).stdout.strip() == "[]"


def test_help_needs_nothing():
    """S-HPC-03: in an allocation, without a launch: prints, status 0, no MPI."""
    done = python("-X", "importtime", "-m", "federation.launch", "--help", SLURM_JOB_ID="7", SLURM_NTASKS="4",
                  SLURM_PROCID="0")
    assert done.returncode == 0
    for option in ("--config", "--mode", "--num_clients", "--set", "--seed", "--output_dir", "--resume", "--dry_run", "--quiet"):
        assert option in done.stdout
    assert "mpi4py" not in done.stderr
    assert "torch" not in done.stderr


@pytest.mark.parametrize(("level", "said"), [("DEBUG", True), ("INFO", False)])
def test_where_an_error_was_is_in_the_log_of_whoever_looks_closely(tmp_path, level, said):
    """A line is enough for all others."""
    done = python("-m", "federation.launch", "--mode", "serial", "--output_dir", str(tmp_path / "run"), "--set", *faulty("shape"),
                  f"log.level={level}")
    assert done.returncode == 1
    assert ("Traceback" in done.stderr) == said
    assert len([line for line in done.stderr.splitlines() if line.startswith("UpdateError: ")]) == 1


def test_serial_mode_in_an_allocation(launch):
    """S-HPC-03: job-level variables alone are no launch."""
    launch(mode="serial", settings=QUICK, env={"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"})


@pytest.mark.parametrize("env", [{"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}, {"PMI_SIZE": "4", "PMI_RANK": "0"},
                                 {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}])
def test_many_worlds_of_one_are_refused(launch, env):
    """S-HPC-01: before any file is written, with both sizes, the library and a hint."""
    run = launch(settings=QUICK, env=env, status=None)
    assert run.status not in (0, None)
    assert not (run.folder / "config.yaml").exists()
    for word in ("4", "1", "Open MPI", "srun --mpi"):
        assert word in run.stderr
    sweep()  # Open MPI's files: it believes in a launcher that is not there


@pytest.mark.parametrize("mode", ["serial", "parallel"])
def test_a_mode_that_contradicts_the_launcher(launch, mode):
    run = launch(mode=mode, ranks=2, settings=QUICK, status=2)
    assert "--mode mpi" in run.stderr
    assert run.stderr.count("was asked for") == 1
    assert not run.folder.exists()


def test_everything_wrong_is_said_at_once(launch, tmp_path):
    """S-CONF-04, S-CONF-05: one message with file, line, key, value and the nearest name; no traceback; nothing written."""
    file = tmp_path / "c.yaml"
    file.write_text("num_clients: true\ntrainer_config:\n  max_round: 5\nlearner_config:\n  client_lr: fast\n")
    run = launch("--config", str(file), settings=["data.partitionner=iid"], status=2)
    for word in (f"{file}:1", "num_clients", "max_rounds", "client_lr", "fast", "partitioner"):
        assert word in run.stderr
    assert "Traceback" not in run.stderr
    assert not run.folder.exists()


@pytest.mark.parametrize(("settings", "words"), [
    (["num_clients=3", "trainer_config.min_clients=4"], ["num_clients", "min_clients"]),
    (["num_clients=3", "trainer_config.cohort_size=4"], ["cohort_size", "num_clients"]),
    (["num_clients=2000"], ["2000"]),
    (["data.dataset=nothing.npz"], ["nothing.npz"]),
])
def test_impossible_wishes(launch, settings, words):
    run = launch(mode="serial", settings=settings, status=2)
    assert all(word in run.stderr for word in words)
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("ranks", [None, 3])
def test_a_dry_run_writes_nothing(launch, ranks):
    settings = [*QUICK, "data.partitioner=dirichlet"]
    run = launch("--dry_run", ranks=ranks, settings=settings)
    assert not run.folder.exists()
    for word in ("max_rounds: 3", "partition ", "client_0", "rank 0" if ranks is None else "rank 2"):
        assert word in run.stdout
    assert run.stdout.count("max_rounds") == 1


def test_what_lies_in_the_folder(launch):
    """S-TRACK-01: under mpirun one event file, one of everything, made by rank 0 alone."""
    run = launch(ranks=3, settings=[*QUICK, "tracker=tensorboard"])
    names = sorted(path.name for path in run.folder.iterdir())
    assert names == ["checkpoints", "config.yaml", "metrics.jsonl", "run.lock", "summary.json", "tensorboard"]
    assert len(list((run.folder / "tensorboard").iterdir())) == 1
    row = json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[-1])
    for key in ("round", "cohort_size", "clients_failed", "accuracy", "seconds", "bytes_down", "bytes_up"):
        assert key in row
    assert {"broadcast", "fit", "reduce", "step", "evaluate"} <= set(row["seconds"])
    for key in ("weights_sha256", "rounds_completed", "final", "mode", "world_size", "num_clients", "seed", "wall_s", "versions"):
        assert key in run.summary
    again = launch("--config", str(run.folder / "config.yaml"), mode="serial")
    assert again.summary["weights_sha256"] == run.summary["weights_sha256"]


@pytest.mark.parametrize(("redirection", "env"), [(">&-", {}), ("2>&-", {}), (">&- 2>&- <&-", {}), ("| true", {}),
                                                  ("> /dev/full", {}), ("> /dev/null", {"PYTHONIOENCODING": "ascii"})])
def test_nobody_who_reads(tmp_path, redirection, env):
    """A run that is done has status 0, whatever becomes of what it prints."""
    words = shlex.join([sys.executable, "-m", "federation.launch", "--output_dir", str(tmp_path / "\u65e5"), "--set", *QUICK])
    done = subprocess.run(["bash", "-o", "pipefail", "-c", f"{words} {redirection}"], capture_output=True, text=True,
                          timeout=60, env={**os.environ, "OMP_NUM_THREADS": "1", **env})
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr
    assert (tmp_path / "\u65e5" / "summary.json").exists()


def interrupted(folder, settings, when, times):
    """A run in whose way `settings` put a module `waits`: interrupted once the file `when` is there, so many times."""
    (folder / "waits.py").write_text("""
import pathlib, time
def factory(**config):
    pathlib.Path("loading").touch()
    time.sleep(30)
""")
    (folder / "mlflow").mkdir()
    (folder / "mlflow/__init__.py").write_text("import time\nclass MlflowClient:\n    __init__ = lambda *_, **__: time.sleep(60)\n")
    (folder / "mlflow/entities.py").write_text("class Metric:\n    pass\n")
    line = [sys.executable, "-m", "federation.launch", "--quiet", "--output_dir", "run", "--set", *settings]
    root = str(pathlib.Path(__file__).parents[2])
    with subprocess.Popen(line, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{folder}:{root}"}) as process:
        limit = time.monotonic() + 60
        while not (folder / when).exists() and time.monotonic() < limit:
            time.sleep(0.05)
        for _ in range(times):
            process.send_signal(signal.SIGINT)
            time.sleep(1.5)
        printed, _ = process.communicate(timeout=60)
        return process.returncode, printed


def test_interrupted_once_more(tmp_path):
    """While a tracker's server, which does not answer, is waited for: the stop that was asked for first is what is reported."""
    settings = ["tracker.name=mlflow", "trainer_config.max_rounds=100000"]
    status, printed = interrupted(tmp_path, settings, "run/metrics.jsonl", 2)
    assert status == 75, printed
    assert "stopped by SIGINT; resume from run/checkpoints/round_" in printed
    assert "Traceback" not in printed


def test_interrupted_before_the_first_round(tmp_path):
    status, printed = interrupted(tmp_path, ["data.dataset=waits:factory"], "loading", 1)
    assert status == 1, printed
    assert printed == "stopped by SIGINT\n"


def test_two_jobs_in_one_folder(launch, tmp_path):
    """S-HPC-02: the second fails at once and names the first."""
    from tests.system.conftest import ENVIRONMENT, command
    from tests.system.test_failure import wait_for_rows

    folder = tmp_path / "shared"
    slow = [*faulty("none", delay=0.1), "trainer_config.max_rounds=200"]
    with subprocess.Popen(command(folder=folder, settings=slow, mode="serial"), env={**os.environ, **ENVIRONMENT},
                          stderr=subprocess.DEVNULL) as first:
        wait_for_rows(folder, 1)
        second = launch("--resume", folder=folder, settings=slow, mode="serial", status=2)
        first.kill()
    assert str(first.pid) in second.stderr


def test_secrets_stay_secret(launch, tmp_path):
    """S-SEC-05: nowhere in what is printed or written, not in a crash either."""
    secret = "SECRET123xyz"
    for fault in ("none", "evaluate"):
        run = launch(mode="serial", status=None, env={"WANDB_MODE": "offline", "TOKEN": secret},
                     settings=[*faulty(fault), f"transport.token={secret}", "tracker=none"])
        written = b"".join(path.read_bytes() for path in run.folder.rglob("*") if path.is_file())
        assert secret not in run.stdout + run.stderr
        assert secret.encode() not in written
        assert b"***" in written


HIDE = """
import importlib.abc, sys
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden!r}:
            {action}
sys.meta_path.insert(0, Hide())
"""


@pytest.mark.parametrize("hidden", ["torch", "sklearn", "mpi4py", "tensorboard", "grpc"])
def test_optional_parts_may_be_missing(tmp_path, hidden):
    """S-PKG-01 a, c: a NumPy run works without any of them."""
    (tmp_path / "sitecustomize.py").write_text(HIDE.format(hidden=[hidden], action="raise ModuleNotFoundError(name=name)"))
    data = ["data.dataset=synthetic", "components.model=model.numpy.linear", "trainer_config.max_rounds=2"]
    done = python("-m", "federation.launch", "--mode", "serial", "--output_dir", str(tmp_path / "run"), "--set", *data,
                  PYTHONPATH=f"{tmp_path}:{os.getcwd()}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("hidden", "settings", "extra"), [
    ("torch", [], "torch"), ("sklearn", ["components.learner=federated.learner.sklearn", "components.model=model.sklearn.logistic",
                                         "data.dataset=synthetic"], "sklearn")])
def test_a_missing_part_that_is_asked_for(tmp_path, hidden, settings, extra):
    """S-PKG-01: one message with the name of the extra."""
    (tmp_path / "sitecustomize.py").write_text(HIDE.format(hidden=[hidden], action="raise ModuleNotFoundError(name=name)"))
    done = python("-m", "federation.launch", "--mode", "serial", "--output_dir", str(tmp_path / "run"),
                  *(["--set", *settings] if settings else []), PYTHONPATH=f"{tmp_path}:{os.getcwd()}")
    assert done.returncode == 2
    assert f"federation-hpc[{extra}]" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_mpi_library(tmp_path):
    """S-PKG-01 b: mpi4py there, its library not: serial runs work; mode mpi says so, with the original error."""
    package = tmp_path / "mpi4py"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "MPI.py").write_text("raise RuntimeError('cannot load MPI library')")
    for mode, status in (("serial", 0), ("mpi", 1)):
        done = python("-m", "federation.launch", "--mode", mode, "--output_dir", str(tmp_path / mode), "--set",
                      "data.dataset=synthetic", "components.model=model.numpy.linear", "trainer_config.max_rounds=2",
                      PYTHONPATH=f"{tmp_path}:{os.getcwd()}")
        assert done.returncode == status, done.stderr
    assert "cannot load MPI library" in done.stderr


@pytest.mark.parametrize(("guard", "status"), [(True, 0), (False, 1)])
def test_a_script_with_and_without_a_main_guard(tmp_path, guard, status):
    """S-LIFE-05: with one it runs; without, one clear message and no storm of processes."""
    call = """
        result = federation.run({"mode": "parallel", "num_workers": 2, "num_clients": 3, "output_dir": OUT,
                                 "components": {"model": "model.numpy.linear"}, "data": {"dataset": "synthetic"},
                                 "trainer_config": {"max_rounds": 2}})
        print(result.rounds_completed, result.weights_sha256[:8])
    """
    body = textwrap.dedent(call)
    script = tmp_path / "script.py"
    script.write_text(f"import federation\nOUT = {str(tmp_path / 'run')!r}\n" +
                      ("if __name__ == '__main__':\n" + textwrap.indent(body, "    ") if guard else body))
    done = python(str(script))
    assert done.returncode == status, done.stderr
    if guard:
        assert done.stdout.startswith("2 ")
    else:
        assert done.stderr.count("__name__") >= 1


def test_a_function_in_a_configuration():
    """S-LIFE-05: an object that cannot be written down is refused with its key."""
    import federation
    from federation.errors import ConfigError

    with pytest.raises(ConfigError, match=r"dataset_config\.transform.*function"):
        federation.run({"data": {"dataset_config": {"transform": lambda x: x}}})


@pytest.mark.parametrize("token", ["SECRET123", "'${env:MY_TOKEN}'"])
def test_secrets_reach_the_components_of_every_process_and_no_log(launch, token):
    """S-SEC-05: in the settings of a component, as text or by reference."""
    run = launch(mode="parallel", env={"MY_TOKEN": "SECRET123"},
                 settings=["num_workers=1", "num_clients=2", "data.dataset=synthetic", "trainer_config.max_rounds=1",
                           "components.model=model.numpy.linear", "components.learner=tests.system.told:Told",
                           f"learner_config.token={token}"])
    assert run.stderr.count("r1 #- WARNING federation.tests.told: the 9 letters are ***") == 2
    assert "SECRET123" not in run.stdout + run.stderr


def test_run_returns_the_result(tmp_path):
    import federation

    config = {"mode": "serial", "output_dir": str(tmp_path), "components": {"model": "model.numpy.linear"},
              "data": {"dataset": "synthetic"}, "trainer_config": {"max_rounds": 3}, "tracker": "none"}
    result = federation.run(config)
    assert result.rounds_completed == 3
    assert result.weights.sha256() == result.weights_sha256
    assert result.output_dir == tmp_path
    assert 0 < result.metrics["accuracy"] <= 1


def test_resume_restores_everything(launch):
    """S-CKPT-07: dropout, fraction and momentum: rounds 4 to 6 of a resumed run are those of a whole one."""
    settings = ["num_clients=10", "trainer_config.fraction=0.5", "model_config.dropout=0.3", "learner_config.momentum=0.9",
                "learner_config.local_epochs=1"]
    whole = launch(mode="serial", settings=[*settings, "trainer_config.max_rounds=6"])
    half = launch(mode="serial", settings=[*settings, "trainer_config.max_rounds=3"])
    resumed = launch("--resume", mode="parallel", folder=half.folder, settings=[*settings, "trainer_config.max_rounds=6"])
    assert resumed.result == whole.result
    assert [row["round"] for row in resumed.rows] == [1, 2, 3, 4, 5, 6]


def test_memory_stays_flat(tmp_path):
    """S-LIFE-07: a server with four clients and a model of 8 MB: from round 10 to round 60 it grows by 5 % + 10 MB at most."""
    code = """
        import resource, sys
        from federation.infra.recorder import Recorder
        seen = {}
        record = Recorder.record
        def watched(self, row):
            record(self, row)
            seen[row["round"]] = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
        Recorder.record = watched
        import federation
        federation.run({"mode": "serial", "num_clients": 4, "output_dir": sys.argv[1],
                        "components": {"model": "model.numpy.linear"}, "model_config": {},
                        "data": {"dataset": "synthetic", "dataset_config": {"num_features": 200000, "num_samples": 40}},
                        "learner_config": {"batch_size": 10}, "trainer_config": {"max_rounds": 60}})
        print(seen[10], seen[60])
    """
    done = python("-c", textwrap.dedent(code), str(tmp_path / "run"), timeout=200)
    assert done.returncode == 0, done.stderr
    early, late = map(int, done.stdout.split())
    assert late <= 1.05 * early + 10 * 2**20


def test_mpi_ends_by_itself():
    """S-PKG-04: worlds of one, and the self-test's world, end without a hang, again and again."""
    code = "import asyncio; from node_comm import mpi\nasync def main(t): await t.barrier()\nmpi.run(main)"
    for _ in range(3):
        assert mpirun(1, sys.executable, "-c", code, timeout=30).returncode == 0


def test_the_readme_tells_containers_what_mpirun_wants(tmp_path):
    """S-HPC-07: the line for root and too few cores stands in the README, and works as written where it is needed."""
    from pathlib import Path

    from tests.mpi_helper import find_mpirun

    [line] = [line.strip("`") for line in Path("README.md").read_text().splitlines() if "--allow-run-as-root" in line]
    words = line.split()
    assert words[:5] == ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "9"]
    flags = words[1:3] if os.geteuid() == 0 else words[2:3]
    done = subprocess.run([find_mpirun(), *flags, "-n", "9", sys.executable, *words[6:8], "--output_dir",
                           str(tmp_path / "run"), "--set", *QUICK], capture_output=True, text=True, timeout=100,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr


def test_the_package_never_adds_flags_of_mpirun():
    """S-HPC-07: allowing root and more ranks than cores is the user's decision."""
    from pathlib import Path

    for folder in ("federation", "node_comm", "jobs"):
        for path in Path(folder).rglob("*"):
            if path.is_file() and path.suffix in {".py", ".sh", ".yaml"}:
                assert "allow-run-as-root" not in path.read_text()
