"""The programs that ship with the package, in every mode."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.mpi_helper import mpirun


def python(module: str, *arguments: str, ranks: int | None = None) -> str:
    line = [sys.executable, "-m", module, *arguments]
    alone = dict(capture_output=True, text=True, timeout=120)
    done = subprocess.run(line, **alone) if ranks is None else mpirun(ranks, *line)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_fedavg_by_hand_learns():
    accuracies = [float(found) for found in re.findall(r"accuracy ([0-9.]+)", python("federation.examples.fedavg_by_hand"))]
    assert len(accuracies) == 30
    assert accuracies[-1] > 0.85 > accuracies[0]


def test_a_program_of_ones_own_gives_the_same_bits_in_every_world():
    outputs = [python("federation.examples.program", "--mode", "memory"),
               python("federation.examples.program", "--mode", "processes"),
               python("federation.examples.program", "--mode", "mpi", ranks=4)]
    assert "after round 5" in outputs[0]
    assert outputs[1] == outputs[2] == outputs[0]


@pytest.mark.parametrize("world", [dict(mode="parallel"), dict(ranks=3)], ids=["parallel", "mpirun"])
def test_components_of_ones_own_give_the_same_bits_in_every_mode(launch, world):
    config = ("--config", "federation/examples/custom.yaml")
    serial = launch(*config, mode="serial")
    other = launch(*config, **world)
    assert other.summary["weights_sha256"] == serial.summary["weights_sha256"]
    assert serial.summary["rounds_completed"] == 5


@pytest.mark.parametrize("ranks", [None, 1, 3])
def test_the_self_test_passes(ranks):
    output = python("federation.tests.test_basic", ranks=ranks)
    assert "ok: the same bits everywhere" in output
    assert ("mpi, 3 ranks" in output) == (ranks == 3)
