"""The MPI transport as whole jobs: the suite on 1 to 4 ranks, failures, exit statuses, missing parts."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.mpi_helper import NOTHING_BUFFERED, ROOT, is_alive, mpirun, needs_mpi, report

SUITE = "tests/node_comm/mpi_suite.py"


def run_suite(n: int, suite: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run the tests in `suite` on `n` ranks at once."""
    return mpirun(n, sys.executable, "-m", "pytest", "-q", "--color=no", "-p", "tests.mpi_plugin",
                  "-p", "no:cacheprovider", "--only-mpi", suite, timeout=timeout)


def assert_all_pass(n: int, suite: str, least: int) -> None:
    """Every one of `n` ranks passes the suite, which has `least` tests at least."""
    done = run_suite(n, suite)
    passed = re.findall(rf"rank (\d) of {n}: (\d+) MPI tests passed", done.stderr)
    assert done.returncode == 0, report(done)
    assert sorted(int(rank) for rank, _ in passed) == list(range(n)), report(done)
    assert all(int(count) >= least for _, count in passed), report(done)


def run_program(n: int, *words: str, extra: tuple[str, ...] = (), timeout: float = 60,
                ) -> subprocess.CompletedProcess[str]:
    """Run one of `mpi_programs` on `n` ranks."""
    return mpirun(n, sys.executable, "-m", "tests.node_comm.mpi_programs", *words, extra=extra, timeout=timeout)


@needs_mpi
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_suite(n: int) -> None:
    """S-PKG-03, S-PKG-04: every rank passes the suite, and none has an empty one."""
    assert_all_pass(n, SUITE, 60)


@needs_mpi
@pytest.mark.parametrize("n", [1, 3])
def test_a_failing_rank_ends_the_suite_and_is_shown(n: int, tmp_path: Path) -> None:
    """S-PKG-03: a test that one rank fails while the others wait for it."""
    suite = tmp_path / "failing_suite.py"
    suite.write_text("import pytest\nfrom mpi4py import MPI\n\n@pytest.mark.mpi\ndef test_it():\n"
                     "    rank = MPI.COMM_WORLD.Get_rank()\n"
                     "    assert rank != MPI.COMM_WORLD.Get_size() - 1, 'deliberately'\n"
                     "    MPI.COMM_WORLD.Barrier()\n")
    done = run_suite(n, str(suite), timeout=60)
    assert 1 <= done.returncode <= 125, report(done)
    assert done.stderr.count("AssertionError: deliberately") == 1, report(done)
    assert re.search(rf"rank {n - 1} of {n}: .*test_it failed", done.stderr), report(done)


@needs_mpi
@pytest.mark.parametrize("text", ["", "import pytest\n\n@pytest.mark.mpi(min_size=9)\ndef test_it():\n    pass\n",
                                  "import a_module_that_is_not_there\n"], ids=["no test", "all skipped", "broken"])
def test_a_suite_in_which_nothing_ran_has_failed(text: str, tmp_path: Path) -> None:
    """S-PKG-03: no tests are no success."""
    suite = tmp_path / "empty_suite.py"
    suite.write_text(text)
    assert run_suite(2, str(suite), timeout=60).returncode in range(1, 126)


@needs_mpi
@pytest.mark.parametrize(("how", "n", "rank"), [("raise", 3, 2), ("raise", 3, 0), ("raise", 1, 0), ("import", 3, 1),
                                                ("in_a_task", 3, 1), ("while_computing", 2, 1)])
def test_a_rank_that_raises_ends_the_job(how: str, n: int, rank: int) -> None:
    """S-LIFE-01: the job ends, the traceback is shown once, with the rank."""
    done = run_program(n, "fail", how, str(rank), timeout=20)
    assert done.returncode == 1, report(done)
    message = "ModuleNotFoundError: No module named 'a_module" if how == "import" else f"rank {rank} was told to fail"
    assert len(re.findall(f"^ *[| ]*(?:ValueError: )?{message}", done.stderr, re.MULTILINE)) == 1, report(done)
    assert f"rank {rank} of {n} on " in done.stderr, report(done)
    assert "mpi_programs.py" in done.stderr, report(done)


@needs_mpi
@pytest.mark.parametrize(("status", "n", "ranks"), [(3, 2, "1"), (3, 3, "0"), (2, 3, "012"), (75, 1, "0")])
def test_a_rank_that_exits_ends_the_job_with_its_status(status: int, n: int, ranks: str) -> None:
    """S-LIFE-01, S-LIFE-02: sys.exit on one rank leaves nobody waiting; where all do it, nobody is aborted."""
    done = run_program(n, "fail", str(status), *ranks, timeout=30)
    assert done.returncode == status, report(done)
    assert "Traceback" not in done.stderr, report(done)
    assert ("MPI_ABORT" in done.stderr) == (len(ranks) < n), report(done)


@needs_mpi
@pytest.mark.parametrize("rank", [0, 3])
def test_one_rank_alone_ends_the_job(rank: int) -> None:
    """S-HPC-04: that its connections are closed gives no other rank a reason to abort, with a status that may win."""
    done = run_program(4, "end_slowly", "75", str(rank), extra=("--mca", "btl", "tcp,self"), timeout=30)
    assert done.returncode == 75, report(done)
    assert re.search("closing [1-9]", done.stdout), report(done)
    assert "An error occurred" not in done.stderr, report(done)


@needs_mpi
def test_the_last_words_of_a_rank_that_exits_are_shown() -> None:
    """S-LIFE-01: sys.exit("a text") on one rank."""
    done = run_program(2, "fail", "these words", "1", timeout=30)
    assert done.returncode == 1, report(done)
    assert done.stderr.count("these words") == 1, report(done)


@needs_mpi
@pytest.mark.parametrize("n", [1, 5])
def test_a_job_that_ends_well_is_quiet(n: int) -> None:
    """S-LIFE-02, S-PKG-04: status 0, nothing on stderr."""
    done = run_program(n, "ring", "3", "1000")
    assert done.returncode == 0, report(done)
    assert done.stdout == f"1000 values: {sum(range(n)) + 2 * n}\n", report(done)
    assert done.stderr == "", report(done)


@needs_mpi
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("how", ["receiving", "sending", "arriving", "to_itself", "twice"])
def test_leaving_with_something_pending(how: str, n: int) -> None:
    """S-LIFE-02: what nobody took, or will send, holds no process back."""
    done = run_program(n, "leave", how)
    assert done.returncode == 0, report(done)
    assert done.stderr == "", report(done)


@needs_mpi
@pytest.mark.parametrize("n", [1, 3])
def test_a_transport_that_is_not_closed_does_not_hang(n: int) -> None:
    done = run_program(n, "without_closing")
    assert done.returncode == 0, report(done)


@needs_mpi
@pytest.mark.parametrize("extra", [(), NOTHING_BUFFERED], ids=["default", "nothing buffered"])
@pytest.mark.parametrize("n", [2, 5])
def test_ranks_that_all_send_first(n: int, extra: tuple[str, ...]) -> None:
    """S-COMM-06: sizes around every eager limit, also where MPI buffers nothing."""
    done = run_program(n, "ring", "5", "1", "1000", "1000000", extra=extra)
    assert done.returncode == 0, report(done)
    expected = sum(range(n)) + 4 * n
    assert done.stdout.splitlines() == [f"{size} values: {expected}" for size in (1, 1000, 1000000)], report(done)


@needs_mpi
@pytest.mark.parametrize(("n", "deaths", "said"), [
    (4, ["5:3"], ["3 left, without [3]"]),
    (5, ["3:2", "9:14"], ["4 left, without [2]", "2 left, without [1, 4]"]),
    (3, ["0:1", "19:2"], ["2 left, without [1]", "1 left, without [2]"]),
])
def test_a_world_outlives_its_ranks(n: int, deaths: list[str], said: list[str]) -> None:
    """S-LIFE-03: with ULFM, several at once too; status 0. Ranks keep the numbers that mpirun gave them."""
    done = run_program(n, "survive", *deaths, extra=("--with-ft", "ulfm"), timeout=60)
    assert done.returncode == 0, report(done)
    assert done.stdout.splitlines() == [*said, "done"], report(done)


@needs_mpi
@pytest.mark.parametrize("n", [2, 3])
def test_nobody_outlives_rank_0(n: int) -> None:
    """S-LIFE-01: all others end within seconds, and the job's status is not 0."""
    done = run_program(n, "survive", "4:0", extra=("--with-ft", "ulfm"), timeout=20)
    assert done.returncode != 0, report(done)
    assert "rank 0 is lost" in done.stderr, report(done)


@needs_mpi
def test_without_ulfm_a_lost_rank_ends_the_job() -> None:
    """S-LIFE-03."""
    assert run_program(3, "survive", "4:2", timeout=20).returncode != 0


@needs_mpi
def test_options_that_switch_buffering_off_do_so() -> None:
    """S-COMM-06: the premise of the test above, with plain MPI."""
    assert run_program(2, "facing_sends", "8").stdout == "buffered\n"
    assert run_program(2, "facing_sends", "8", extra=NOTHING_BUFFERED).stdout == "not buffered\n"


@needs_mpi
def test_without_a_launcher_the_world_has_one_rank() -> None:
    """S-PKG-04: no mpirun at all."""
    done = subprocess.run([sys.executable, "-m", "tests.node_comm.mpi_programs", "ring", "2", "10"], cwd=ROOT,
                          capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "10 values: 1\n"), done.stderr


@needs_mpi
def test_a_job_that_hangs_is_killed_with_all_its_ranks() -> None:
    """S-PKG-03: the tests' own time limit leaves no process behind, and shows what was written."""
    with pytest.raises(pytest.fail.Exception, match="did not end within") as caught:
        run_program(2, "hang", timeout=8)
    ranks = [int(pid) for pid in re.findall(r"process (\d+) hangs", str(caught.value))]
    assert len(ranks) == 2, str(caught.value)
    deadline = time.monotonic() + 20  # a killed process may still have to be scheduled once, to die
    while any(map(is_alive, ranks)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, ranks))


BROKEN = {
    "no mpi4py": ("import sys\nsys.modules['mpi4py'] = None\n", ("mpi4py is not installed", "`mpi` extra")),
    "no MPI library": ("raise RuntimeError('cannot load MPI library')\n", ("cannot load MPI library", "`mpi` extra")),
    "bad MPI library": ("raise ImportError('libmpi.so.40: no such file')\n", ("libmpi.so.40", "`mpi` extra")),
    "mpi4py lacks a part": ("import a_part_of_mpi4py\n", ("No module named 'a_part_of_mpi4py'", "`mpi` extra")),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_missing_or_broken_mpi_is_explained(kind: str, tmp_path: Path) -> None:
    """S-PKG-01: one error that says what to install, with the original one as its cause."""
    code, words = BROKEN[kind]
    package = tmp_path / "mpi4py"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "MPI.py").write_text("" if kind == "no mpi4py" else code)
    program = (f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n{code if kind == 'no mpi4py' else ''}"
               "import node_comm, node_comm.mpi\n"
               "try:\n    node_comm.connect('mpi')\n"
               "except node_comm.Unavailable as error:\n"
               "    print(type(error.__cause__).__name__, '|', error.__cause__, '|', error)\n")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60,
                          check=False)
    assert done.returncode == 0, done.stderr
    for word in words:
        assert word in done.stdout
