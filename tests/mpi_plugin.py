"""A pytest plugin for suites that run on all ranks at once: ``mpirun -n 3 python -m pytest -p tests.mpi_plugin``.

A test that fails on one rank leaves the others waiting for it. So the first failure is shown, with its rank, and ends
the job. At the end every rank says how many tests passed; a suite in which none did has failed.
"""

from __future__ import annotations

import sys

import pytest
from mpi4py import MPI

_passed: list[str] = []


def _rank() -> str:
    return f"rank {MPI.COMM_WORLD.Get_rank()} of {MPI.COMM_WORLD.Get_size()}"


def _end_job(what: str) -> None:
    sys.stderr.write(f"{_rank()}: {what}\n")
    sys.stderr.flush()
    sys.stdout.flush()
    MPI.COMM_WORLD.Abort(1)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        _end_job(f"{report.nodeid} failed in {report.when}\n{report.longreprtext}")
    if report.when == "call" and report.passed:
        _passed.append(report.nodeid)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _end_job(f"{report.nodeid} cannot be collected\n{report.longreprtext}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    sys.stderr.write(f"{_rank()}: {len(_passed)} MPI tests passed\n")
    if not _passed and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
