"""How many threads a process computes with."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from federation.errors import ConfigError
from federation.infra import threads
from federation.infra.threads import apply_threads, available_cores, resolve_threads

SITUATIONS = [({}, 16), ({"OMP_NUM_THREADS": "3"}, 16), ({"OMP_NUM_THREADS": "3"}, 2)]


def test_auto_follows_the_variable_and_the_cores() -> None:
    """S-HPC-06: 16 cores, 8 workers: 2; with OMP_NUM_THREADS=3: 3; with 2 cores left: at most 2."""
    assert [resolve_threads("auto", 8, environ, cores) for environ, cores in SITUATIONS] == [2, 3, 2]


def test_one_whatever_the_machine_says(caplog: pytest.LogCaptureFixture) -> None:
    """S-HPC-06: the default 1 in all three, and one line where OMP_NUM_THREADS said otherwise."""
    for environ, cores in SITUATIONS:
        caplog.clear()
        with caplog.at_level(logging.INFO):
            assert resolve_threads(1, 8, environ, cores) == 1
        assert len(caplog.messages) == len(environ)
        assert all("OMP_NUM_THREADS=3" in message for message in caplog.messages)
    caplog.clear()
    assert resolve_threads(3, 8, {"OMP_NUM_THREADS": "3"}, 16) == 3
    assert not caplog.messages


@pytest.mark.parametrize(("environ", "workers", "cores", "expected"), [
    ({}, 1, 1, 1), ({}, 8, 2, 1), ({}, 3, 16, 5), ({}, 0, 4, 4), ({"OMP_NUM_THREADS": "4,2"}, 8, 16, 4),
    ({"OMP_NUM_THREADS": " 6 "}, 8, 16, 6), ({"OMP_NUM_THREADS": ""}, 8, 16, 2), ({"OMP_NUM_THREADS": "0"}, 8, 16, 2),
    ({"OMP_NUM_THREADS": "many"}, 8, 16, 2), ({"OMP_NUM_THREADS": "-1"}, 8, 16, 2),
    ({"OMP_NUM_THREADS": "²"}, 8, 16, 2),
])  # fmt: skip
def test_auto_in_odd_surroundings(environ: dict[str, str], workers: int, cores: int, expected: int) -> None:
    """S-HPC-06: lists, blanks and nonsense in the variable; fewer cores than workers."""
    assert resolve_threads("auto", workers, environ, cores) == expected


@pytest.mark.parametrize("setting", [0, -1, True, 1.0, "1", "all", None])
def test_other_settings_are_refused(setting: object) -> None:
    with pytest.raises(ConfigError, match=r"threads: .*is not allowed"):
        resolve_threads(setting, 1, {}, 4)  # type: ignore[arg-type]


def test_cores_follow_the_affinity() -> None:
    """S-HPC-06: a process that is bound to one core has one."""
    program = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n" \
              "from federation.infra.threads import available_cores; print(available_cores())"  # fmt: skip
    result = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True, check=True, timeout=60)
    assert result.stdout.strip() == "1"
    assert 1 <= available_cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("files", "expected"), [
    ({"cpu.max": "150000 100000"}, 2), ({"cpu.max": "max 100000"}, None), ({"cpu.max": "50000 100000"}, 1),
    ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
    ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None), ({}, None), ({"cpu.max": ""}, None),
])  # fmt: skip
def test_the_quota_of_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int | None
) -> None:
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(threads, "Path", lambda _: tmp_path)
    assert threads._quota() == expected


def test_libraries_agree_and_children_inherit() -> None:
    """S-HPC-06: torch, BLAS and the variables all say the same, before and after torch is imported."""
    program = """
import json, os, subprocess, sys
import numpy
from federation.infra.threads import apply_threads
before = apply_threads(2)
assert "torch" not in sys.modules
import torch
after = apply_threads(1)
child = subprocess.run(["sh", "-c", "echo $OMP_NUM_THREADS $MKL_NUM_THREADS $OPENBLAS_NUM_THREADS"],
                       capture_output=True, text=True).stdout.split()
print(json.dumps([before, after, torch.get_num_threads(), child]))
"""
    pytest.importorskip("torch")
    result = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True, check=True, timeout=120)
    before, after, torch_threads, child = json.loads(result.stdout)
    assert before
    assert set(before.values()) == {2}
    assert after.items() >= {"torch": 1, "openblas": 1}.items()
    assert set(after.values()) == {1}
    assert torch_threads == 1
    assert child == ["1", "1", "1"]


def test_the_number_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """S-HPC-06"""
    environ: dict[str, str] = {}
    with caplog.at_level(logging.INFO):
        apply_threads(1, environ)
    assert caplog.messages[-1].startswith("threads: 1 a process")
    assert environ == {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_CBWR": "AUTO,STRICT",
                       "THP_MEM_ALLOC_ENABLE": "1"}
