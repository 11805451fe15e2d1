"""Trackers, read back by TensorBoard's own reader; MLflow and W&B by stand-ins that record what they are told."""

from __future__ import annotations

import logging
import math
import os
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federation.errors import ConfigError, FederationError
from federation.infra import remote_tracker
from federation.infra.tracker import NoTracker, TensorBoardTracker, make_tracker

pytest.importorskip("tensorboard")


def read_back(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in tags}


def raw_steps(folder: Path) -> list[int]:
    """Steps of all scalar events of all files, by a reader that purges nothing."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    files = sorted(folder.iterdir())
    events = [Event.FromString(raw) for path in files for raw in RawEventFileLoader(str(path)).Load()]
    return [event.step for event in events if event.HasField("summary")]


def test_one_file_with_every_round_under_its_number(tmp_path: Path) -> None:
    """S-TRACK-01: one event file; training and evaluation share the round as step."""
    tracker = make_tracker("tensorboard", tmp_path / "tb")
    assert not (tmp_path / "tb").exists(), "nothing trained, nothing there"
    for round in (1, 2, 3):
        tracker.log(round, {"round": round, "train_loss": 1 / 2**round, "accuracy": 0.25, "seconds": {"fit": 0.5}})
        assert raw_steps(tmp_path / "tb") == list(range(1, round + 1)), "in the file when log returns"
    tracker.close()
    tracker.close()
    assert len(list((tmp_path / "tb").iterdir())) == 1
    assert read_back(tmp_path / "tb") == {
        "train_loss": [(1, 0.5), (2, 0.25), (3, 0.125)],
        "accuracy": [(1, 0.25), (2, 0.25), (3, 0.25)],
        "seconds/fit": [(1, 0.5), (2, 0.5), (3, 0.5)],
    }


def test_steps_once_after_a_resume(tmp_path: Path) -> None:
    """S-TRACK-02: killed in round 5 after logging it, resumed from round 4, twice: steps 1 to 6 once, in one file."""
    for last, resumed in ((5, 0), (5, 4), (6, 2)):
        tracker = TensorBoardTracker(tmp_path)
        if resumed:
            tracker.resume_from(resumed)
        for round in range(resumed + 1, last + 1):
            tracker.log(round, {"train_loss": round + resumed, "accuracy": 1})
        tracker._file._file.close()  # type: ignore[union-attr]  # as a killed process leaves it
        with open(next(iter(tmp_path.iterdir())), "ab") as file:
            file.write(struct.pack("<Q", 50) + b"torn")  # and half a record, which would hide all that follows
    expected = [(1, 1), (2, 2), (3, 5), (4, 6), (5, 7), (6, 8)]
    found = read_back(tmp_path)
    assert found["train_loss"] == expected
    assert [step for step, _ in found["accuracy"]] == [1, 2, 3, 4, 5, 6]
    assert len(list(tmp_path.iterdir())) == 1


def test_resumed_before_the_first_checkpoint_or_without_a_file(tmp_path: Path) -> None:
    """S-TRACK-02: a resume from round 0 starts over; one where there is no file begins one."""
    tracker = TensorBoardTracker(tmp_path)
    for start in (0, 0, 2):
        tracker.resume_from(start)
        for round in (start + 1, start + 2):
            tracker.log(round, {"loss": round + start})
        tracker.close()
    assert read_back(tmp_path) == {"loss": [(1, 1), (2, 2), (3, 5), (4, 6)]}


def test_whoever_watches_sees_the_resume(tmp_path: Path) -> None:
    """S-TRACK-02: a TensorBoard that is open meanwhile drops what was taken back."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    watching = EventAccumulator(str(tmp_path))
    tracker = TensorBoardTracker(tmp_path)
    for round in range(1, 6):
        tracker.log(round, {"loss": round})
    watching.Reload()
    assert [event.step for event in watching.Tensors("loss")] == [1, 2, 3, 4, 5]
    tracker.resume_from(3)
    tracker.log(4, {"loss": 40})
    watching.Reload()
    assert [event.step for event in watching.Tensors("loss")] == [1, 2, 3, 4]
    tracker.close()


def test_odd_values(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """S-TRACK-05: NaN is kept, None and text are not sent, NumPy values are numbers, one warning a key."""
    tracker = make_tracker("tensorboard", tmp_path)
    for round in (1, 2):
        tracker.log(round, {"loss": float("nan"), "accuracy": None, "n": np.int64(5), "f1": np.float32(0.5),
                            "note": "x", "zero": np.array(3), "many": np.arange(3), "huge": 10**400, "inf": -math.inf,
                            "flag": True, "failures": {"client_1": "raised"}})  # fmt: skip
    tracker.close()
    found = read_back(tmp_path)
    assert [math.isnan(value) for _, value in found.pop("loss")] == [True, True]
    values = {"n": 5, "f1": 0.5, "zero": 3, "huge": math.inf, "inf": -math.inf, "flag": 1}
    assert found == {tag: [(1, value), (2, value)] for tag, value in values.items()}
    assert [message.split()[1] for message in caplog.messages] == ["note", "many"]


def test_neither_torch_nor_tensorflow_is_loaded(tmp_path: Path) -> None:
    program = """
        import sys
        from pathlib import Path
        from federation.infra.tracker import make_tracker
        assert "tensorboard" not in sys.modules
        tracker = make_tracker("auto", Path(sys.argv[1]))
        tracker.log(1, {"loss": 1})
        assert not {"torch", "tensorflow", "tensorboard.summary"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], check=True, timeout=60)
    assert read_back(tmp_path) == {"loss": [(1, 1)]}


def test_a_killed_process_loses_no_round(tmp_path: Path) -> None:
    program = """
        import os, signal, sys
        from pathlib import Path
        from federation.infra.tracker import make_tracker
        tracker = make_tracker("tensorboard", Path(sys.argv[1]))
        tracker.log(1, {"loss": 1})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    died = subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], check=False, timeout=60)
    assert died.returncode == -signal.SIGKILL
    assert read_back(tmp_path) == {"loss": [(1, 1)]}


def test_a_disk_that_is_full_in_the_middle_of_a_record(tmp_path: Path) -> None:
    """The write that did not fit is an error at once: what came behind half a record would be lost on every reader."""
    program = """
        import resource, sys
        from pathlib import Path
        from federation.infra.event_file import EventFile
        file = EventFile(Path(sys.argv[1]))
        [path] = Path(sys.argv[1]).iterdir()
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, resource.RLIM_INFINITY))
        try:
            file.write(1, {"accuracy": 0.5})
        except OSError as error:
            print(error.strerror)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], capture_output=True, text=True,
                          timeout=60)
    assert done.stdout == "File too large\n", done.stderr


def test_auto_without_tensorboard_is_none_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    with caplog.at_level(logging.INFO):
        assert isinstance(make_tracker("auto", tmp_path), NoTracker)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("tracker: none")
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        make_tracker("tensorboard", tmp_path)


def test_names_and_settings_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tensorbord.*auto, tensorboard, mlflow, wandb, none"):
        make_tracker("tensorbord", tmp_path)
    with pytest.raises(ConfigError, match=r"no setting ur1.*uri, experiment, run_name"):
        make_tracker("mlflow", tmp_path, {"ur1": "x"})
    assert isinstance(make_tracker("none", tmp_path), NoTracker)


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=f"pip install {name}"):
        make_tracker(name, tmp_path)


def test_a_tracker_that_fails_warns_once_and_is_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tb").write_text("no folder can be here")
    tracker = make_tracker("tensorboard", tmp_path / "tb")
    for round in (1, 2, 3):
        tracker.log(round, {"loss": 1})
    tracker.close()
    assert len(caplog.messages) == 1
    assert "off from here on" in caplog.messages[0]
    with pytest.raises(FederationError, match="required"):
        make_tracker("tensorboard", tmp_path / "tb", required=True).log(1, {"loss": 1})


class FakeMlflow(types.ModuleType):
    """Records calls as MLflow's client would get them. `trouble` is raised, or waited on, when a run is created."""

    class MlflowException(Exception):
        pass

    def __init__(self, trouble: Exception | threading.Event | None = None, lost_race: bool = False) -> None:
        super().__init__("mlflow")
        self.calls: list[Any] = []
        self.exceptions = types.SimpleNamespace(MlflowException=self.MlflowException)
        self._trouble = trouble
        self._lost_race = lost_race
        self._exists = False

    def MlflowClient(self, tracking_uri: str) -> FakeMlflow:
        self.calls.append(("uri", tracking_uri))
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        return types.SimpleNamespace(experiment_id="7") if self._exists else None

    def create_experiment(self, name: str) -> str:
        self._exists = True
        if self._lost_race:
            raise self.MlflowException("already exists")
        return "7"

    def create_run(self, experiment_id: str, run_name: str | None = None) -> Any:
        if isinstance(self._trouble, threading.Event):
            self._trouble.wait(60)
        elif self._trouble is not None:
            raise self._trouble
        self.calls.append(("run", experiment_id, run_name))
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id="r"))

    def log_batch(self, run_id: str, metrics: Any) -> None:
        self.calls.append(("log", run_id, metrics))

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        self.calls.append(("tag", key, value))

    def set_terminated(self, run_id: str) -> None:
        self.calls.append(("end", run_id))


def install(monkeypatch: pytest.MonkeyPatch, fake: FakeMlflow) -> FakeMlflow:
    entities = types.ModuleType("mlflow.entities")
    entities.Metric = lambda key, value, timestamp, step: (key, value, step)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return fake


@pytest.mark.parametrize("lost_race", [False, True])
def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost_race: bool) -> None:
    fake = install(monkeypatch, FakeMlflow(lost_race=lost_race))
    tracker = make_tracker("mlflow", tmp_path, {"uri": "http://x", "run_name": "n"}, required=True)
    tracker.resume_from(4)
    tracker.log(5, {"round": 5, "loss": 0.5, "note": "x"})
    tracker.close()
    assert fake.calls == [("uri", "http://x"), ("run", "7", "n"), ("tag", "resumed_from_round", "4"),
                          ("log", "r", [("loss", 0.5, 5)]), ("end", "r")]  # fmt: skip


def test_a_server_that_does_not_answer_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answer = threading.Event()
    install(monkeypatch, FakeMlflow(answer))
    monkeypatch.setattr(remote_tracker, "_PATIENCE_S", 0.2)
    tracker = make_tracker("mlflow", tmp_path)
    for round in range(1, 4):
        tracker.log(round, {"loss": 1})  # returns though nothing has been sent
    tracker.close()
    assert len(caplog.messages) == 1
    assert "given up" in caplog.messages[0]
    with pytest.raises(FederationError, match="did not start within"):
        make_tracker("mlflow", tmp_path, required=True)
    answer.set()


def test_a_required_server_that_stops_to_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds that were not sent, or that no longer fit into the queue, are a failure as well."""
    answer = threading.Event()
    fake = install(monkeypatch, FakeMlflow())
    monkeypatch.setattr(fake, "log_batch", lambda *_, **__: answer.wait(60))
    monkeypatch.setattr(remote_tracker, "_PATIENCE_S", 0.2)
    monkeypatch.setattr(remote_tracker, "_QUEUE_ROUNDS", 2)
    tracker = make_tracker("mlflow", tmp_path, required=True)
    with pytest.raises(FederationError, match="does not keep up"):
        for round in range(1, 5):
            tracker.log(round, {"loss": 1})
    with pytest.raises(FederationError, match="not all was sent"):
        tracker.close()
    answer.set()


def test_a_server_that_catches_up_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What waits is sent when the run ends, and then the tracker is closed, also where there was no room for another word."""
    asked, answer, ended = threading.Event(), threading.Event(), threading.Event()
    fake = install(monkeypatch, FakeMlflow())
    monkeypatch.setattr(fake, "log_batch", lambda *_, **__: (asked.set(), answer.wait(60)))
    monkeypatch.setattr(fake, "set_terminated", lambda *_: ended.set())
    monkeypatch.setattr(remote_tracker, "_PATIENCE_S", 20.0)
    monkeypatch.setattr(remote_tracker, "_QUEUE_ROUNDS", 2)
    tracker = make_tracker("mlflow", tmp_path)
    tracker.log(1, {"loss": 1})
    assert asked.wait(20)
    for round in range(2, 5):
        tracker.log(round, {"loss": 1})
    threading.Timer(0.1, answer.set).start()
    tracker.close()
    assert ended.is_set()
    assert [message.partition(": ")[2] for message in caplog.messages] == ["does not keep up, rounds are dropped"]


def test_a_server_that_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(monkeypatch, FakeMlflow(ConnectionError("refused")))
    tracker = make_tracker("mlflow", tmp_path)
    for round in range(1, 4):
        tracker.log(round, {"loss": 1})
    tracker.close()
    assert [message for message in caplog.messages if "refused" in message] == caplog.messages
    assert len(caplog.messages) == 1
    with pytest.raises(FederationError, match="refused"):
        make_tracker("mlflow", tmp_path, required=True)


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    run = types.SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("finish"),
        config=types.SimpleNamespace(update=calls.append),
    )  # fmt: skip
    fake = types.ModuleType("wandb")
    fake.login = lambda key: calls.append(key)  # type: ignore[attr-defined]
    fake.init = lambda **settings: (calls.append(settings), run)[1]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    tracker = make_tracker("wandb", tmp_path / "wandb", {"mode": "offline", "api_key": "KEY-OF-A-TEST"}, required=True)
    tracker.resume_from(1)
    tracker.log(2, {"round": 2, "loss": 0.5, "accuracy": None})
    tracker.close()
    folder = str(tmp_path / "wandb")
    settings = {"project": "federation", "entity": None, "name": None, "mode": "offline", "dir": folder}
    assert calls == ["KEY-OF-A-TEST", settings, {"resumed_from_round": 1}, (2, {"loss": 0.5}), "finish"]


def test_no_tracker_takes_everything() -> None:
    tracker = NoTracker()
    tracker.log(1, {"loss": object()})
    tracker.resume_from(1)
    tracker.close()


def test_files_of_others_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    tracker = TensorBoardTracker(tmp_path)
    tracker.resume_from(0)
    tracker.log(1, {"loss": 1})
    tracker.close()
    assert (tmp_path / "notes.txt").read_text() == "x"
    assert len(os.listdir(tmp_path)) == 2
