"""What goes wrong while running: a client, a rank, a signal. Nothing hangs, nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import federation
from federation.core.aggregator import Aggregator
from federation.errors import FederationError
from federation.infra.recorder import Recorder
from federation.infra.tracker import NoTracker
from federation.launch import report
from federation.session import Session, Stopped, stop_signals
from tests.system.conftest import ENVIRONMENT, command

FAULTY = ["plugins=[tests/system/faulty.py]", "components.learner=test.learner.faulty",
          "components.model=model.numpy.linear", "num_clients=4", "trainer_config.max_rounds=3", "tracker=none"]
WORLDS = [dict(mode="serial"), dict(mode="parallel"), dict(ranks=3)]
NAMES = ["serial", "parallel", "mpirun"]


def faulty(fault: str, **learner: object) -> list[str]:
    return [*FAULTY, "num_workers=2", f"learner_config.fault={fault}",
            *(f"learner_config.{key}={value}" for key, value in learner.items())]


@pytest.fixture(params=WORLDS, ids=NAMES)
def world(request):
    return request.param


def test_a_client_that_raises_contributes_nothing(launch, world):
    run = launch(settings=faulty("raise", client="client_1", round=2), **world)
    assert [row["clients_failed"] for row in run.rows] == [0, 1, 0]
    assert "client_1" in run.stderr
    assert "deliberate fault of client_1" in run.stderr
    assert "Traceback" in run.stderr


def test_a_metric_that_is_none(launch, world):
    """S-TRACK-05: an integer that no message carries is the failure of its client in every mode, and ends no run."""
    median = "components.aggregator=federated.aggregator.median"
    run = launch(settings=[*faulty("metric", client="client_1", round=2), median], **world)
    assert [row["clients_failed"] for row in run.rows] == [0, 1, 0]
    assert "18446744073709551616 as its metric 'size': a metric is a number" in run.rows[1]["failures"]["client_1"]


@pytest.mark.parametrize("fault", ["nan", "inf"])
def test_a_diverged_client_is_dropped(launch, world, fault):
    """S-AGG-10: named with parameter and round, counted, and the global model stays finite."""
    run = launch(settings=faulty(fault, client="client_2", round=2), **world)
    assert [row["clients_failed"] for row in run.rows] == [0, 1, 0]
    assert "client_2" in run.stderr
    assert "round 2" in run.stderr
    assert run.summary["final"]["accuracy"] == run.summary["final"]["accuracy"]


def test_a_diverged_client_ends_the_run_when_asked(launch, world):
    """S-AGG-10: the policy `raise`."""
    run = launch(settings=[*faulty("nan", client="client_2", round=2), "on_divergence=raise"], status=1, **world)
    assert "client_2" in run.stderr
    assert len(run.rows) == 1


def test_too_few_successes_end_the_run(launch, world):
    """S-AGG-10: all clients bad: the round fails and the checkpoint before it stays."""
    run = launch(settings=faulty("nan", round=3), status=1, **world)
    assert "min_clients" in run.stderr
    assert [row["round"] for row in run.rows] == [1, 2]
    assert (run.folder / "checkpoints" / "round_000002.h5").exists()


def test_samples_that_add_up_to_zero(launch, world):
    """S-AGG-03: the same error in every mode, with round and clients, and no NaN."""
    run = launch(settings=faulty("no_samples", round=2), status=1, **world)
    assert "round 2" in run.stderr
    assert "add up to 0" in run.stderr
    assert "client_0" in run.stderr


def test_a_shape_that_differs_ends_the_run(launch, world):
    """S-COMM-08 and S-AGG-11: named with client, parameter and both shapes, on all ranks, within 10 s."""
    run = launch(settings=faulty("shape", client="client_1"), status=1, **world)
    for part in ("client_1", "(10, 64)", "(10, 63)"):
        assert part in run.stderr
    assert run.seconds < 30


@pytest.mark.parametrize("fault", ["float64", "fortran"])
def test_dtype_and_order_of_an_update_do_not_matter(launch, world, fault):
    """S-COMM-01 and S-COMM-02: one client in another float width or memory order gives the right mean."""
    assert launch(settings=faulty(fault, client="client_1"), **world).rows == \
        launch(settings=faulty("none"), mode="serial").rows


@pytest.mark.parametrize("fault", ["count", "nothing"])
def test_a_result_that_makes_no_sense(launch, world, fault):
    run = launch(settings=faulty(fault, client="client_1", round=2), status=None, **world)
    assert "client_1" in run.stderr
    assert run.status == (1 if fault == "count" else 0)


def test_an_evaluation_that_raises_ends_the_run(launch, world):
    """S-LIFE-02: an error of the server's evaluation in the last round is no success."""
    run = launch(settings=faulty("evaluate", round=3), status=None, **world)
    assert 1 <= run.status <= 125
    assert run.stderr.count("deliberate fault of the evaluation") >= 1


@pytest.mark.parametrize(("where", "text", "rounds"), [("step", "", 1), ("weigh", "no use", 0), ("construction", "", 0)])
def test_an_aggregator_that_ends_the_program(launch, world, where, text, rounds):
    """S-LIFE-01, S-LIFE-02: a sys.exit() was status 0 with rounds left to do; in a world of ranks, a traceback of asyncio."""
    run = launch(settings=[*faulty("none"), "components.aggregator=test.aggregator.leaving", f"aggregator_config.where={where}",
                           f"aggregator_config.text='{text}'"], status=1, **world)
    assert "_leave (" in run.stderr
    assert f") ends the program by sys.exit({text or None!r}), and the run is not over: " in run.stderr
    assert "CancelledError" not in run.stderr
    assert not (run.folder / "summary.json").exists()
    rows = run.folder / "metrics.jsonl"
    assert rounds == (len(run.rows) if rows.exists() else 0)
    assert run.seconds < 30


class Quits(Aggregator):
    """Ends the program as soon as it is made."""

    def __init__(self) -> None:
        sys.exit(0)

    def aggregate(self, updates, global_model=None):
        raise AssertionError("it was never made")


def test_a_program_goes_on_where_an_aggregator_would_end_it(tmp_path):
    config = {"mode": "serial", "num_clients": 2, "output_dir": str(tmp_path / "run"),
              "components": {"model": "model.numpy.linear", "aggregator": f"{__name__}:Quits"}}
    with pytest.raises(FederationError, match=r"ends the program by sys.exit\(0\)"):
        federation.run(config)


@pytest.mark.parametrize("world", WORLDS[1:], ids=NAMES[1:])
def test_a_process_that_dies_ends_the_job(launch, world):
    """S-LIFE-03: within seconds, with the exit status, and never a silent rest."""
    run = launch(settings=faulty("exit", client="client_1", round=2), status=None, **world)
    assert 1 <= run.status <= 125
    assert "7" in run.stderr


def test_an_import_that_fails_on_one_rank(launch, tmp_path):
    """S-LIFE-01: mpirun ends within seconds, not at the job's time limit."""
    plugin = tmp_path / "picky.py"
    plugin.write_text("import os\nif os.environ.get('OMPI_COMM_WORLD_RANK') == '2':\n    raise ImportError('not here')\n")
    run = launch(settings=[*FAULTY, f"plugins=[tests/system/faulty.py,{plugin}]"], ranks=3, status=None)
    assert 1 <= run.status <= 125
    assert "not here" in run.stderr


def test_a_hung_client_ends_the_round(launch, world):
    """S-LIFE-08: the time-out names who is missing."""
    run = launch(settings=[*faulty("hang", client="client_1", round=2), "trainer_config.round_timeout=2"], status=1, **world)
    assert "round_timeout" in run.stderr
    assert "round 2" in run.stderr


def processes_of(folder: Path) -> list[str]:
    """Processes whose command line names `folder`, or that were started by one that does."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
                if str(folder).encode() in environment and entry.name != str(os.getpid()):
                    found.append(f"{entry.name} {(entry / 'cmdline').read_bytes()!r} {(entry / 'stat').read_text()}")
            except OSError:
                continue
    return [process for process in found if ") Z " not in process]


@pytest.mark.parametrize("world", WORLDS, ids=NAMES)
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_leaves_a_checkpoint_and_nothing_else(launch, tmp_path, world, sent):
    """S-LIFE-06 and S-HPC-04: status 75, no process, no segment; and the run goes on from there to the same end."""
    settings = [*faulty("none", delay=0.05), "trainer_config.max_rounds=25", "checkpoint.every=1000"]
    folder = tmp_path / "stopped"
    before = set(os.listdir("/dev/shm"))
    line = command(folder=folder, settings=settings, **world)
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, start_new_session=True,
                          env={**os.environ, **ENVIRONMENT, "MARK": str(folder)}) as process:
        wait_for_rows(folder, 3)
        process.send_signal(sent)
        _, stderr = process.communicate(timeout=30)
    # mpirun answers SIGINT and SIGTERM itself: it ends its ranks, and reports its own status.
    assert process.returncode == 75 or ("ranks" in world and process.returncode in (1, 130, 143)), stderr
    if process.returncode == 75:
        assert list((folder / "checkpoints").glob("round_*.h5")), stderr
    deadline = time.monotonic() + 10
    while processes_of(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not processes_of(folder)
    assert {name for name in set(os.listdir("/dev/shm")) - before if "sem.mp" in name or "fed" in name} == set()
    resumed = launch("--resume", folder=folder, settings=settings, **world)
    assert resumed.result == launch(settings=[*settings, "learner_config.delay=0"], mode="serial").result
    assert [row["round"] for row in resumed.rows] == list(range(1, 26))


def wait_for_rows(folder: Path, count: int, seconds: float = 60) -> None:
    """Wait until the run in `folder` has recorded `count` rounds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if (folder / "metrics.jsonl").read_text().count("\n") >= count:
                return
        except FileNotFoundError:
            pass
        time.sleep(0.02)
    pytest.fail(f"{folder}: no {count} rounds within {seconds} s")


IMPATIENT = """
import asyncio, os, signal, sys
from federation.session import stop_signals

async def stopped():
    with stop_signals(ends_process=sys.argv[1] == "rank") as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        await stop
    for again in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
        os.kill(os.getpid(), again)
    os._exit(75)

asyncio.run(stopped())
"""


@pytest.mark.parametrize(("who", "status"), [("rank", 75), ("program", -signal.SIGUSR1)])
def test_a_second_signal_while_a_rank_tells_the_others(who, status):
    """S-HPC-04: it would end rank 0, with a status for which no job is requeued. A user's own program has its signals back."""
    assert subprocess.run([sys.executable, "-c", IMPATIENT, who], check=False, timeout=60).returncode == status


class Unwilling(NoTracker):
    """A tracker whose server is not there any more in the end."""

    def close(self):
        raise FederationError("tracker x, which is required, failed")


def test_what_fails_at_the_end_does_not_take_the_place_of_what_has_ended_the_run(tmp_path, monkeypatch, caplog):
    """S-LIFE-02: a run that a signal has stopped says so, with a checkpoint and the status with which it is put back into the
    queue, though its tracker fails as well."""
    monkeypatch.setattr("federation.session.make_tracker", lambda *_: Unwilling())
    monkeypatch.setattr(Recorder, "check_time", lambda recorder: signal.raise_signal(signal.SIGTERM))
    config = {"mode": "serial", "num_clients": 2, "output_dir": str(tmp_path / "run"), "trainer_config": {"max_rounds": 1000},
              "components": {"model": "model.numpy.linear"}, "tracker": {"required": True}}
    with pytest.raises(Stopped) as caught:
        federation.run(config)
    assert report(caught.value) == 75
    assert "tracker x, which is required, failed" in caplog.messages


class Resumes:
    """A trainer of which only the round counts."""

    def __init__(self, number):
        self.round = number
        self.server = SimpleNamespace(host=SimpleNamespace(stopping=threading.Event()))

    def snapshot(self):
        return f"of round {self.round}"

    def restore(self, snapshot):
        raise AssertionError("nobody goes back")


def test_a_signal_while_a_run_goes_back_to_its_last_checkpoint():
    """The checkpoint is that of the trainer that runs by then, and not of the one that had lost its ranks."""
    recorder = SimpleNamespace(last={"round": 4}, checkpoint_now=lambda snapshot: snapshot)
    survival = SimpleNamespace(trainer=Resumes(5), ending=False)

    async def goes_back():
        await asyncio.sleep(0.02)
        survival.trainer, recorder.last = Resumes(3), {"round": 3}
        await asyncio.Event().wait()

    async def main():
        survival.run = goes_back
        stop = asyncio.get_running_loop().create_future()
        stop.set_result(signal.SIGTERM)
        with pytest.raises(Stopped) as caught:
            await Session._run_until(Session, stop, survival, recorder)
        assert caught.value.checkpoint == "of round 3"

    asyncio.run(main())


def test_a_program_has_its_own_answers_to_signals_back():
    """S-LIFE-06: whether or not one came, and also that to be deaf."""
    async def stopped(sent: bool) -> None:
        with stop_signals() as stop:
            if sent:
                os.kill(os.getpid(), signal.SIGUSR1)
                await stop

    answers = {signal.SIGUSR1: lambda number, frame: None, signal.SIGTERM: signal.SIG_IGN}
    former = {number: signal.signal(number, answer) for number, answer in answers.items()}
    try:
        for sent in (False, True):
            asyncio.run(stopped(sent))
            assert {number: signal.getsignal(number) for number in answers} == answers
    finally:
        for number, answer in former.items():
            signal.signal(number, answer)


#: In one long sleep, a signal that comes just before it would wait for its end.
SLEEP = """
import time

def sleep(saying):
    print(saying, flush=True)
    for _ in range(600):
        time.sleep(0.1)
"""
SLOW_FAREWELL = SLEEP + """
from federation.infra.tracker import NoTracker

NoTracker.close = lambda self: sleep("closing")
"""


@pytest.mark.parametrize("world", WORLDS[:2], ids=NAMES[:2])
def test_more_signals_while_a_tracker_takes_its_leave(tmp_path, world):
    """S-HPC-04: the checkpoint is written, and the status is 75; what goes on is given up."""
    (tmp_path / "slow.py").write_text(SLOW_FAREWELL)
    settings = [*faulty("none", delay=0.05), f"plugins=[tests/system/faulty.py, {tmp_path / 'slow.py'}]",
                "trainer_config.max_rounds=1000", "checkpoint.every=1000"]
    line = command(folder=tmp_path / "run", settings=settings, **world)
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                          env={**os.environ, **ENVIRONMENT}) as process:
        wait_for_rows(tmp_path / "run", 2)
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.readline() == "closing\n"
        for again in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
            process.send_signal(again)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 75, stderr
    assert stderr.startswith("stopped by SIGUSR1; ")
    assert list((tmp_path / "run" / "checkpoints").glob("round_*.h5"))


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_before_the_run(tmp_path, sent):
    """S-LIFE-06: one line that says so, and status 1: there is no checkpoint."""
    (tmp_path / "slow.py").write_text(SLEEP + "\nsleep('loading')\n")
    line = command(folder=tmp_path / "run", settings=[f"plugins=[{tmp_path / 'slow.py'}]"], mode="serial")
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                          env={**os.environ, **ENVIRONMENT}) as process:
        assert process.stdout.readline() == "loading\n"
        process.send_signal(sent)
        _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (1, f"stopped by {sent.name}\n")
