"""A job whose time is up stops between two rounds, and goes on to the same end."""

from __future__ import annotations

import time

import pytest
import yaml

from tests.system.algorithms import ALGORITHMS

WORLDS = [dict(mode="serial"), dict(mode="parallel"), dict(ranks=3)]


@pytest.mark.parametrize("name", ["scaffold", "fedbuff"])
@pytest.mark.parametrize("world", WORLDS, ids=["serial", "parallel", "mpirun"])
def test_a_round_a_job(launch, tmp_path, name, world):
    """S-HPC-04: with no time for a second round each job does one, also where clients' state is on other ranks.

    No checkpoint but the stop's own is due. Each stop has status 75 and says why; the end is that of one undisturbed run.
    """
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(ALGORITHMS[name]))
    settings = ["trainer_config.max_rounds=4", "checkpoint.every=1000", "num_workers=2"]
    reference = launch("--config", str(config), mode="serial", settings=settings)
    folder = tmp_path / "stopped"
    for number in (1, 2, 3):
        job = {"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": str(int(time.time()) + 1)}
        stopped = launch("--config", str(config), "--resume", "auto", folder=folder, settings=settings, env=job, status=75,
                         **world)
        assert [row["round"] for row in stopped.rows] == list(range(1, number + 1))
        assert stopped.stderr.count("stopped by the job's time") == 1
        assert f"round_{number:06d}.h5" in stopped.stderr
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": str(int(time.time()) + 1)}
    finished = launch("--config", str(config), "--resume", "auto", folder=folder, settings=settings, env=job, **world)
    assert finished.result == reference.result


def test_a_job_with_time_is_left_alone(launch):
    """S-HPC-03: the time of an allocation is read where there is one, and what it says is no reason to stop early."""
    settings = ["trainer_config.max_rounds=3", "components.model=model.numpy.linear", "tracker=none"]
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": str(int(time.time()) + 86400)}
    timed = launch(mode="serial", settings=settings, env=job)
    unlimited = launch(mode="serial", settings=settings, env={"SLURM_JOB_ID": "7", "PATH": "/nowhere"})
    assert timed.result == unlimited.result
    assert "the time that is left is not known" in unlimited.stderr
