"""The checkpoint file: what goes in comes out, and what is no checkpoint is refused."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
import pytest

from federation.core.weights import Weights
from federation.errors import CheckpointError
from federation.infra import hdf5_io
from federation.infra.checkpoint_file import Snapshot, read, write

FLOCK_FAILS = """
#include <errno.h>
int flock(int descriptor, int operation) { (void)descriptor; (void)operation; errno = ENOLCK; return -1; }
"""


def small() -> Weights:
    return Weights.of({"fc.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "fc.bias": np.zeros(2, np.float32)})


def same(given: object, found: object) -> bool:
    """Equal in type, dtype, shape and bytes, at every depth. An oracle that knows nothing of the file."""
    if type(given) is not type(found):
        return False
    if isinstance(given, Weights):
        return given.names == found.names and all(same(a, b) for a, b in zip(given, found, strict=True))
    if isinstance(given, dict):
        return list(given) == list(found) and all(same(given[key], found[key]) for key in given)
    if isinstance(given, list | tuple):
        return len(given) == len(found) and all(same(a, b) for a, b in zip(given, found, strict=True))
    if isinstance(given, np.ndarray | np.generic):
        return given.dtype == found.dtype and given.shape == found.shape and given.tobytes() == found.tobytes()
    return given == found or (given != given and found != found)


def test_everything_comes_back_as_it_was(tmp_path: Path) -> None:
    snapshot = Snapshot(
        round=7,
        weights=small(),
        server={
            "momentum": Weights.of({"b": np.ones(3), "a": np.full((2, 2), -0.0, np.float32)}),
            "generator": np.random.Generator(np.random.Philox(5)).bit_generator.state,
            "pcg": np.random.PCG64(7).state,
            "nested": {"list": [1, 2.5, [True, None]], "tuple": (), "empty": {}},
            "text": "zero \0, lone \ud800, é, 漢",
            "bytes": b"ab\0",
            "none": None,
            "nan": float("nan"),
            "big": -(2**200),
            "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
            "strided": np.arange(10)[::3],
            "big-endian": np.arange(3, dtype=">i4"),
            "complex": np.array([1 + 2j], np.complex64),
            "scalar": np.float32(0.1),
            "half": ml_dtypes.bfloat16(1.5),
            "a": {1: np.zeros(2), 0: np.ones(2)},
        },
        clients={"client/1": {"control": np.ones(2)}, "client": {"seen": 3}},
        config_digest="d1",
        run_id="r1",
        metrics={"round": 7, "loss": np.float64("nan")},
        metric=0.25,
    )
    write(tmp_path / "round_000007.h5", snapshot)
    found = read(tmp_path / "round_000007.h5")
    for name in ("round", "weights", "server", "clients", "config_digest", "run_id", "metrics", "metric"):
        assert same(getattr(snapshot, name), getattr(found, name)), name
    assert found.versions["numpy"] == np.__version__
    found.weights[0][...] = 1  # the arrays are ours to write
    found.server["fortran"][...] = 1


def test_a_person_finds_the_arrays_by_their_names(tmp_path: Path) -> None:
    path = tmp_path / "round_000001.h5"
    write(path, Snapshot(1, small(), {"momentum": {"fc.weight": np.ones(3)}, "step": 4}, {"c1": {"n": np.arange(2)}}))
    with h5py.File(path) as file:
        assert np.array_equal(file["model/fc.weight"][...], small()["fc.weight"])
        assert np.array_equal(file["server/momentum/fc.weight"][...], np.ones(3))
        assert file["server/step"][()] == 4
        assert np.array_equal(file["clients/c1/n"][...], np.arange(2))
        assert [name.decode() for name in file["layout"]] == ["fc.weight", "fc.bias"]
        assert {"round", "config_digest", "format_version", "versions", "sha256", "run_id"} <= set(file.attrs)
        assert json.loads(file.attrs["versions"])["h5py"] == h5py.__version__


@pytest.mark.parametrize(
    "names",
    [
        [f"features.{i}.conv.0.weight" for i in range(5000)],
        ["enc", "enc/w", "enc/w/x", "enc.w", ".", "..", "/", "//", "", "a%2Fb", "a/b", "%", "%2E", " ", "é", "漢/字"],
        ["x" * 1000 + str(i) for i in range(80)],
        ["model", "layout", "structure", "sha256", "a\0b", "\0", "line\nbreak", "\ud800"],
    ],
    ids=["5000 names", "prefixes", "long", "odd"],
)
def test_names_that_hdf5_would_trip_over(tmp_path: Path, names: list[str]) -> None:
    """S-CKPT-03: names beyond 64 KB together, names that are prefixes of others, dots, nothing at all."""
    weights = Weights.of([np.full(3, i, np.float32) for i in range(len(names))], names=names)
    write(tmp_path / "c.h5", Snapshot(1, weights, {name: i for i, name in enumerate(names[:100])}))
    found = read(tmp_path / "c.h5")
    assert list(found.weights.names) == names
    assert [array[0] for array in found.weights] == list(range(len(names)))
    assert list(found.server.items()) == [(name, i) for i, name in enumerate(names[:100])]


def test_scalars_and_empty_arrays(tmp_path: Path) -> None:
    """S-CKPT-03: shapes () and (0, 4), and a model without any array."""
    weights = Weights.of({"count": np.array(7, np.int64), "none": np.zeros((0, 4), np.int64), "x": np.ones((1, 1, 1))})
    write(tmp_path / "c.h5", Snapshot(1, weights, {"nothing": Weights.of({})}))
    found = read(tmp_path / "c.h5")
    assert same(found.weights, weights)
    assert same(found.server, {"nothing": Weights.of({})})
    write(tmp_path / "empty.h5", Snapshot(1, Weights.of({})))
    assert len(read(tmp_path / "empty.h5").weights) == 0


@pytest.mark.parametrize("value", [
    np.array([1.5, 2.0], ml_dtypes.bfloat16), np.array([1.5, np.nan], np.float16), np.array([0.1, np.inf]),
    np.array([1, -2], np.int32), np.array(3, np.int64), np.array([True, False]), np.array([0, 255], np.uint8),
    np.array([-1], np.int8), np.array([2**16 - 1], np.uint16), np.array([0.1], np.float32),
], ids=lambda value: value.dtype.name)  # fmt: skip
def test_dtypes(tmp_path: Path, value: np.ndarray) -> None:
    """S-CKPT-04: the dtype and the bytes stay, in the model, in state and in clients' state."""
    write(tmp_path / "c.h5", Snapshot(1, Weights.of({"x": value}), {"x": value}, {"c": {"x": value}}))
    found = read(tmp_path / "c.h5")
    for array in (found.weights["x"], found.server["x"], found.clients["c"]["x"]):
        assert same(array, value)


def test_dtype_on_record_is_checked(tmp_path: Path) -> None:
    """S-CKPT-04: an array that was exchanged for one of another dtype is refused."""
    write(tmp_path / "c.h5", Snapshot(1, small()))
    with h5py.File(tmp_path / "c.h5", "r+") as file:
        del file["model/fc.bias"]
        file["model/fc.bias"] = np.zeros(2, np.float64)
    with pytest.raises(CheckpointError, match=r"model/fc.bias is float64 .*float32"):
        read(tmp_path / "c.h5")


def test_order(tmp_path: Path) -> None:
    """S-CKPT-05: twelve arrays of one shape, saved as a list, keep their places."""
    write(tmp_path / "c.h5", Snapshot(1, Weights.of([np.full((4, 4), i) for i in range(12)]),
                                      {"list": [np.full(2, i) for i in range(12)]}))  # fmt: skip
    found = read(tmp_path / "c.h5")
    assert [array[0, 0] for array in found.weights] == list(range(12))
    assert [array[0] for array in found.server["list"]] == list(range(12))


class Tensor:
    """Like an array to NumPy, but not one."""

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return np.zeros(2)


@pytest.mark.parametrize(
    "value", [object(), Tensor(), {1, 2}, np.array(["a"]), np.array([object()]), np.zeros(2, "datetime64[s]"),
              np.zeros(1, [("a", "f4")]), np.longdouble(1), np.ma.array([1, 2], mask=[0, 1]), {1.5: 1}, {1: 0, "1": 0}],
)  # fmt: skip
def test_state_that_would_not_survive_is_refused_by_name(tmp_path: Path, value: object) -> None:
    with pytest.raises(CheckpointError, match="server/momentum/0"):
        write(tmp_path / "c.h5", Snapshot(1, small(), {"momentum": [value]}))
    assert list(tmp_path.iterdir()) == []


def damaged_files(folder: Path) -> dict[str, Path]:
    write(folder / "good.h5", Snapshot(1, small(), {"momentum": np.ones(100)}))
    good = (folder / "good.h5").read_bytes()
    files = {
        "empty": b"", "half": good[: len(good) // 2], "all but a byte": good[:-1], "short": good[:5], "text": b"hello",
        "signature": good[:8], "pickle": pickle.dumps({"a": 1}), "zeros": bytes(5000), "longer head": b"x" + good,
    }  # fmt: skip
    for name, content in files.items():
        (folder / f"{name}.h5").write_bytes(content)
    with h5py.File(folder / "foreign.h5", "w") as file:
        file["data"] = np.zeros(3)
    with zipfile.ZipFile(folder / "archive.h5", "w") as archive:
        archive.writestr("data.pkl", "x")
    (folder / "folder.h5").mkdir()
    for name, change in {
        "value": lambda file: file["model/fc.bias"].__setitem__(0, 1),
        "state": lambda file: file["server/momentum"].__setitem__(0, 2),
        "round": lambda file: file.attrs.__setitem__("round", 2),
        "renamed": lambda file: file.move("model/fc.bias", "model/bias"),
        "missing": lambda file: file.__delitem__("server/momentum"),
        "no structure": lambda file: file.__delitem__("structure"),
        "no digest": lambda file: file.attrs.__delitem__("sha256"),
        "format": lambda file: file.attrs.__setitem__("format_version", 99),
    }.items():
        shutil.copy(folder / "good.h5", folder / f"{name}.h5")
        with h5py.File(folder / f"{name}.h5", "r+") as file:
            change(file)
    return {path.stem: path for path in folder.iterdir() if path.stem != "good"}


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    """S-CKPT-02: each is refused with its path, and with what to do; the whole one beside them reads."""
    files = damaged_files(tmp_path)
    assert len(files) == 20
    for name, path in files.items():
        with pytest.raises(CheckpointError) as caught:
            read(path)
        assert str(path) in str(caught.value), name
    assert read(tmp_path / "good.h5").round == 1
    with pytest.raises(CheckpointError, match="No such file"):
        read(tmp_path / "absent.h5")


def test_no_flipped_byte_goes_unnoticed(tmp_path: Path) -> None:
    """S-CKPT-02: in a process of its own, as HDF5 could crash on a file that is broken inside."""
    program = """
        import random, sys
        from pathlib import Path
        from federation.errors import CheckpointError
        from federation.infra.checkpoint_file import read

        path, draw = Path(sys.argv[1]), random.Random(3)
        whole = path.read_bytes()
        expected = read(path).weights.sha256()
        refused = 0
        for _ in range(300):
            at = draw.randrange(len(whole))
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :])
            try:
                assert read(path).weights.sha256() == expected
            except CheckpointError:
                refused += 1
        print(refused)
    """
    weights = Weights.of({f"layer{i}": np.random.default_rng(i).random(300) for i in range(5)})
    write(tmp_path / "c.h5", Snapshot(1, weights))
    result = run(program, str(tmp_path / "c.h5"))
    assert int(result.stdout) > 150, result.stdout  # the rest fell on unused space


def test_links_out_of_the_file_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "c.h5", Snapshot(1, small()))
    shutil.copy(tmp_path / "c.h5", tmp_path / "other.h5")
    with h5py.File(tmp_path / "c.h5", "r+") as file:
        del file["model"]
        file["model"] = h5py.ExternalLink("other.h5", "/model")
    with pytest.raises(CheckpointError, match="model is a link to somewhere else"):
        read(tmp_path / "c.h5")


def test_storage_outside_of_the_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(8))
    write(tmp_path / "c.h5", Snapshot(1, small()))
    with h5py.File(tmp_path / "c.h5", "r+") as file:
        del file["model/fc.bias"]
        file["model"].create_dataset("fc.bias", (2,), np.float32, external=[(str(tmp_path / "secret"), 0, 8)])
    with pytest.raises(CheckpointError, match=r"fc\.bias is stored in a way"):
        read(tmp_path / "c.h5")


def test_a_size_that_is_a_lie_takes_no_memory(tmp_path: Path) -> None:
    write(tmp_path / "c.h5", Snapshot(1, small()))
    with h5py.File(tmp_path / "c.h5", "r+") as file:
        del file["structure"]
        file.create_dataset("structure", (2**50,), np.uint8)
    with pytest.raises(CheckpointError, match="larger than the file"):
        read(tmp_path / "c.h5")


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.marker,)


def test_a_pickled_checkpoint_is_not_loaded(tmp_path: Path) -> None:
    """S-SEC-01: neither a pickle, nor a file of torch.save, nor either of them inside an HDF5 file runs."""
    torch = pytest.importorskip("torch")
    marker = tmp_path / "marker"
    (tmp_path / "pickle.h5").write_bytes(pickle.dumps(Trap(marker)))
    torch.save(Trap(marker), tmp_path / "zip.h5")
    torch.save(Trap(marker), tmp_path / "legacy.h5", _use_new_zipfile_serialization=False)
    write(tmp_path / "inside.h5", Snapshot(1, small()))
    with h5py.File(tmp_path / "inside.h5", "r+") as file:
        del file["structure"]
        file["structure"] = np.void(pickle.dumps(Trap(marker)))
    for name in ("pickle", "zip", "legacy", "inside"):
        with pytest.raises(CheckpointError, match=name):
            read(tmp_path / f"{name}.h5")
        assert not marker.exists()
    pickle.loads((tmp_path / "pickle.h5").read_bytes())
    assert marker.exists(), "the trap does not work, so the test says nothing"


def test_reading_while_another_process_writes(tmp_path: Path) -> None:
    """S-CKPT-06: a finished checkpoint reads at any time, and a reader does not stop the writer."""
    write(tmp_path / "c.h5", Snapshot(1, small()))
    with h5py.File(tmp_path / "c.h5", "r"):  # holds HDF5's shared lock for as long as it is open
        write(tmp_path / "c.h5", Snapshot(2, small()))
        assert read(tmp_path / "c.h5").round == 2
    with open(tmp_path / "c.h5", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as HDF5 does in whoever has it open for writing
        assert read(tmp_path / "c.h5").round == 2


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler to make flock fail")
def test_a_file_system_without_locks(tmp_path: Path) -> None:
    """S-CKPT-06: where locking fails it works unasked; where the user forces locks, the message says what to set."""
    (tmp_path / "flock.c").write_text(FLOCK_FAILS)
    library = tmp_path / "flock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "flock.c"], check=True)
    program = """
        import sys, numpy as np
        from federation.core.weights import Weights
        from federation.infra.checkpoint_file import Snapshot, read, write
        try:
            write(sys.argv[1], Snapshot(3, Weights.of({"a": np.ones(3)})))
            print(read(sys.argv[1]).round)
        except Exception as error:
            print(error)
    """
    free = {name: value for name, value in os.environ.items() if name != "HDF5_USE_FILE_LOCKING"}
    works = run(program, str(tmp_path / "c.h5"), env=free | {"LD_PRELOAD": str(library)})
    assert works.stdout.strip() == "3"
    force = free | {"LD_PRELOAD": str(library), "HDF5_USE_FILE_LOCKING": "TRUE"}
    forced = run(program, str(tmp_path / "d.h5"), env=force)
    assert "HDF5_USE_FILE_LOCKING=FALSE" in forced.stdout


def test_without_h5py_the_message_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(CheckpointError, match="pip install h5py"):
        write(tmp_path / "c.h5", Snapshot(1, small()))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "c.h5", Snapshot(1, small()))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(hdf5_io.os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"c\.h5: No space left"):
        write(tmp_path / "c.h5", Snapshot(2, small()))
    assert [path.name for path in tmp_path.iterdir()] == ["c.h5"]
    assert read(tmp_path / "c.h5").round == 1


def test_the_digest_depends_on_every_part(tmp_path: Path) -> None:
    one = Weights.of({"a": np.zeros(2), "b": np.zeros(2)})
    variants = [
        Snapshot(1, one), Snapshot(2, one), Snapshot(1, Weights.of({"b": np.zeros(2), "a": np.zeros(2)})),
        Snapshot(1, Weights.of({"a": np.zeros(2), "b": np.zeros((2, 1))})), Snapshot(1, one, run_id="x"),
        Snapshot(1, Weights.of({"a": np.zeros(2, np.int64), "b": np.zeros(2)})), Snapshot(1, one, {"a": 0}),
        Snapshot(1, one, {"a": False}), Snapshot(1, one, {"a": 0.0}), Snapshot(1, one, {}, {"a": 0}),
        Snapshot(1, one, config_digest="x"), Snapshot(1, one, metric=1.0), Snapshot(1, one, metrics={"a": 0}),
    ]  # fmt: skip
    digests = set()
    for at, snapshot in enumerate(variants):
        write(tmp_path / f"{at}.h5", snapshot)
        with h5py.File(tmp_path / f"{at}.h5") as file:
            digests.add(bytes(file.attrs["sha256"]))
    assert len(digests) == len(variants)


def run(program: str, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", textwrap.dedent(program), *arguments], env=env, text=True, check=True,
                          capture_output=True, timeout=120)  # fmt: skip


def test_random_trees_come_back(tmp_path: Path) -> None:
    """Seeded random nesting of all kinds of state, 40 times."""
    draw = random.Random(11)
    kinds = [
        lambda: draw.random(), lambda: draw.randrange(-(10**30), 10**30), lambda: None, lambda: draw.random() < 0.5,
        lambda: "".join(draw.choices("ab/.%é\0", k=draw.randrange(4))), lambda: draw.randbytes(draw.randrange(4)),
        lambda: np.arange(draw.randrange(4), dtype=draw.choice(["f2", "i1", ">u8", "?", "c16", ml_dtypes.bfloat16])),
        lambda: np.float16(draw.random()), lambda: np.zeros((draw.randrange(3), 2, draw.randrange(2)), np.float32),
    ]  # fmt: skip

    def tree(depth: int) -> object:
        choice = draw.randrange(5 if depth else 1)
        if choice < 2:
            return draw.choice(kinds)()
        items = [tree(depth - 1) for _ in range(draw.randrange(4))]
        names = draw.sample(["", "a", "a/b", "a%2Fb", ".", "é", "b"], len(items))
        return {2: items, 3: tuple(items), 4: dict(zip(names, items, strict=True))}[choice]

    for _ in range(40):
        state = {"x": tree(4), "y": tree(4)}
        write(tmp_path / "c.h5", Snapshot(1, small(), state))
        assert same(read(tmp_path / "c.h5").server, state), state
