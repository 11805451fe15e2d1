"""A run of many rounds holds as much at its end as at its beginning, in every process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mpi_helper import ROOT


# Not with "mpi" for a name: pytest-mpi would take it for its mark, and skip the test.
@pytest.mark.parametrize("mode", ["serial", "parallel", "mpi"], ids=["alone", "workers", "under mpirun"])
def test_nothing_grows(tmp_path: Path, mode: str) -> None:
    """S-LIFE-07: 500 rounds, looked at after 50 and at the end; the benchmark does it for 10,000. A record for each round."""
    subprocess.run([sys.executable, "benchmarks/bench_long_run.py", "--rounds", "500", "--modes", mode, "--json",
                    str(tmp_path / "found.json")], cwd=ROOT, check=True, timeout=200, stdout=subprocess.DEVNULL)
    found = json.loads((tmp_path / "found.json").read_text())[mode]
    assert found["rows"] == 500
    assert set(found["processes"]) == {"serves", "trains"}
    for rows in found["processes"].values():
        early, late = rows["early"], rows["late"]
        assert late["round"] - early["round"] >= 400
        assert late["files"] <= early["files"]
        assert late["segments"] <= early["segments"]
        assert late["threads"] <= early["threads"] + 1  # the one that writes checkpoints, from round 100 on
        assert late["resident_mb"] <= early["resident_mb"] + 25  # h5py comes with it
