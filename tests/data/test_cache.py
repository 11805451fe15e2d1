"""Stored arrays: made once, shared by all, and never half there."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from federation.data.cache import ArrayCache, cache_folder
from federation.errors import DataError

ARRAYS = {"x": np.arange(12, dtype=np.float32).reshape(3, 4), "y": np.arange(3), "none": np.empty((0, 4), np.uint8)}


def make() -> tuple[dict[str, np.ndarray], dict[str, object]]:
    return ARRAYS, {"scale": 0.5}


def never() -> tuple[dict[str, np.ndarray], dict[str, object]]:
    raise AssertionError("made again")


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def asides(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".") and path.is_dir()]


def test_an_entry_is_made_once_and_mapped(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path / "new" / "cache")
    for stored in (cache.get("a set", {"file": 1}, make), cache.get("a set", {"file": 1}, never)):
        assert stored.facts == {"scale": 0.5}
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(stored.arrays[name], array)
            assert stored.arrays[name].dtype == array.dtype
            assert not stored.arrays[name].flags.writeable
        assert stored.arrays["x"].ctypes.data % 64 == 0
    mapped = Path("/proc/self/maps").read_text()
    assert str(tmp_path / "new" / "cache") in mapped, "pages of the file, not a copy"
    assert len(entries(cache.folder)) == 1
    assert entries(cache.folder)[0].startswith("a_set-")
    assert asides(cache.folder) == []


def test_another_key_is_another_entry(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path)
    cache.get("data", {"size": 1}, make)
    other = cache.get("data", {"size": 2}, lambda: ({"x": np.ones(2)}, {}))
    assert other.arrays["x"].tolist() == [1, 1]
    assert len(entries(tmp_path)) == 2


@pytest.mark.parametrize("name", ["../../etc/passwd", "..", "", "a" * 500, "ü/ß", ".hidden"])
def test_names_stay_in_the_folder(tmp_path: Path, name: str) -> None:
    cache = ArrayCache(tmp_path / "cache")
    cache.get(name, {}, make)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert len(entries(cache.folder)) == 1


def test_what_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    def fails() -> tuple[dict[str, np.ndarray], dict[str, object]]:
        raise DataError("file.bin is damaged")

    cache = ArrayCache(tmp_path)
    with pytest.raises(DataError, match=r"^file\.bin is damaged$"):
        cache.get("data", {}, fails)
    assert entries(tmp_path) == []
    assert asides(tmp_path) == []
    cache.get("data", {}, make)


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cache = ArrayCache(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(DataError, match=r"data cache .* cannot be written .*No space left.*data\.cache.*'off'"):
            cache.get("data", {}, make)
    assert entries(tmp_path) == []
    assert asides(tmp_path) == []
    cache.get("data", {}, make)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("this machine does not let us mount")
    try:
        with pytest.raises(DataError, match="No space left on device"):
            ArrayCache(small).get("data", {}, lambda: ({"x": np.ones(100_000)}, {}))
        assert entries(small) == []
        assert asides(small) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize("in_the_way", ["a file", "a file above"])
def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path, in_the_way: str) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" if in_the_way == "a file" else tmp_path / "file" / "cache"
    with pytest.raises(DataError, match=r"cannot be written .*data\.cache"):
        ArrayCache(folder).get("data", {}, never)


def test_a_read_only_cache_serves_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ArrayCache(tmp_path).get("data", {}, make)

    def refused(*args: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("os.open", refused)
    assert ArrayCache(tmp_path).get("data", {}, never).facts == {"scale": 0.5}
    with pytest.raises(DataError, match="Read-only file system"):
        ArrayCache(tmp_path).get("other", {}, make)


@pytest.mark.parametrize("damage", ["cut", "no array", "manifest", "pickle"])
def test_a_damaged_entry_is_named_and_nothing_is_executed(tmp_path: Path, damage: str) -> None:
    """S-SEC-01: nothing in a cache is unpickled."""
    cache = ArrayCache(tmp_path / "cache")
    cache.get("data", {}, make)
    entry = cache.folder / entries(cache.folder)[0]
    match damage:
        case "cut":
            os.truncate(entry / "x.npy", 140)
        case "no array":
            (entry / "y.npy").unlink()
        case "manifest":
            (entry / "manifest.json").write_text("{")
        case "pickle":
            marker = tmp_path / "executed"
            np.save(entry / "x.npy", np.array([_Trap(marker)]), allow_pickle=True)
            manifest = json.loads((entry / "manifest.json").read_text())
            manifest["sizes"]["x"] = (entry / "x.npy").stat().st_size
            (entry / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"data-[0-9a-f]{20} is damaged: delete that folder"):
        cache.get("data", {}, never)
    assert not (tmp_path / "executed").exists()
    shutil.rmtree(entry)
    cache.get("data", {}, make)


def test_an_entry_without_its_manifest_is_damaged_and_the_disk_is_not_full(tmp_path: Path) -> None:
    """Scratch disks are swept file by file."""
    cache = ArrayCache(tmp_path / "cache")
    cache.get("data", {}, make)
    (cache.folder / entries(cache.folder)[0] / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"data-[0-9a-f]{20} is damaged: delete that folder.*no manifest\.json"):
        cache.get("data", {}, make)


class _Trap:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.marker,)


def _get(folder: Path, log: Path) -> None:
    def slowly() -> tuple[dict[str, np.ndarray], dict[str, object]]:
        with open(log, "a") as file:
            file.write("made\n")
        time.sleep(0.3)
        return make()

    stored = ArrayCache(folder).get("data", {}, slowly)
    assert stored.arrays["x"].tolist() == ARRAYS["x"].tolist()


def test_many_processes_at_once_make_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_get, args=(tmp_path / "cache", tmp_path / "log")) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 6
    assert (tmp_path / "log").read_text() == "made\n"


def test_without_locks_two_makers_end_with_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process finishes first while we are at work: both read the same entry."""
    def no_lock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr("fcntl.flock", no_lock)
    cache = ArrayCache(tmp_path)

    def make_while_another_does() -> tuple[dict[str, np.ndarray], dict[str, object]]:
        ArrayCache(tmp_path).get("data", {}, make)
        return make()

    assert cache.get("data", {}, make_while_another_does).facts == {"scale": 0.5}
    assert len(entries(tmp_path)) == 1
    assert asides(tmp_path) == []


_WRITER = """
import os, signal, sys
from pathlib import Path
import numpy as np
from federation.data.cache import ArrayCache
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
ArrayCache(Path(sys.argv[1])).get("data", {}, lambda: ({"x": np.ones(3)}, {}))
"""


def test_a_killed_writer_leaves_nothing_that_counts(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _WRITER, str(tmp_path)])
    assert done.returncode == -signal.SIGKILL
    assert len(asides(tmp_path)) == 1, "the test needs a writer that was killed in the middle"
    assert ArrayCache(tmp_path).get("data", {}, make).facts == {"scale": 0.5}
    assert asides(tmp_path) == [], "the next writer tidies up"


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder(None) == Path("/somewhere/federation")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the XDG specification
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder(None) == Path("/home/me/.cache/federation")
    assert cache_folder("/scratch/data") == Path("/scratch/data")
    assert cache_folder("off") is None
    monkeypatch.setattr(Path, "home", _homeless)
    with pytest.raises(DataError, match=r"data\.cache: null is in the home folder, and this user has none .*'off'"):
        cache_folder(None)
    assert cache_folder("off") is None


def _homeless() -> Path:
    """As in a container whose user has no name, and no HOME."""
    raise RuntimeError("Could not determine home directory.")
