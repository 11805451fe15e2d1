"""Every algorithm: the same bits in serial, parallel and MPI mode, at every number of ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mpi_helper import mpirun_command
from tests.system.algorithms import ALGORITHMS
from tests.system.conftest import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
WORLDS = {"serial": ("serial", None), "parallel": ("parallel", None), "mpirun -n 3": ("mpi", 3), "mpirun -n 5": ("mpi", 5)}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What all algorithms came to in a world, each world started once."""
    known = {}

    def of(world):
        if world not in known:
            mode, ranks = WORLDS[world]
            line = [sys.executable, "-m", "tests.system.algorithms", mode, str(tmp_path_factory.mktemp("runs"))]
            command = line if ranks is None else mpirun_command(ranks, *line)
            done = subprocess.run(command, cwd=ROOT, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True,
                                  timeout=280)
            assert done.returncode == 0, done.stderr
            known[world] = json.loads(done.stdout.splitlines()[-1])
        return known[world]

    return of


@pytest.mark.parametrize("world", [world for world in WORLDS if world != "serial"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_same_bits_in_every_world(results, world, name):
    digest, rows = results(world)[name]
    wanted_digest, wanted_rows = results("serial")[name]
    assert digest == wanted_digest
    assert rows == wanted_rows


def test_the_algorithms_differ(results):
    """Else the settings would have no effect, and equal bits would prove little. Ditto's global model is FedAvg's."""
    digests = [digest for name, (digest, _) in results("serial").items() if name != "ditto"]
    assert results("serial")["ditto"][0] == results("serial")["fedavg"][0]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize("name", ["ditto", "local bias", "FedBN"])
def test_personal_and_global_evaluation_are_both_reported(results, name):
    for row in results("serial")[name][1]:
        assert {"accuracy", "client_accuracy", "personal_accuracy"} <= row.keys()
    last = results("serial")[name][1][-1]
    assert last["personal_accuracy"] != last["client_accuracy"]
