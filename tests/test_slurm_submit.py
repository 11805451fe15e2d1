"""`python -m federation.slurm submit`: the script, and what is refused before it is in a queue."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from federation.slurm.__main__ import main

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "my run.yaml"
    path.write_text("num_clients: 8\n")
    return path


def script(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["submit", *arguments, "--dry_run"]) == 0
    return capsys.readouterr().out


def directives(text: str) -> dict[str, str]:
    """What sbatch reads: the lines before the first command, of which the last of a name counts."""
    found = {}
    for line in text.splitlines():
        if line.startswith("#SBATCH --"):
            name, _, value = line.removeprefix("#SBATCH --").partition("=")
            assert name not in found, f"{name} is there twice"
            found[name] = value
        elif line and not line.startswith("#"):
            break
    return found


def test_what_is_asked_for_is_in_the_script(capsys, config):
    text = script(capsys, "--config", str(config), "--nodes", "4", "--ntasks-per-node", "16", "--cpus-per-task", "2", "--time",
                  "1-00:00:00", "--job-name", "one", "--partition", "long", "--account", "us", "--sbatch=--exclusive",
                  "--sbatch=--signal=B:USR1@300", "--set", "seed=3", "learner_config.client_lr=0.5")
    told = directives(text)
    wanted = {"nodes": "4", "ntasks-per-node": "16", "cpus-per-task": "2", "time": "1-00:00:00", "job-name": "one",
              "partition": "long", "account": "us", "exclusive": "", "signal": "B:USR1@300"}
    assert {name: told.get(name) for name in wanted} == wanted
    assert "requeue" in told
    assert text.startswith("#!/bin/bash\n#SBATCH")
    assert f"set -- {shlex.join(['--config', str(config), '--set', 'seed=3', 'learner_config.client_lr=0.5'])}" in text
    assert "\nULFM" not in text


def test_without_options_it_is_the_script_of_the_folder(capsys):
    """Only the environment and the (empty) arguments are added."""
    lines = script(capsys).splitlines()
    given = (ROOT / "jobs/slurm/fedavg.sh").read_text().splitlines()
    assert [line for line in given if line not in lines] == []
    added = [line for line in lines if line and line not in given]
    assert added in (["# What this job was submitted with.", "set -- "],
                     ["# What this job was submitted with.", "set -- ", f"source {sys.prefix}/bin/activate"])


def test_gpus_take_the_other_script(capsys):
    text = script(capsys, "--gpus-per-node", "2", "--ntasks-per-node", "2")
    assert directives(text)["gpus-per-node"] == "2"
    assert "learner_config.device" in text


@pytest.mark.parametrize("arguments", [[], ["--gpus-per-node", "1"], ["--ulfm"], ["--output_dir", "a b'c"]])
def test_bash_understands_it(capsys, config, arguments):
    """And the launcher gets words with blanks and quotes whole: `mpirun` is a function here that prints what it is given."""
    text = script(capsys, "--config", str(config), "--set", "tracker=none", "seed=1", *arguments)
    start = "set -euo pipefail\n"
    text = text.replace("\nsource ", "\n: ").replace(start, start + "mpirun() { printf '%s\\n' \"$@\"; }\n")
    surroundings = {**os.environ, "SLURM_SUBMIT_DIR": "/submit", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "fedavg"}
    done = subprocess.run(["bash"], input=text, capture_output=True, text=True, env=surroundings, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    words = done.stdout.splitlines()
    assert words[words.index("--config") + 1] == str(config)
    folder = str(Path("a b'c").resolve()) if "--output_dir" in arguments else "/submit/runs/fedavg-7"
    assert words[words.index("--output_dir") + 1] == folder
    assert ("--with-ft" in words) == ("--ulfm" in arguments)


@pytest.mark.parametrize("name", ["fedavg", "fedavg_gpu", "sweep"])
def test_what_a_job_that_cannot_be_requeued_says_is_right(tmp_path, name):
    """Where Slurm takes no requeue, whoever does as the log says goes on in the same folder, from another job."""
    for program, body in {"mpirun": 'printf "%s\\n" "$@"; exit 75', "scontrol": "exit 1"}.items():
        (tmp_path / program).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / program).chmod(0o755)

    def folder_and_advice(job: int, **more: str) -> tuple[str, str]:
        surroundings = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": "/submit", "SLURM_JOB_ID": str(job),
                        "SLURM_JOB_NAME": name, "SLURM_ARRAY_JOB_ID": str(job), "SLURM_ARRAY_TASK_ID": "4", **more}
        done = subprocess.run(["bash", str(ROOT / f"jobs/slurm/{name}.sh")], capture_output=True, text=True, env=surroundings,
                              check=False)
        assert done.returncode == 75, done.stderr
        words = done.stdout.splitlines()
        return words[words.index("--output_dir") + 1], done.stderr.strip()

    folder, advice = folder_and_advice(7)
    variable, _, value = advice.removeprefix("to go on: submit again with ").partition("=")
    assert folder_and_advice(8, **{variable: value}) == (folder, advice)


@pytest.mark.parametrize(("arguments", "said"), [
    (["--set", "num_client=3"], "num_clients"),
    (["--config", "absent.yaml"], "absent.yaml"),
    (["--set", "mode=serial"], "not for a job of several ranks"),
    (["--nodes", "1", "--ntasks-per-node", "1"], "2 ranks or more"),
    (["--nodes", "0"], "is not a number from 1"),
    (["--sbatch=-x"], "in full"),
    (["--sbatch=--array=1-3"], "sweep.sh"),
    (["--job-name", "a/b"], "letters, digits"),
    (["--tim", "1"], "--tim"),
    (["--set", "output_dir=mine"], "--output_dir"),
    (["--gpus-per-node", "4", "--set", "learner_config.device=cpu"], "learner_config.device"),
    (["--gpus-per-node", "4", "--set", "trainer_config.server_hosts_clients=false"], "trainer_config.server_hosts_clients"),
    (["--sbatch=--job-name=a/b"], "--job-name"),
    (["--nodes", "3", "--sbatch=--nodes=4"], "--nodes is given as well"),
    (["--sbatch=--nice=1", "--sbatch=--nice=2"], "--nice is given as well"),
    (["--output_dir", "$HOME/x"], "--output_dir: $HOME/x holds a variable"),
])
def test_what_is_wrong_is_said_before_the_queue(capsys, arguments, said):
    """S-HPC-02: status 2, and nothing on stdout that could be taken for a script."""
    assert main(["submit", *arguments, "--dry_run"]) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert told.out == ""


def test_a_folder_below_home(capsys, monkeypatch, tmp_path):
    """The shell does not write out the ~ of --output_dir=~/x."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"\nOUTPUT={tmp_path.resolve()}/x\n" in script(capsys, "--output_dir=~/x")


@pytest.mark.parametrize("status", [0, 1])
def test_submitting(capsys, monkeypatch, tmp_path, config, status):
    """The script stays, for whoever wants to see it, and sbatch's own words are passed on."""
    monkeypatch.chdir(tmp_path)
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(f"#!/bin/sh\ncp \"$1\" got.sh\necho Submitted batch job 17\nexit {status}\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert main(["submit", "--config", str(config), "--job-name", "mine"]) == status
    told = capsys.readouterr()
    assert "Submitted batch job 17" in told.out
    assert (tmp_path / "got.sh").read_text() == (tmp_path / "mine.slurm.sh").read_text()


def test_a_folder_that_takes_no_script(capsys, monkeypatch, tmp_path, config):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    (tmp_path / "mine.slurm.sh").mkdir()
    assert main(["submit", "--config", str(config), "--job-name", "mine"]) == 2
    assert f"{tmp_path}/mine.slurm.sh cannot be written: Is a directory" in capsys.readouterr().err


def test_without_slurm(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["submit"]) == 2
    assert "--dry_run" in capsys.readouterr().err
