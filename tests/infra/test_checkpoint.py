"""The checkpoints of a run: kept, found again, written beside the training, whole at any death."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from federation.core.weights import Weights
from federation.errors import CheckpointError
from federation.infra import checkpoint
from federation.infra.checkpoint import Checkpoints, Snapshot, read, write


def snapshot(round: int, value: float | None = None, **fields: object) -> Snapshot:
    return Snapshot(round, Weights.of({"a": np.full(50, round if value is None else value)}), **fields)


def rounds(folder: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("round_")) for path in folder.glob("round_*.h5"))


def test_names_and_due(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "checkpoints", every=5) as checkpoints:
        assert [round for round in range(1, 21) if checkpoints.due(round)] == [5, 10, 15, 20]
        checkpoints.save(snapshot(10))
        checkpoints.flush()
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["round_000010.h5"]
    assert not Checkpoints(tmp_path, every=0).due(1)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_the_newest_and_the_best_are_kept(tmp_path: Path, asynchronous: bool) -> None:
    accuracy = {1: 0.1, 2: 0.8, 3: 0.5, 4: float("nan"), 5: None, 6: 0.7, 7: 0.2}
    with Checkpoints(tmp_path, keep=2, asynchronous=asynchronous) as checkpoints:
        for round, metric in accuracy.items():
            checkpoints.save(snapshot(round), metric)
    assert rounds(tmp_path) == [2, 6, 7]
    with Checkpoints(tmp_path, keep=2, asynchronous=asynchronous) as resumed:  # knows the best from the files
        resumed.save(snapshot(8), 0.3)
        resumed.flush()
        assert rounds(tmp_path) == [2, 7, 8]
        resumed.save(snapshot(9), 0.9)
    assert rounds(tmp_path) == [8, 9]


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_metric_that_is_no_number_is_never_the_best(tmp_path: Path, asynchronous: bool) -> None:
    with Checkpoints(tmp_path, keep=1, asynchronous=asynchronous) as checkpoints:
        for round, metric in enumerate([float("nan"), 0.9, 0.5, 0.4], 1):
            checkpoints.save(snapshot(round), metric)
        checkpoints.save_now(snapshot(5, metric=float("nan")))
    assert rounds(tmp_path) == [2, 5]


def test_a_folder_of_a_checkpoint_s_name_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is neither gone on from nor tidied away, and keeps nothing else from being so."""
    (tmp_path / "round_000099.h5").mkdir()
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for number in (1, 2):
            checkpoints.save(snapshot(number))
        found = checkpoints.latest()
    assert found is not None
    assert found[1].round == 2
    assert rounds(tmp_path) == [2, 99]
    assert "cannot tidy up" not in caplog.text


def test_rounds_beyond_six_digits_stay_in_order(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for round in (999_998, 999_999, 1_000_000):
            checkpoints.save(snapshot(round))
        found = checkpoints.latest()
    assert found is not None
    assert found[1].round == 1_000_000
    assert rounds(tmp_path) == [999_999, 1_000_000]


def test_damaged_newest_are_skipped_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """S-CKPT-02: round 4 cut in half, round 5 empty: warned about by path and reason, and round 3 is taken."""
    checkpoints = Checkpoints(tmp_path, keep=9)
    for round in range(1, 6):
        checkpoints.save(snapshot(round))
    checkpoints.flush()
    four, five = checkpoints.path_of(4), checkpoints.path_of(5)
    four.write_bytes(four.read_bytes()[: four.stat().st_size // 2])
    five.write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        found = checkpoints.latest()
    assert found is not None
    assert found[0] == checkpoints.path_of(3)
    assert found[1].weights["a"][0] == 3
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert str(five) in caplog.messages[0]
    assert "empty" in caplog.messages[0]
    assert str(four) in caplog.messages[1]
    assert "truncated" in caplog.messages[1]
    checkpoints.save(snapshot(4))
    checkpoints.close()
    assert read(four).round == 4
    assert rounds(tmp_path) == [1, 2, 3, 4]


def test_none_whole_is_an_error_and_none_at_all_is_not(tmp_path: Path) -> None:
    """S-CKPT-02: a run whose checkpoints are all damaged does not quietly begin anew."""
    assert Checkpoints.latest_in(tmp_path) is None
    assert Checkpoints.latest_in(tmp_path / "absent") is None
    (tmp_path / "round_000001.h5").write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        Checkpoints.latest_in(tmp_path)


def test_a_file_under_another_rounds_name_is_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "round_000002.h5", snapshot(2))
    write(tmp_path / "round_000009.h5", snapshot(1))
    found = Checkpoints.latest_in(tmp_path)
    assert found is not None
    assert found[1].round == 2
    assert "misnamed" in caplog.text


def test_going_back_to_an_earlier_round_forgets_the_later_ones_at_the_first_save(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(snapshot(3))
        checkpoints.flush()
        write(tmp_path / "round_000008.h5", snapshot(8))
        checkpoints.save(snapshot(4, value=-4.0))
    found = Checkpoints.latest_in(tmp_path)
    assert found is not None
    assert found[1].weights["a"][0] == -4
    assert rounds(tmp_path) == [4]


class Gate:
    """Stands in for `write`: holds each write until it is let through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.open = threading.Semaphore(0), threading.Semaphore(0)
        self.running = self.most = 0
        monkeypatch.setattr(checkpoint, "write", self)

    def __call__(self, path: Path, snapshot: Snapshot) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        self.entered.release()
        assert self.open.acquire(timeout=60)
        write(path, snapshot)
        self.running -= 1


def test_save_returns_before_the_write_and_takes_its_own_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    live = snapshot(1, server={"momentum": np.ones(3), "list": [np.ones(2)]}, clients={"c": {"x": np.ones(2)}})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(live)
        assert gate.entered.acquire(timeout=60)
        assert rounds(tmp_path) == []  # the write is under way, and save has returned
        live.weights["a"][...] = 99
        live.server["momentum"][...] = 99
        live.server["list"][0][...] = 99
        live.clients["c"]["x"][...] = 99
        gate.open.release()
    found = read(tmp_path / "round_000001.h5")
    assert found.weights["a"].tolist() == [1] * 50
    assert found.server["momentum"].tolist() == [1, 1, 1]
    assert found.server["list"][0].tolist() == [1, 1]
    assert found.clients["c"]["x"].tolist() == [1, 1]


def test_weights_that_are_lent_are_not_copied(tmp_path: Path) -> None:
    """And a save that lends none does not write over those that another has lent."""
    lent, others = (snapshot(round, server={"momentum": np.ones(3) * round}) for round in (1, 2))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(lent, lends_weights=True)
        kept = checkpoints._copy
        assert kept is not None
        assert kept.weights is lent.weights
        assert kept.server["momentum"] is not lent.server["momentum"]
        checkpoints.save(others)
        checkpoints.flush()
    assert lent.weights["a"].tolist() == [1] * 50
    for round in (1, 2):
        assert read(tmp_path / f"round_{round:06d}.h5").weights["a"].tolist() == [round] * 50


def test_a_second_save_waits_and_none_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    checkpoints = Checkpoints(tmp_path, keep=9)
    checkpoints.save(snapshot(1))
    assert gate.entered.acquire(timeout=60)

    def others() -> None:
        for round in (2, 3):
            checkpoints.save(snapshot(round))
        checkpoints.close()

    thread = threading.Thread(target=others)
    thread.start()
    assert not gate.entered.acquire(timeout=0.2)  # round 2 does not begin while round 1 is being written
    for _ in range(3):
        gate.open.release()
    thread.join(60)
    assert not thread.is_alive()
    assert gate.most == 1
    for round in (1, 2, 3):
        assert read(tmp_path / f"round_{round:06d}.h5").weights["a"].tolist() == [round] * 50


def test_the_copy_is_made_in_the_same_memory(tmp_path: Path) -> None:
    """S-LIFE-07: saving again takes no new memory, for the model and for state of the same shape."""
    with Checkpoints(tmp_path) as checkpoints:
        addresses = set()
        for round in range(1, 6):
            checkpoints.save(snapshot(round, server={"m": Weights.of([np.ones(9)]), "v": np.ones((3, 3)) * round}))
            checkpoints.flush()
            kept = checkpoints._copy
            assert kept is not None
            arrays = (kept.weights.buffer, kept.server["m"].buffer, kept.server["v"])
            addresses.add(tuple(array.__array_interface__["data"][0] for array in arrays))
        assert len(addresses) == 1
        checkpoints.save(Snapshot(6, Weights.of([np.ones(3, np.float32)]), {"v": np.ones(2)}))  # and a change of shape
    assert read(tmp_path / "round_000006.h5").server["v"].tolist() == [1, 1]


def test_memory_and_descriptors_stay_flat(tmp_path: Path) -> None:
    """S-LIFE-07: 40 checkpoints of 4 MB grow the process by less than three of them."""
    program = """
        import os, resource, sys, numpy as np
        from federation.core.weights import Weights
        from federation.infra.checkpoint import Checkpoints, Snapshot
        weights = Weights.of({"a": np.ones(1_000_000, np.float32)})
        with Checkpoints(sys.argv[1], keep=2) as checkpoints:
            for round in range(1, 51):
                checkpoints.save(Snapshot(round, weights, {"momentum": weights}))
                checkpoints.flush()
                if round == 10:
                    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, len(os.listdir("/proc/self/fd"))
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, len(os.listdir("/proc/self/fd"))
        print(after[0] - before[0], after[1] - before[1])
    """
    kilobytes, descriptors = map(int, run(program, str(tmp_path)).stdout.split())
    assert kilobytes < 12_000
    assert descriptors == 0


def test_state_that_cannot_be_stored_is_refused_by_the_save_itself(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(CheckpointError, match="server/optimizer"):
        checkpoints.save(snapshot(1, server={"optimizer": object()}))


def test_odd_metrics_do_not_stop_a_run(tmp_path: Path) -> None:
    """S-TRACK-05: what a user's code reports is kept where it can be, and as text where not."""
    odd = {"loss": np.float32("nan"), "accuracy": None, "note": "x", "kind": np.array(["a"]), "type": int, 3: {1.5: 2}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(snapshot(1, metrics=odd))
        checkpoints.save_now(snapshot(2, metrics=odd))
    for round in (1, 2):
        found = dict(read(tmp_path / f"round_{round:06d}.h5").metrics)
        assert np.isnan(found.pop("loss"))
        assert found == {"accuracy": None, "note": "x", "kind": "['a']", "type": str(int), "3": "{1.5: 2}"}


def fail(path: Path, snapshot: Snapshot) -> None:
    raise CheckpointError(f"cannot write the checkpoint {path}: disk full")


def test_a_failed_write_stops_the_run_at_the_next_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Callable[[Checkpoints], object]] = [
        lambda c: c.save(snapshot(2)), lambda c: c.flush(), lambda c: c.latest(), lambda c: c.close()]  # fmt: skip
    for call in calls:
        checkpoints = Checkpoints(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "write", fail)
            checkpoints.save(snapshot(1))
            with pytest.raises(CheckpointError, match=r"round_000001\.h5: disk full"):
                call(checkpoints)
        checkpoints.close()  # the failure is reported once


def test_a_failed_write_is_a_warning_where_that_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for asynchronous in (True, False):
        caplog.clear()
        with Checkpoints(tmp_path, on_error="warn", asynchronous=asynchronous) as checkpoints:
            with monkeypatch.context() as patch:
                patch.setattr(checkpoint, "write", fail)
                checkpoints.save(snapshot(1))
                checkpoints.flush()
                with pytest.raises(CheckpointError, match="disk full"):
                    checkpoints.save_now(snapshot(1))  # the caller needs to know
            checkpoints.save(snapshot(2))
        assert sum("disk full" in message for message in caplog.messages) == 1
        assert rounds(tmp_path) == [2]


def test_save_now_is_on_the_disk_and_survives_an_earlier_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write", fail)
        checkpoints.save(snapshot(1))
        checkpoints._thread.submit(int).result()  # the failing write is over before `write` works again
    path = checkpoints.save_now(snapshot(2))
    assert read(path).round == 2
    assert "round_000001.h5: disk full" in caplog.text
    checkpoints.close()


def test_a_folder_that_can_no_longer_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As on a file system that has become read-only, not even the removal of the part is possible."""
    (tmp_path / "checkpoints").write_text("")
    with Checkpoints(tmp_path / "checkpoints", on_error="warn") as checkpoints:
        checkpoints.save(snapshot(1))
        checkpoints.flush()
        with pytest.raises(CheckpointError, match=r"cannot write the checkpoint .*round_000002\.h5"):
            checkpoints.save_now(snapshot(2))
    assert sum("round_000001.h5" in message for message in caplog.messages) == 1


def test_a_full_disk(tmp_path: Path) -> None:
    """The process may write 1 MB a file: the error names file and reason, no part is left, and the process ends."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(snapshot(1))
    program = """
        import resource, sys, numpy as np
        from federation.core.weights import Weights
        from federation.errors import CheckpointError
        from federation.infra.checkpoint import Checkpoints, Snapshot
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        checkpoints = Checkpoints(sys.argv[1])
        for arrays in ([np.ones(500_000)], [np.ones(5_000)] * 100):
            checkpoints.save(Snapshot(2, Weights.of(arrays)))
            try:
                checkpoints.flush()
            except CheckpointError as error:
                print(error)
        checkpoints.close()
        print(checkpoints.latest()[0])
    """
    lines = run(program, str(tmp_path)).stdout.splitlines()
    assert len(lines) == 3
    for line in lines[:2]:
        assert "round_000002.h5" in line
        assert "too large" in line
    assert lines[2].endswith("round_000001.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["round_000001.h5"]


KILLED = """
    import os, signal, sys, threading, time, numpy as np
    from federation.core.weights import Weights
    from federation.infra import checkpoint_file
    from federation.infra.checkpoint import Checkpoints, Snapshot

    folder, moment = sys.argv[1], int(sys.argv[2])
    arrays = [np.full(250_000, i, np.float32) for i in range(30)]   # 30 MB
    calls = 0

    def counted(function):
        def call(*arguments, **named):
            global calls
            calls += 1
            if calls == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)
        return call

    import h5py
    checkpoints = Checkpoints(folder)
    if moment:  # at a step of the write
        h5py.Group.create_dataset = counted(h5py.Group.create_dataset)
        h5py.File.close = counted(h5py.File.close)
        for name in ("fsync", "replace", "unlink"):
            setattr(os, name, counted(getattr(os, name)))
    else:  # at any time during it, while the bytes go to the disk
        delay = float(sys.argv[3])
        threading.Thread(target=lambda: (time.sleep(delay), os.kill(os.getpid(), signal.SIGKILL))).start()
    while True:
        checkpoints.save(Snapshot(3, Weights.of(arrays)))
        checkpoints.flush()
        if moment:
            print(calls)
            break
"""


def test_killed_while_writing(tmp_path: Path) -> None:
    """S-CKPT-01: SIGKILL at 20 moments during the write of round 3: round 2 (or a whole 3) is there, and goes on."""
    steps = int(run(KILLED, str(tmp_path / "count"), "1000").stdout)
    assert steps >= 30
    moments = [(step, 0.0) for step in sorted({1 + round(i * (steps - 1) / 13) for i in range(14)})]
    moments += [(0, delay) for delay in np.random.default_rng(5).uniform(0.0, 0.08, 6)]
    assert len(moments) == 20
    folder = tmp_path / "checkpoints"
    left_over = 0
    for moment, delay in moments:
        with Checkpoints(folder) as checkpoints:
            checkpoints.save(snapshot(2))
        for path in folder.glob("round_000003.h5"):
            path.unlink()
        died = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), str(folder), str(moment), str(delay)],
                              capture_output=True, timeout=120, check=False)  # fmt: skip
        assert died.returncode == -signal.SIGKILL, died.stderr
        left_over += any(folder.glob(".*"))
        with Checkpoints(folder) as checkpoints:
            found = checkpoints.latest()
            assert found is not None
            assert found[1].round in (2, 3)
            if found[1].round == 3:
                assert [array[0] for array in found[1].weights] == list(range(30))
            assert not any(folder.glob(".*")), "what the dead writer left is cleaned"
            checkpoints.save(snapshot(3))
        assert read(folder / "round_000003.h5").weights["a"][0] == 3
    assert left_over >= 10  # the kills did hit the write


def test_temporary_files_of_a_living_writer_stay(tmp_path: Path) -> None:
    alive = tmp_path / f".round_000001.h5.{os.uname().nodename}.{os.getppid()}.tmp"
    other = tmp_path / ".round_000001.h5.another.host-1.2.tmp"
    foreign = tmp_path / ".round_notes.tmp"
    for path in (alive, other, foreign):
        path.touch()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() is None
    assert {path.name for path in tmp_path.iterdir()} == {alive.name, foreign.name}


def test_the_log_of_the_writing_thread_has_the_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from federation.infra.logger import round_number

    seen: list[int | None] = []
    monkeypatch.setattr(checkpoint, "write", lambda path, snapshot: seen.append(round_number.get()))
    token = round_number.set(12)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(snapshot(12))
    round_number.reset(token)
    assert seen == [12]


@pytest.mark.parametrize("wrong", [{"keep": 0}, {"every": -1}])
def test_impossible_settings(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=re.escape(next(iter(wrong)))):
        Checkpoints(tmp_path, **wrong)


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", textwrap.dedent(program), *arguments], text=True, check=True,
                          capture_output=True, timeout=120)  # fmt: skip
