"""A run's folder: one owner, no run overwritten unasked, each round on record once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from federation.errors import ConfigError, FederationError
from federation.infra.run_folder import RunFolder, write_atomically

HOLD = """
    import sys, time
    from pathlib import Path
    from federation.infra.run_folder import RunFolder
    folder = RunFolder(sys.argv[1])
    try:
        folder.prepare("seed: 1\\n", resume=True, job="Slurm job 4711")
    except Exception as error:
        print(type(error).__name__, error, flush=True)
        raise SystemExit(2)
    print(folder.run_id, flush=True)
    sys.stdin.read()
    folder.close()
"""


def held(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def start(path: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(HOLD), str(path)], env=os.environ | environment,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_run_from_beginning_to_end(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "runs" / "digits") as folder:
        folder.prepare("seed: 1\n")
        for round in (1, 2):
            folder.log_metrics({"round": round, "train_loss": 1 / round, "seconds": {"fit": 0.5}})
            assert held(folder.path)[-1]["round"] == round, "complete as soon as it is logged"
        folder.write_summary({"rounds_completed": 2, "final": {"accuracy": np.float32(0.5)}, "digest": None})
        assert (folder.path / "config.yaml").read_text() == "seed: 1\n"
    assert held(folder.path)[1] == {"round": 2, "train_loss": 0.5, "seconds": {"fit": 0.5}}
    summary = json.loads((folder.path / "summary.json").read_text())
    assert summary == {"rounds_completed": 2, "final": {"accuracy": 0.5}, "digest": None}
    assert sorted(path.name for path in folder.path.iterdir()) == [
        "config.yaml", "metrics.jsonl", "run.lock", "summary.json"]  # fmt: skip


def test_a_second_run_is_refused_with_the_owner_named(tmp_path: Path) -> None:
    """S-HPC-02: the second of two launches with one output folder fails at once, naming job, host and process."""
    owner = start(tmp_path / "run")
    run_id = first_line(owner)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(ConfigError) as caught:
            RunFolder(tmp_path / "run").prepare("seed: 2\n", **options)
        for part in (run_id, "Slurm job 4711", str(owner.pid), os.uname().nodename, str(tmp_path / "run")):
            assert part in str(caught.value)
    other = start(tmp_path / "run")
    assert first_line(other).startswith("ConfigError")
    assert other.wait(60) == 2
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    owner.communicate(timeout=60)
    with RunFolder(tmp_path / "run") as folder:
        folder.prepare("seed: 2\n", resume=True)
        assert folder.run_id == run_id, "a resumed run is the same run"


def test_two_owners_in_one_process(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as one:
        one.prepare("")
        with pytest.raises(ConfigError, match=f"process {os.getpid()}"):
            RunFolder(tmp_path).prepare("", resume=True)
        with pytest.raises(ConfigError, match="prepared already"):
            one.prepare("", resume=True)
        one.log_metrics({"round": 1})


def test_a_killed_owner_leaves_no_lock(tmp_path: Path) -> None:
    """S-HPC-02: the lock ends with its process, however that ends."""
    owner = start(tmp_path)
    first_line(owner)
    owner.send_signal(signal.SIGKILL)
    owner.wait(60)
    with RunFolder(tmp_path) as folder:
        folder.prepare("seed: 1\n", resume=True)


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler to make flock fail")
def test_a_file_system_without_flock(tmp_path: Path) -> None:
    """S-HPC-02: the stand-in refuses a second run too, is taken over from a dead process, and is removed at the end."""
    (tmp_path / "flock.c").write_text(
        "#include <errno.h>\nint flock(int d, int o) { (void)d; (void)o; errno = ENOLCK; return -1; }\n"
    )
    library = tmp_path / "flock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "flock.c"], check=True)
    environment = {"LD_PRELOAD": str(library)}
    run = tmp_path / "run"
    owner = start(run, **environment)
    first_line(owner)
    second = start(run, **environment)
    assert f"process {owner.pid} on host {os.uname().nodename}" in first_line(second)
    assert second.wait(60) == 2
    assert (run / ".run.claim").exists(), "the refused one left the owner's claim alone"
    owner.send_signal(signal.SIGKILL)
    owner.wait(60)
    third = start(run, **environment)
    assert "Error" not in first_line(third)
    third.communicate(timeout=60)
    assert third.returncode == 0
    assert not (run / ".run.claim").exists()
    (run / ".run.claim").write_text(json.dumps({"host": "elsewhere", "pid": 1, "job": "", "since": "?"}))
    fourth = start(run, **environment)
    refusal = first_line(fourth)
    assert "elsewhere" in refusal
    assert f"delete {run / '.run.claim'}" in refusal
    fourth.wait(60)


def test_another_run_is_not_overwritten(tmp_path: Path) -> None:
    traces = ["metrics.jsonl", "summary.json", "checkpoints/round_000001.h5", "tensorboard/events.out.tfevents.1.h.1.0"]
    for trace in [*traces, "config.yaml"]:
        folder = tmp_path / trace.replace("/", "-")
        (folder / trace).parent.mkdir(parents=True)
        (folder / trace).write_text("precious")
        with pytest.raises(ConfigError, match=r"holds another run .*--resume.*overwrite: true.*another output_dir"):
            RunFolder(folder).prepare("seed: 1\n")
        assert [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()] == [trace]
        assert (folder / trace).read_text() == "precious"


def test_overwrite_removes_the_run_and_nothing_else(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        folder.prepare("seed: 1\n")
        first = folder.run_id
        folder.log_metrics({"round": 1})
        folder.write_summary({})
    for name in ("checkpoints/round_000001.h5", "checkpoints/.round_000002.h5.h.1.tmp", "tensorboard/x.tfevents.1",
                 "notes.txt", "checkpoints/notes.txt"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    with RunFolder(tmp_path) as folder:
        folder.prepare("seed: 2\n", overwrite=True)
        assert folder.run_id != first
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"config.yaml", "run.lock", "notes.txt", "checkpoints/notes.txt"}
    assert (tmp_path / "config.yaml").read_text() == "seed: 2\n"
    with pytest.raises(ConfigError, match="contradict"):
        RunFolder(tmp_path).prepare("", overwrite=True, resume=True)


def test_what_stood_in_the_folder_before_does_not_matter_unless_it_is_a_run(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with RunFolder(tmp_path) as folder:
        folder.prepare("seed: 1\n")
    with RunFolder(tmp_path) as folder:
        folder.prepare("seed: 2\n")  # the first one came to nothing
    assert (tmp_path / "config.yaml").read_text() == "seed: 2\n"


def test_paths_that_cannot_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for path in ("file", "file/below", "dangling", "x" * 300):
        with pytest.raises(ConfigError, match="cannot be used"):
            RunFolder(tmp_path / path).prepare("")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    for path in ("locked", "locked/below"):
        with pytest.raises(ConfigError, match="Permission denied"):
            RunFolder(tmp_path / path).prepare("")


def test_a_folder_that_cannot_be_written_for_root_either() -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        RunFolder("/proc/federation").prepare("")


@pytest.mark.parametrize("full", ["before", "later"])
def test_a_full_disk(tmp_path: Path, full: str) -> None:
    """The process may write no byte more: before the run has the folder, and when it gives it back. The lock is free then."""
    program = """
        import resource, sys
        from federation.errors import ConfigError
        from federation.infra.run_folder import RunFolder
        def fill():
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        folder = RunFolder(sys.argv[1])
        if sys.argv[2] == "before":
            fill()
            try:
                folder.prepare("seed: 1")
            except ConfigError as error:
                print(error)
        else:
            folder.prepare("seed: 1")
            fill()
            folder.close()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        RunFolder(sys.argv[1]).prepare("seed: 1")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(tmp_path), full], capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == 0, done.stderr
    assert ("cannot be used: File too large" in done.stdout) == (full == "before")


def test_each_round_once_after_a_resume(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """S-TRACK-02, S-CKPT-07: killed in round 5 after logging it, resumed from round 4: rounds 1 to 6, each once."""
    with RunFolder(tmp_path) as folder:
        folder.prepare("")
        for round in range(1, 6):
            folder.log_metrics({"round": round, "loss": 1 / round})
    torn = (tmp_path / "metrics.jsonl").read_bytes() + b'{"round": 6, "lo'
    (tmp_path / "metrics.jsonl").write_bytes(torn)
    with RunFolder(tmp_path) as folder:
        folder.prepare("", resume=True)
        folder.resume_from(4, {"round": 4, "loss": "from the checkpoint"})
        assert [row["round"] for row in held(tmp_path)] == [1, 2, 3, 4]
        for round in (5, 6):
            folder.log_metrics({"round": round, "loss": -1})
    assert [(row["round"], row["loss"]) for row in held(tmp_path)] == [
        (1, 1), (2, 1 / 2), (3, 1 / 3), (4, 1 / 4), (5, -1), (6, -1)]  # fmt: skip
    assert "line 6 is damaged" in caplog.text


@pytest.mark.parametrize("content", [
    b'{"round": 1}\n{"round": 2}\n{"round": 2}\n{"round": 1}\n', b'{"round": 1}\n\n\0\0\0\n{"round": 2}\n',
    b'{"round": 1}\n[1]\n"x"\n{"loss": 1}\n{"round": true}\n{"round": "2"}\n{"round": 2}', b'{"round": 1}\n',
    b'{"round": 1}\n{"round": 2, "loss": 0.1', b'{"round": 1}\n{"round": 2}\n{"round": 300}\n\xff\xfe\n',
])  # fmt: skip
def test_a_damaged_record_of_rounds(tmp_path: Path, content: bytes) -> None:
    """S-TRACK-02: repeats, torn and foreign lines, and a last line that never came: rounds 1 and 2, each once."""
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with RunFolder(tmp_path) as folder:
        folder.prepare("", resume=True)
        folder.resume_from(2, {"round": 2})
        folder.log_metrics({"round": 3})
    assert [row["round"] for row in held(tmp_path)] == [1, 2, 3]


def test_a_resume_that_changes_nothing_leaves_the_files_as_they_are(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        folder.prepare("seed: 1\n")
        folder.log_metrics({"round": 1})
    before = {path.name: (path.read_bytes(), path.stat().st_ino) for path in tmp_path.iterdir()}
    with RunFolder(tmp_path) as folder:
        folder.prepare("seed: 1\n", resume=True)
        folder.resume_from(1, {"round": 1})
    assert {path.name: (path.read_bytes(), path.stat().st_ino) for path in tmp_path.iterdir()} == before


def test_a_run_that_goes_on_has_not_come_to_its_end(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        folder.prepare("")
        folder.write_summary({})
    with RunFolder(tmp_path) as folder:
        folder.prepare("", resume=True)
        assert not folder.has_summary


def test_odd_values(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """S-TRACK-05: every line is valid JSON, NumPy values are numbers, None is left out, one warning a key."""
    odd = {"loss": float("nan"), "accuracy": None, "n": np.int64(5), "f1": np.float32(0.5), "note": "x",
           "worst": -np.inf, "half": ml_dtypes.bfloat16(1.5), "flag": np.bool_(True), "zero": np.array(3),
           "list": [np.nan, None, (1, np.uint8(2))], "nested": {"loss": np.float64("nan"), "n": None},
           "array": np.array([1.0, np.nan]), "object": Path("a"), 7: 1, "huge": 10**400,
           "text": "\ud800 é"}  # fmt: skip
    with RunFolder(tmp_path) as folder:
        folder.prepare("")
        for round in (1, 2, 3):
            folder.log_metrics({"round": np.int64(round), **odd})

    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=no_constant) for line in lines]
    assert rows[2] == {
        "round": 3, "loss": None, "n": 5, "f1": 0.5, "note": "x", "worst": None, "half": 1.5, "flag": True, "zero": 3,
        "list": [None, None, [1, 2]], "nested": {"loss": None}, "array": [1.0, None], "object": "a", "7": 1,
        "huge": 10**400, "text": "\ud800 é"}  # fmt: skip
    warned = ("loss", "accuracy", "worst", "list", "nested/loss", "nested/n", "array", "object")
    for key in warned:
        assert sum(f": {key} is " in message for message in caplog.messages) == 1, key
    assert len(caplog.messages) == len(warned)


def test_a_record_needs_its_round(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        folder.prepare("")
        for record in ({}, {"round": None}, {"round": "1"}, {"round": True}, {"round": 1.0}):
            with pytest.raises(ValueError, match="integer 'round'"):
                folder.log_metrics(record)


def test_a_record_that_cannot_be_written_names_the_file(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        folder.prepare("")
        (tmp_path / "metrics.jsonl").mkdir()
        with pytest.raises(FederationError, match=r"cannot write .*metrics\.jsonl"):
            folder.log_metrics({"round": 1})
        with pytest.raises(FederationError, match=r"cannot go on with .*metrics\.jsonl"):
            folder.resume_from(1, {"round": 1})
        (tmp_path / "summary.json").mkdir()
        with pytest.raises(FederationError, match=r"cannot write .*summary\.json"):
            folder.write_summary({})
    assert not list(tmp_path.glob(".*.tmp"))


def test_an_interrupted_atomic_write_leaves_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "a", b"old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]
