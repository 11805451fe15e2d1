"""Killed and resumed, on other ranks than before: server state, client state and what is in flight come back exactly."""

from __future__ import annotations

import os
import random
import subprocess
import time

import pytest
import yaml

from tests.mpi_helper import kill_tree
from tests.system.algorithms import ALGORITHMS
from tests.system.conftest import ENVIRONMENT, command

ROUNDS = 60
WORLDS = [dict(mode="serial"), dict(mode="parallel"), dict(ranks=3)]


def kill_after(rows, folder, line):
    """Start `line`, and kill all of it once `rows` rounds are on record."""
    record = folder / "metrics.jsonl"
    with subprocess.Popen(line, start_new_session=True, stderr=subprocess.DEVNULL,
                          env={**os.environ, **ENVIRONMENT}) as process:
        limit = time.monotonic() + 60
        while not record.exists() or record.read_bytes().count(b"\n") < rows:
            assert process.poll() is None, "the run ended before it was killed"
            assert time.monotonic() < limit, "the run does not come on"
            time.sleep(0.001)
        kill_tree(process.pid)


@pytest.mark.parametrize("name", ["fedadam", "scaffold", "feddyn", "FedBN", "momentum kept", "fedasync", "fedbuff"])
def test_killed_and_resumed(launch, tmp_path, name):
    """S-CKPT-07: in three worlds in turn, killed in the first two of them, with a checkpoint every third round."""
    chance = random.Random(name)
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(ALGORITHMS[name]))
    settings = [f"trainer_config.max_rounds={ROUNDS}", "checkpoint.every=3", "num_workers=2"]
    reference = launch("--config", str(config), mode="serial", settings=settings)
    assert len(reference.rows) == ROUNDS
    folder = tmp_path / "killed"
    first, second, third = chance.sample(WORLDS, 3)
    moments = sorted(chance.sample(range(4, ROUNDS - 10), 2))
    kill_after(moments[0], folder, command("--config", str(config), folder=folder, settings=settings, **first))
    kill_after(moments[1], folder, command("--config", str(config), "--resume", folder=folder, settings=settings, **second))
    resumed = launch("--config", str(config), "--resume", folder=folder, settings=settings, **third)
    assert resumed.result == reference.result
