"""Whole runs as a user starts them: separate processes, one command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.mpi_helper import kill_tree, mpirun_command

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}


@dataclass
class Finished:
    """A run that ended: exit status, output, and its folder."""

    status: int
    stdout: str
    stderr: str
    folder: Path
    seconds: float

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "summary.json").read_text())

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rounds' records without times."""
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]

    @property
    def result(self) -> tuple[Any, ...]:
        """All that must be equal in every mode."""
        return self.summary["weights_sha256"], self.summary["final"], self.rows


def command(*arguments: str, folder: Path, settings: Sequence[str] = (), mode: str | None = None,
            ranks: int | None = None, extra: Sequence[str] = ()) -> list[str]:
    """The command line of a run; with `ranks` under mpirun, whose options are `extra`. Of settings with one key, the last counts.
    """
    last = {text.partition("=")[0]: text for text in settings}
    line = [sys.executable, "-m", "federation.launch", *arguments, *(["--mode", mode] if mode else []),
            "--output_dir", str(folder), "--quiet", *(["--set", *last.values()] if last else [])]
    return line if ranks is None else mpirun_command(ranks, *line, extra=extra)


@pytest.fixture
def launch(tmp_path: Path) -> Callable[..., Finished]:
    """Start `python -m federation.launch` with settings and wait for its end (at most `timeout` seconds)."""
    count = 0

    def start(*arguments: str, mode: str | None = None, ranks: int | None = None, folder: Path | None = None,
              settings: Sequence[str] = (), env: Mapping[str, str] | None = None, timeout: float = 120,
              extra: Sequence[str] = (), status: int | None = 0) -> Finished:
        nonlocal count
        count += 1
        folder = folder or tmp_path / f"run{count}"
        line = command(*arguments, folder=folder, settings=settings, mode=mode, ranks=ranks, extra=extra)
        began = time.monotonic()
        with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                              errors="replace", env={**os.environ, **ENVIRONMENT, **(env or {})}) as process:
            try:
                stdout, stderr = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                kill_tree(process.pid)
                stdout, stderr = process.communicate()
                pytest.fail(f"still running after {timeout} s: {' '.join(line)}\n{stdout}\n{stderr}")
        finished = Finished(process.returncode, stdout, stderr, folder, time.monotonic() - began)
        if status is not None:
            assert finished.status == status, f"{' '.join(line)}\n{stdout}\n{stderr}"
        return finished

    return start
