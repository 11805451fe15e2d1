"""CIFAR-10 and CIFAR-100: batches written byte by byte, in folders and archives; damaged ones, and ones that mean harm."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.data.formats.cifar import CIFAR10, CIFAR100, Kind, read_cifar
from federation.errors import DataError
from tests.data.formats.reading import content_or_error

COLOURS = np.random.default_rng(0).integers(0, 256, (8, 3072), dtype=np.uint8)
#: An image's bytes are its red rows, its green rows and its blue rows.
IMAGES = [[[[int(image[1024 * channel + 32 * row + column]) for column in range(32)] for row in range(32)]
           for channel in range(3)] for image in COLOURS]


# --- pickles as Python 2 wrote the publisher's, opcode by opcode (protocol 2)

def text(value: bytes) -> bytes:
    return b"U" + bytes([len(value)]) + value


def number(value: int) -> bytes:
    return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)


def numbers(values: list[int]) -> bytes:
    return b"](" + b"".join(map(number, values)) + b"e"


def array(content: bytes, rows: int, columns: int = 3072, dtype: bytes = b"u1", module: bytes = b"numpy.core.multiarray",
          is_fortran: bool = False) -> bytes:
    empty = b"c" + module + b"\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + text(b"b") + b"\x87R"
    kind = b"cnumpy\ndtype\n" + text(dtype) + b"K\0K\1\x87R" + b"(K\3" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    long = b"T" + struct.pack("<I", len(content)) + content
    return empty + b"(K\1" + number(rows) + number(columns) + b"\x86" + kind + (b"\x88" if is_fortran else b"\x89") + long + b"tb"


def batch(items: dict[bytes, bytes]) -> bytes:
    return b"\x80\2}(" + b"".join(text(key) + value for key, value in items.items()) + b"u."


def python10(rows: slice, labels: list[int]) -> bytes:
    return batch({b"batch_label": text(b"training batch 1 of 5"), b"labels": numbers(labels),
                  b"data": array(COLOURS[rows].tobytes(), len(labels)), b"filenames": b"](" + text(b"a.png") * len(labels) + b"e"})


def python100(rows: slice, fine: list[int], coarse: list[int]) -> bytes:
    return batch({b"fine_labels": numbers(fine), b"coarse_labels": numbers(coarse),
                  b"data": array(COLOURS[rows].tobytes(), len(fine))})


LABELS = [6, 9, 0, 4, 1, 1, 2]
PARTS = [slice(0, 1), slice(1, 2), slice(2, 3), slice(3, 4), slice(4, 5), slice(5, 7)]
NAMES = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]

CIFAR10_PYTHON = {name: python10(part, LABELS[part]) for name, part in zip(NAMES, PARTS, strict=True)}
CIFAR10_BINARY = {f"{name}.bin": b"".join(bytes([LABELS[n]]) + COLOURS[n].tobytes() for n in range(8)[part])
                  for name, part in zip(NAMES, PARTS, strict=True)}
FINE, COARSE = [99, 0, 50, 7], [19, 0, 3, 3]
CIFAR100_PYTHON = {"train": python100(slice(0, 3), FINE[:3], COARSE[:3]), "test": python100(slice(3, 4), FINE[3:], COARSE[3:])}
CIFAR100_BINARY = {name: b"".join(bytes([COARSE[n], FINE[n]]) + COLOURS[n].tobytes() for n in rows)
                   for name, rows in (("train.bin", range(3)), ("test.bin", range(3, 4)))}


def test_the_pickles_above_are_pickles() -> None:
    found = pickle.loads(CIFAR10_PYTHON["test_batch"], encoding="bytes")
    assert found[b"labels"] == LABELS[5:7]
    np.testing.assert_array_equal(found[b"data"], COLOURS[5:7])
    assert found[b"data"].dtype == np.uint8


def folder(path: Path, files: dict[str, bytes]) -> Path:
    path.mkdir()
    for name, content in {"batches.meta.txt": b"airplane\n", **files}.items():
        (path / name).write_bytes(content)
    return path


def archive(path: Path, files: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in {"readme.html": b"<html>", **dict(reversed(files.items()))}.items():
            member = tarfile.TarInfo(f"cifar/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("write", [folder, archive, lambda path, files: archive(path, files, "w:")])
@pytest.mark.parametrize("files", [CIFAR10_PYTHON, CIFAR10_BINARY], ids=["python", "binary"])
def test_cifar10(tmp_path: Path, write: Callable[..., Path], files: dict[str, bytes]) -> None:
    content = read_cifar(write(tmp_path / "cifar", files), CIFAR10)
    assert content.test is not None
    assert content.train.x.tolist() == IMAGES[:5]
    assert content.test.x.tolist() == IMAGES[5:7]
    assert (content.train.y.tolist(), content.test.y.tolist()) == (LABELS[:5], LABELS[5:7])
    assert (content.train.x.dtype, content.train.y.dtype) == (np.uint8, np.int64)
    assert (content.num_classes, content.scale, dict(content.train.columns)) == (10, 1 / 255, {})
    assert [path.name for path in tmp_path.iterdir()] == ["cifar"], "nothing is unpacked"


@pytest.mark.parametrize("write", [folder, archive])
@pytest.mark.parametrize("files", [CIFAR100_PYTHON, CIFAR100_BINARY], ids=["python", "binary"])
def test_cifar100_and_its_superclasses(tmp_path: Path, write: Callable[..., Path], files: dict[str, bytes]) -> None:
    content = read_cifar(write(tmp_path / "cifar", files), CIFAR100)
    assert content.test is not None
    assert content.train.x.tolist() == IMAGES[:3]
    assert (content.train.y.tolist(), content.test.y.tolist()) == (FINE[:3], FINE[3:])
    assert content.train.columns["coarse_label"].tolist() == COARSE[:3]
    assert content.test.columns["coarse_label"].tolist() == COARSE[3:]
    assert content.num_classes == 100


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("order", ["C", "F"])
def test_what_python_3_pickles_is_read_too(tmp_path: Path, protocol: int, order: Any) -> None:
    files = {name: pickle.dumps({"data": np.array(COLOURS[part], order=order), "labels": LABELS[part]}, protocol)
             for name, part in zip(NAMES, PARTS, strict=True)}
    assert read_cifar(folder(tmp_path / "cifar", files), CIFAR10).train.x.tolist() == IMAGES[:5]


def test_a_fortran_array_of_python_2(tmp_path: Path) -> None:
    data = array(np.asfortranarray(COLOURS[5:7]).tobytes("A"), 2, is_fortran=True)
    files = {**CIFAR10_PYTHON, "test_batch": batch({b"data": data, b"labels": numbers([1, 2])})}
    test = read_cifar(folder(tmp_path / "cifar", files), CIFAR10).test
    assert test is not None
    assert test.x.tolist() == IMAGES[5:7]


def test_a_folder_of_both_versions_is_read_once(tmp_path: Path) -> None:
    assert len(read_cifar(folder(tmp_path / "cifar", {**CIFAR10_PYTHON, **CIFAR10_BINARY}), CIFAR10).train.y) == 5


# --- harm

MARKER = b"touched"
HARM = {
    "os.system": b"cos\nsystem\n(" + text(b"touch " + MARKER) + b"tR.",
    "posix.system": b"cposix\nsystem\n(" + text(b"touch " + MARKER) + b"tR.",
    "__builtin__.eval": b"c__builtin__\neval\n(" + text(b"open('touched', 'w')") + b"tR.",
    "builtins.open": b"\x80\4\x8c\x08builtins\x8c\x04open\x93(\x8c\x07touched\x8c\x01wtR.",
    "os.system ": b"(" + text(b"touch " + MARKER) + b"ios\nsystem\n.",  # INST
    "os.mkdir": b"\x80\2cos\nmkdir\n" + text(MARKER) + b"\x85\x81.",  # NEWOBJ
    "numpy.fromfile": b"cnumpy\nfromfile\n(tR.",
    "numpy.core.multiarray.scalar": b"cnumpy.core.multiarray\nscalar\n(tR.",
    "codecs.encode": b"ccodecs\nencode\n(tR.",
    "numpy.load": b"\x80\4\x8c\x05numpy\x8c\x04load\x93(tR.",
    "numpy.core.multiarray._reconstruct.__globals__": b"\x80\4\x8c\x15numpy.core.multiarray\x8c\x18_reconstruct.__globals__\x93.",
}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("harm", HARM)
def test_a_pickle_that_asks_for_more_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str,
                                                            packed: bool) -> None:
    """S-SEC-01"""
    monkeypatch.chdir(tmp_path)
    path = (archive if packed else folder)(tmp_path / "cifar", {**CIFAR10_PYTHON, "data_batch_3": HARM[harm]})
    with pytest.raises(DataError, match=f"{path}: data_batch_3: it asks for {harm.strip()}, .*nothing of it was executed"):
        read_cifar(path, CIFAR10)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["cifar"]


def test_the_harm_above_is_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own unpickler runs it, so the test above can fail."""
    monkeypatch.chdir(tmp_path)
    for name in ("os.system", "posix.system", "__builtin__.eval", "builtins.open", "os.system "):
        pickle.loads(HARM[name])
        (tmp_path / "touched").unlink()


ODD = {
    "state of a function": b"\x80\2c_codecs\nencode\nN}" + text(b"__defaults__") + b"K\1s\x86b.",
    "state of a class": b"\x80\2cnumpy.core.multiarray\n_reconstruct\nN}" + text(b"frombuffer") + b"K\1s\x86b.",
    "another encoding": b"\x80\2c_codecs\nencode\nX\1\0\0\0aX\4\0\0\0zlib\x86R.",
    "text called": text(b"system") + b"(tR.",
    "ndarray called": b"cnumpy\nndarray\n(tR.",
    "persistent": b"Pid\n.",
    "registered": b"\x80\2\x82\1.",
    "array of objects": batch({b"data": array(b"x", 1, dtype=b"O"), b"labels": numbers([1])}),
    "shape beyond its bytes": batch({b"data": array(b"x", 250, 250), b"labels": numbers([1])}),
    "a list within itself": b"\x80\2]q\0h\0a.",
    "text in place of bytes": batch({b"data": b"cnumpy.core.multiarray\n_reconstruct\n(tR(K\1K\1\x85cnumpy\ndtype\n"
                                             + text(b"u1") + b"\x85R\x89NtbU\1a"}),
    "deep": b"\x80\2" + b"(" * 100_000 + b"t" * 100_000 + b".",
    "deep keys": b"\x80\2}" + b"(" * 100_000 + b"t" * 100_000 + b"K\1s.",
    "nothing": b"", "a dot": b".", "a number": b"K\1.", "no end": b"\x80\2}",
    "numbers as keys": b"\x80\2}K\1K\1s.",
}


@pytest.mark.parametrize("case", ODD)
def test_odd_pickles_are_refused(tmp_path: Path, case: str) -> None:
    path = folder(tmp_path / "cifar", {**CIFAR10_PYTHON, "test_batch": ODD[case]})
    for _ in range(2):
        with pytest.raises(DataError, match=f"{path}: test_batch"):
            read_cifar(path, CIFAR10)
    whole = folder(tmp_path / "whole", CIFAR10_PYTHON)
    assert read_cifar(whole, CIFAR10).train.y.tolist() == LABELS[:5], "a pickle leaves no trace in this process"


@pytest.mark.parametrize("pickled", [b"\x80\2Nr\xff\xff\xff\x3f.", b"\x80\5\x96" + struct.pack("<Q", 2**33) + b".",
                                     b"\x80\4\x8e" + struct.pack("<Q", 2**33) + b".", b"T\xff\xff\xff\x7f."])
def test_a_pickle_that_lies_about_its_size_takes_no_memory(tmp_path: Path, pickled: bytes) -> None:
    """Python's faster unpickler would take 17 GB for the first, which has eight bytes."""
    path = folder(tmp_path / "cifar", {**CIFAR10_PYTHON, "test_batch": pickled})
    program = ("import resource, sys; from pathlib import Path; from federation.data.formats.cifar import *\n"
               "from federation.errors import DataError\n"
               "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
               "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
               "try: read_cifar(Path(sys.argv[1]), CIFAR10)\n"
               "except DataError as error: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)")
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=120, check=True)
    assert int(done.stdout) < 64 * 1024, "KiB"


def test_members_are_never_written(tmp_path: Path) -> None:
    """S-SEC-01. Names that lead out of the archive, and links, do nothing but fail to be a batch."""
    path = tmp_path / "cifar.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in CIFAR10_BINARY.items():
            member = tarfile.TarInfo(f"../../{name}" if name != "test_batch.bin" else f"/tmp/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    assert read_cifar(path, CIFAR10).train.y.tolist() == LABELS[:5]
    with tarfile.open(path, "w:gz") as tar:
        for name in CIFAR10_BINARY:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member)
    with pytest.raises(DataError, match=r"cifar\.tar\.gz holds nothing; expected data_batch_1\.bin"):
        read_cifar(path, CIFAR10)
    assert [entry.name for entry in tmp_path.iterdir()] == ["cifar.tar.gz"]


class Zeros(io.RawIOBase):
    def read(self, size: int = -1) -> bytes:
        return bytes(size)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name in CIFAR10_BINARY:
            member = tarfile.TarInfo(name)
            member.size = 2**28 + 3073 if name == "data_batch_1.bin" else 3073
            tar.addfile(member, Zeros())
    with pytest.raises(DataError, match=r"data_batch_1\.bin is larger than 268435456 bytes; expected a batch of CIFAR"):
        read_cifar(path, CIFAR10)


# --- damage

def ten(**changes: bytes) -> dict[str, bytes]:
    return {**CIFAR10_PYTHON, "test_batch": batch({b"data": array(COLOURS[5:7].tobytes(), 2), b"labels": numbers([1, 2]),
                                                   **{key.encode(): value for key, value in changes.items()}})}


DAMAGED: dict[str, tuple[Kind, dict[str, bytes], str]] = {
    "a batch is missing": (CIFAR10, {key: value for key, value in CIFAR10_BINARY.items() if "3" not in key},
                           r"holds batches\.meta\.txt, data_batch_1\.bin, .*; expected data_batch_1\.bin"),
    "nothing": (CIFAR10, {}, "expected data_batch_1.bin .*, or data_batch_1 data_batch_2"),
    "the other set": (CIFAR100, CIFAR10_BINARY, r"expected train\.bin test\.bin, or train test"),
    "cut": (CIFAR10, {**CIFAR10_BINARY, "data_batch_5.bin": CIFAR10_BINARY["data_batch_5.bin"][:-1]},
            r"data_batch_5\.bin has 3072 bytes; expected records of 3073 bytes"),
    "empty": (CIFAR10, {**CIFAR10_BINARY, "test_batch.bin": b""}, r"test_batch\.bin has 0 bytes"),
    "label": (CIFAR10, {**CIFAR10_BINARY, "test_batch.bin": b"\x0a" + COLOURS[0].tobytes()},
              r"test_batch\.bin holds labels 10 to 10; expected 0 to 9"),
    "fine label": (CIFAR100, {**CIFAR100_BINARY, "test.bin": b"\x00\x64" + COLOURS[0].tobytes()},
                   r"test\.bin holds labels 100 to 100; expected 0 to 99"),
    "a list": (CIFAR10, {**CIFAR10_PYTHON, "test_batch": b"\x80\2]."}, "test_batch holds list; expected a dict with data, labels"),
    "no data": (CIFAR10, {**CIFAR10_PYTHON, "test_batch": batch({b"labels": numbers([1])})},
                "test_batch holds a dict of labels; expected a dict with data, labels"),
    "no array": (CIFAR10, ten(data=numbers([1, 2])), r"data is list; expected uint8\[n, 3072\]"),
    "other shape": (CIFAR10, ten(data=array(bytes(200), 2, 100)), r"data is uint8\[2, 100\]; expected uint8\[n, 3072\]"),
    "floats": (CIFAR10, ten(data=array(bytes(8), 1, 1, b"f8")), "an array of type b'f8'; expected bytes"),
    "labels are text": (CIFAR10, ten(labels=text(b"ab")), "labels is no list of whole numbers"),
    "labels are true": (CIFAR10, ten(labels=b"](\x88\x88e"), "labels is no list of whole numbers"),
    "fewer labels": (CIFAR10, ten(labels=numbers([1])), "holds 2 images, but 1 labels"),
    "negative": (CIFAR10, ten(labels=numbers([1, -2])), "holds labels -2 to 1; expected 0 to 9"),
    "huge labels": (CIFAR10, ten(labels=b"]K\1a\x8a\x0a" + bytes(9) + b"\1a"), "labels is no list of whole numbers below"),
    "fewer superclasses": (CIFAR100, {**CIFAR100_PYTHON, "test": python100(slice(0, 2), [1, 2], [3])},
                           "holds 2 images, but 1 coarse_label"),
    "no superclasses": (CIFAR100, {**CIFAR100_PYTHON, "test": python10(slice(0, 1), [1])},
                        "expected a dict with data, fine_labels, coarse_labels"),
}


@pytest.mark.parametrize("write", [folder, archive])
@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_named(tmp_path: Path, case: str, write: Callable[..., Path]) -> None:
    kind, files, words = DAMAGED[case]
    path = write(tmp_path / "cifar", files)
    with pytest.raises(DataError, match=words.replace(r"batches\.meta\.txt, ", "(batches.meta.txt, )?")) as caught:
        read_cifar(path, kind)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("files", [CIFAR10_PYTHON, CIFAR10_BINARY], ids=["python", "binary"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.6, 0.95, 0.9995])
def test_truncated_archives_are_named(tmp_path: Path, kept: float, files: dict[str, bytes]) -> None:
    path = archive(tmp_path / "cifar.tar.gz", files)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(DataError, match=str(path)):
        read_cifar(path, CIFAR10)


def test_a_changed_checksum_is_found(tmp_path: Path) -> None:
    """What follows the last member is read too: a byte that changed within it would be a wrong pixel."""
    path = archive(tmp_path / "cifar.tar.gz", CIFAR10_BINARY)
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="CRC"):
        read_cifar(path, CIFAR10)


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\3\4 cut", b"\xfd7zXZ\0 cut", b"\x1f\x8b",
                                     gzip.compress(b"hello", mtime=0)])
def test_files_of_another_kind_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cifar.tar.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{path}(: the archive of CIFAR cannot be read, it is damaged| holds nothing)"):
        read_cifar(path, CIFAR10)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path}/gone does not exist; expected CIFAR's batches, in a folder"):
        read_cifar(tmp_path / "gone", CIFAR10)


def expected_labels(content: bytes) -> list[int] | None:
    """What a binary batch of CIFAR-10 holds by its description: 3073 bytes a record, the label first."""
    labels = [content[at] for at in range(0, len(content), 3073)]
    return labels if content and len(content) % 3073 == 0 and max(labels) < 10 else None


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=200)
       | st.builds(lambda labels, cut: b"".join(bytes([label]) + COLOURS[0].tobytes() for label in labels)[cut:],
                   st.lists(st.integers(0, 11), max_size=3), st.integers(0, 2)))
def test_any_binary_batch_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed-binary"
    if not path.exists():
        folder(path, CIFAR10_BINARY)
    (path / "test_batch.bin").write_bytes(content)
    found = content_or_error(lambda path: read_cifar(path, CIFAR10), path)
    assert (None if found is None or found.test is None else found.test.y.tolist()) == expected_labels(content)


@settings(max_examples=300, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6), cut=st.integers(0, 6400))
def test_a_changed_pickle_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]],
                                             cut: int) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed-python"
    if not path.exists():
        folder(path, CIFAR10_PYTHON)
    content = bytearray(CIFAR10_PYTHON["test_batch"])
    for at, value in changes:
        content[at if at < 200 else at - 400] = value
    (path / "test_batch").write_bytes(content[:cut] if cut % 4 == 0 else content)
    content_or_error(lambda path: read_cifar(path, CIFAR10), path)


@settings(max_examples=150, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=8), packed=st.booleans())
def test_a_changed_archive_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]],
                                              packed: bool) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.tar"
    content = bytearray(archive(path, CIFAR10_BINARY, "w:").read_bytes())
    for at, value in changes:
        content[at] = value
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    content_or_error(lambda path: read_cifar(path, CIFAR10), path)
