"""IDX files, written byte by byte: every type, packed or not, and every way in which one can be wrong."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.data.formats.idx import read_idx, read_idx_set
from federation.errors import DataError
from tests.data.formats.reading import content_or_error

#: Code of the type -> struct's letter for it, and values at its limits.
TYPES = {0x08: ("B", [0, 1, 127, 128, 254, 255]), 0x09: ("b", [-128, -1, 0, 1, 2, 127]),
         0x0B: ("h", [-32768, -1, 0, 1, 258, 32767]), 0x0C: ("i", [-(2**31), -1, 0, 1, 66051, 2**31 - 1]),
         0x0D: ("f", [-1.5, -0.0, 0.0, 1.0, 2.5, 65504.0]), 0x0E: ("d", [-1.5, -0.0, 0.0, 0.1, 2.5, 1e300])}
IMAGES = [[[3 * row + column + 50 * image for column in range(3)] for row in range(2)] for image in range(4)]


def idx(code: int, sizes: list[int], values: list[float]) -> bytes:
    return struct.pack(f">BBBB{len(sizes)}I{len(values)}{TYPES[code][0]}", 0, 0, code, len(sizes), *sizes, *values)


def images(content: list[list[list[int]]]) -> bytes:
    return idx(0x08, [len(content), 2, 3], [pixel for image in content for row in image for pixel in row])


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "a.gz"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("code", TYPES)
def test_every_type_is_read_whatever_the_name(tmp_path: Path, code: int, packed: bool, name: str) -> None:
    letter, values = TYPES[code]
    content = idx(code, [3, 2], values)
    found = read_idx(write(tmp_path / name, gzip.compress(content) if packed else content))
    assert found.tolist() == [values[:2], values[2:4], values[4:]]
    assert found.dtype == np.dtype(letter)
    assert found.dtype.isnative


def test_bytes_in_a_row() -> None:
    """The writer above, against the format's description."""
    assert images(IMAGES[:1]) == bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 1, 2, 3, 4, 5])


def test_no_values_and_several_members(tmp_path: Path) -> None:
    assert read_idx(write(tmp_path / "a", idx(0x08, [0, 28, 28], []))).shape == (0, 28, 28)
    content = images(IMAGES)
    two = gzip.compress(content[:10]) + gzip.compress(content[10:])  # as `cat a.gz b.gz` makes it
    assert read_idx(write(tmp_path / "b", two)).tolist() == IMAGES


DAMAGED = {
    "empty": (b"", "begins with nothing"),
    "short": (b"\0\0\x08", "begins with 00 00 08"),
    "another magic": (b"\1" + images(IMAGES)[1:], "no IDX file: it begins with 01 00 08 03"),
    "another type": (b"\0\0\x0a\x01" + bytes(5), "begins with 00 00 0a 01; expected 00 00, a type"),
    "no dimensions": (b"\0\0\x08\0" + bytes(5), "no IDX file"),
    "cut in its head": (images(IMAGES)[:11], "ends within its head"),
    "cut": (images(IMAGES)[:-1], r"head of uint8\[4, 2, 3\] says that it holds|holds 23 bytes"),
    "more": (images(IMAGES) + b"\0", r"holds more than 24 bytes after its head, which says uint8\[4, 2, 3\], 24 bytes"),
    "a PNG": (b"\x89PNG\r\n\x1a\n" + bytes(50), "begins with 89 50 4e 47"),
    "too many dimensions": (b"\0\0\x08\xff" + struct.pack(">255I", *[1] * 255) + b"\7", "cannot be read"),
    "huge": (b"\0\0\x0e\x03" + b"\xff" * 12 + bytes(100), "which a file of 116 bytes cannot"),
}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_named(tmp_path: Path, case: str, packed: bool) -> None:
    content, words = DAMAGED[case]
    path = write(tmp_path / "train", gzip.compress(content) if packed else content)
    if case == "huge" and packed:
        words = "which a file of .* bytes cannot"
    with pytest.raises(DataError, match=words) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("cut", [1, 4, 8, 9, 30])
def test_a_truncated_gzip_is_named(tmp_path: Path, cut: int) -> None:
    content = np.random.default_rng(0).bytes(600)
    packed = gzip.compress(idx(0x08, [600], list(content)))
    path = write(tmp_path / "cut.gz", packed[:-cut])
    with pytest.raises(DataError, match=r"cut\.gz: the IDX file cannot be read, it is damaged"):
        read_idx(path)


def test_a_changed_byte_in_a_gzip_is_found(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(idx(0x08, [600], list(np.random.default_rng(0).bytes(600)))))
    packed[len(packed) // 2] ^= 4
    with pytest.raises(DataError, match="damaged"):
        read_idx(write(tmp_path / "a", bytes(packed)))


def peak(path: Path) -> int:
    """Bytes that are allocated at most while `path` is refused."""
    tracemalloc.start()
    try:
        with pytest.raises(DataError):
            read_idx(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_what_lies_about_its_size_takes_no_memory(tmp_path: Path) -> None:
    claim = b"\0\0\x08\x01" + struct.pack(">I", 3 * 2**30) + b"few"
    assert peak(write(tmp_path / "plain", claim)) < 2**20
    assert peak(write(tmp_path / "packed", gzip.compress(claim))) < 2**20
    bomb = gzip.compress(idx(0x08, [10], [1] * 10) + bytes(2**28))
    assert len(bomb) < 2**19
    assert peak(write(tmp_path / "bomb", bomb)) < 2**20


def test_large_files_are_read_in_place(tmp_path: Path) -> None:
    content = np.arange(2**25, dtype=np.uint32).view(np.uint8)[: 2**26]
    path = write(tmp_path / "a", struct.pack(">BBBBI", 0, 0, 8, 1, 2**26) + content.tobytes())
    tracemalloc.start()
    try:
        found = read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 1.6 * 2**26
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(found, content)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path}/gone does not exist; expected an IDX file"):
        read_idx(tmp_path / "gone")
    with pytest.raises(DataError, match=f"{tmp_path} is a folder"):
        read_idx(tmp_path)


def four(folder: Path, content: bytes | None = None, labels: list[int] | None = None) -> tuple[Path, Path, Path, Path]:
    labels = [4, 1, 3, 2] if labels is None else labels
    return (write(folder / "a", content or images(IMAGES)), write(folder / "b", idx(0x08, [len(labels)], list(labels))),
            write(folder / "c", gzip.compress(images(IMAGES[:1]))), write(folder / "d", idx(0x08, [1], [2])))


def test_a_set_is_bytes_and_labels(tmp_path: Path) -> None:
    content = read_idx_set(*four(tmp_path), num_classes=5)
    assert content.test is not None
    assert content.train.x.tolist() == IMAGES
    assert content.test.x.tolist() == IMAGES[:1]
    assert (content.train.x.dtype, content.train.y.dtype) == (np.uint8, np.int64)
    assert (content.train.y.tolist(), content.test.y.tolist()) == ([4, 1, 3, 2], [2])
    assert (content.num_classes, content.scale) == (5, 1 / 255)


def test_emnist_is_turned_back_and_its_letters_begin_with_1(tmp_path: Path) -> None:
    content = read_idx_set(*four(tmp_path), num_classes=4, first_label=1, transposed=True)
    turned = [[[image[row][column] for row in range(2)] for column in range(3)] for image in IMAGES]
    assert content.train.x.tolist() == turned
    assert content.train.x.flags.c_contiguous
    assert content.train.y.tolist() == [3, 0, 2, 1]


WRONG_SETS: dict[str, tuple[dict[str, object], dict[str, int], str]] = {
    "labels for images": ({"content": idx(0x08, [4], [1, 2, 3, 4])}, {}, r"/a holds uint8\[4\]; expected images"),
    "floats": ({"content": idx(0x0D, [1, 1, 1], [0.5])}, {}, r"/a holds float32\[1, 1, 1\]; expected images, uint8"),
    "fewer labels": ({"labels": [1, 2]}, {}, "/a holds 4 images, but .*/b 2 labels"),
    "large label": ({"labels": [1, 2, 9, 3]}, {}, "/b holds labels 1 to 9; expected 0 to 4"),
    "small label": ({"labels": [1, 2, 0, 3]}, {"first_label": 1}, "/b holds labels 0 to 3; expected 1 to 5"),
}


@pytest.mark.parametrize("case", WRONG_SETS)
def test_files_that_do_not_fit_together(tmp_path: Path, case: str) -> None:
    given_files, options, words = WRONG_SETS[case]
    with pytest.raises(DataError, match=words):
        read_idx_set(*four(tmp_path, **given_files), num_classes=5, **options)  # type: ignore[arg-type]


def test_images_in_the_place_of_labels(tmp_path: Path) -> None:
    a, _, c, d = four(tmp_path)
    with pytest.raises(DataError, match=r"/a holds uint8\[4, 2, 3\]; expected labels, uint8\[n\]"):
        read_idx_set(a, a, c, d, num_classes=5)


@settings(max_examples=300, deadline=None)
@given(content=st.one_of(st.binary(max_size=60), st.binary(max_size=40).map(lambda tail: b"\0\0\x08\1" + tail),
                         st.builds(lambda code, sizes, tail: bytes([0, 0, code, len(sizes)])
                                   + struct.pack(f">{len(sizes)}I", *sizes) + tail,
                                   st.integers(0, 255), st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 3), max_size=5),
                                   st.binary(max_size=40))),
       packed=st.booleans())
def test_any_bytes_are_an_array_or_an_error(tmp_path_factory: pytest.TempPathFactory, content: bytes, packed: bool) -> None:
    path = write(tmp_path_factory.getbasetemp() / "fuzz", gzip.compress(content) if packed else content)
    found = content_or_error(read_idx, path)
    if found is not None:  # then it is what struct makes of the same bytes
        head = 4 + 4 * content[3]
        assert found.shape == struct.unpack(f">{content[3]}I", content[4:head])
        expected = struct.unpack(f">{found.size}{TYPES[content[2]][0]}", content[head:])
        np.testing.assert_array_equal(found.reshape(-1), expected)


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, 200), value=st.integers(0, 255), cut=st.integers(0, 200))
def test_a_packed_file_with_a_changed_byte_never_crashes(tmp_path_factory: pytest.TempPathFactory, at: int, value: int,
                                                         cut: int) -> None:
    packed = bytearray(gzip.compress(images(IMAGES), mtime=0))
    packed[at % len(packed)] = value
    path = write(tmp_path_factory.getbasetemp() / "fuzz", bytes(packed[: max(len(packed) - cut, 0)] if cut % 3 else packed))
    found = content_or_error(read_idx, path)
    assert found is None or found.tolist() == IMAGES, "a checksum is over all that counts"
