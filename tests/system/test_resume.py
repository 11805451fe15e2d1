"""Killed at any moment and resumed: always the same end."""

from __future__ import annotations

import json
import os
import random
import subprocess
import time

import pytest

import federation
from federation.infra.run_folder import RunFolder
from tests.mpi_helper import kill_tree
from tests.system.conftest import ENVIRONMENT, command
from tests.system.test_failure import faulty

SETTINGS = [*faulty("none", delay=0.01), "num_clients=8", "trainer_config.cohort_size=3", "trainer_config.max_rounds=25"]


@pytest.mark.parametrize("world", [dict(mode="serial"), dict(mode="parallel"), dict(ranks=3)],
                         ids=["serial", "parallel", "mpirun"])
def test_killed_at_random_moments(launch, tmp_path, world):
    """S-CKPT-01 and S-TRACK-02: twenty kills in all over the three modes; the same digest, each round recorded once."""
    moments = random.Random(repr(world))
    reference = launch(mode="serial", settings=SETTINGS)
    for attempt in range(7):
        folder = tmp_path / f"killed{attempt}"
        with subprocess.Popen(command(folder=folder, settings=SETTINGS, **world), start_new_session=True, stderr=subprocess.DEVNULL,
                              env={**os.environ, **ENVIRONMENT}) as process:
            time.sleep(moments.uniform(0.3, 0.8 * reference.seconds + 0.5))
            kill_tree(process.pid)
        resumed = launch("--resume", folder=folder, settings=SETTINGS, **world)
        assert resumed.result == reference.result


def test_resume_of_a_finished_run_changes_nothing(launch):
    """S-CKPT-08 a, c: status 0, says so, and every file is as it was."""
    run = launch(mode="serial", settings=SETTINGS)
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    for settings in (SETTINGS, [*SETTINGS, "trainer_config.max_rounds=10"]):
        again = launch("--resume", folder=run.folder, settings=settings, mode="serial")
        assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before
        assert "25" in again.stdout + again.stderr


def test_killed_between_the_last_checkpoint_and_the_summary(launch):
    """S-CKPT-01: all rounds are done, but the run has not said so; a resumed one does, and trains nothing."""
    run = launch(mode="serial", settings=SETTINGS)
    wanted = run.result
    (run.folder / "summary.json").unlink()
    assert launch("--resume", folder=run.folder, settings=SETTINGS, mode="parallel").result == wanted


def test_more_rounds_go_on_from_the_end(launch):
    """S-CKPT-08 b: rounds 26 to 30 are trained, and the end is that of a run of 30 rounds."""
    longer = [*SETTINGS, "trainer_config.max_rounds=30"]
    run = launch(mode="serial", settings=SETTINGS)
    resumed = launch("--resume", folder=run.folder, settings=longer, mode="serial")
    assert resumed.summary["weights_sha256"] == launch(mode="serial", settings=longer).summary["weights_sha256"]
    assert [row["round"] for row in resumed.rows] == list(range(1, 31))


def test_a_longer_run_killed_before_its_summary_is_not_over(tmp_path, monkeypatch):
    """The summary of the run that it goes on from is not taken for its own."""
    def run(rounds):
        return federation.run({"mode": "serial", "num_clients": 4, "tracker": "none", "output_dir": str(tmp_path / "run"),
                               "trainer_config": {"max_rounds": rounds}, "components": {"model": "model.numpy.linear"}},
                              resume="auto")

    def killed(folder, summary):
        raise KeyboardInterrupt

    run(2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, "write_summary", killed)
        run(4)
    result, summary = run(4), json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["rounds_completed"], summary["weights_sha256"]) == (4, result.weights_sha256)


def test_a_model_that_differs_is_refused(launch):
    """S-CKPT-08 d: another model cannot go on from this checkpoint; the parameters that differ are listed."""
    small = ["trainer_config.max_rounds=2", "num_clients=3"]
    run = launch(mode="serial", settings=small)
    other = [*small, "trainer_config.max_rounds=4", "model_config.hidden_sizes=[17]"]
    refused = launch("--resume", folder=run.folder, settings=other, mode="serial", status=None)
    assert refused.status in (1, 2)
    assert "hidden_sizes" in refused.stderr or "17" in refused.stderr


def test_damaged_checkpoints_are_passed_over(launch):
    """S-CKPT-02: the newest good one is used, with a warning for each bad one; a bad one named is refused."""
    run = launch(mode="serial", settings=SETTINGS)
    files = sorted((run.folder / "checkpoints").glob("round_*.h5"))
    assert len(files) >= 3
    content = files[-1].read_bytes()
    files[-1].write_bytes(content[: len(content) // 2])
    files[-2].write_bytes(b"")
    resumed = launch("--resume", folder=run.folder, settings=SETTINGS, mode="serial")
    assert resumed.result == run.result
    for path in files[-2:]:
        assert path.name in resumed.stderr
    files[-2].write_bytes(b"")
    refused = launch("--resume", str(files[-2]), folder=run.folder, settings=SETTINGS, mode="serial", status=None)
    assert refused.status in (1, 2)
    assert files[-2].name in refused.stderr


def test_a_checkpoint_that_is_not_there_is_a_wrong_command_line(launch):
    """Before anything is written."""
    refused = launch("--resume", "nowhere/round_000001.h5", settings=SETTINGS, mode="serial", status=2)
    assert "nowhere/round_000001.h5" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not refused.folder.exists()


def test_a_folder_with_another_run_is_left_alone(launch):
    """Refused without --resume; replaced with overwrite."""
    run = launch(mode="serial", settings=SETTINGS)
    refused = launch(mode="serial", settings=SETTINGS, folder=run.folder, status=2)
    assert "--resume" in refused.stderr
    assert launch(mode="serial", settings=[*SETTINGS, "overwrite=true"], folder=run.folder).result == run.result
