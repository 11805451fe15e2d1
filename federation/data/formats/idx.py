"""IDX files, the format of MNIST and its relatives (LeCun et al., http://yann.lecun.com/exdb/mnist)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import IO

import numpy as np

from federation.data.formats.damage import EXPANSION, check_claim, damage
from federation.data.formats.raw import Content, Samples
from federation.data.formats.unpacked import unpacked
from federation.errors import DataError

#: Third byte of the magic number -> type of the values, most significant byte first.
_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_CHUNK = 1 << 24


def read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file, plain or compressed by gzip, whatever its name, in the machine's byte order.

    A head that claims more than a file of that size can hold is refused before memory is asked for. Raises DataError for
    a missing file, another format, and a file that holds more or less than its head says.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"{path.absolute()} {what}; expected an IDX file")
    with damage(path, "IDX file"), unpacked(path) as (file, is_packed):
        return _read(file, path, EXPANSION if is_packed else 1)


def read_idx_set(images: Path, labels: Path, test_images: Path, test_labels: Path, *, num_classes: int,
                 first_label: int = 0, transposed: bool = False) -> Content:
    """A data set of four IDX files: x uint8[n, height, width], y int64[n].

    `first_label` is the label of class 0 in the files (1 in EMNIST's letters); `transposed` says that rows and columns
    of the images have changed places, as in all of EMNIST.
    """
    def part(image_path: Path, label_path: Path) -> Samples:
        x, y = read_idx(image_path), read_idx(label_path)
        if x.ndim != 3 or x.dtype != np.uint8:
            raise DataError(f"{image_path} holds {x.dtype}{list(x.shape)}; expected images, uint8[n, height, width]")
        if y.ndim != 1 or y.dtype.kind not in "iu":
            raise DataError(f"{label_path} holds {y.dtype}{list(y.shape)}; expected labels, uint8[n]")
        if len(x) != len(y):
            raise DataError(f"{image_path} holds {len(x)} images, but {label_path} {len(y)} labels")
        labels = y.astype(np.int64) - first_label
        if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
            raise DataError(f"{label_path} holds labels {y.min()} to {y.max()}; expected {first_label} to "
                            f"{first_label + num_classes - 1}")
        return Samples(np.ascontiguousarray(x.swapaxes(1, 2)) if transposed else x, labels)

    return Content(part(images, labels), part(test_images, test_labels), num_classes, 1 / 255)


def _read(file: IO[bytes], path: Path, expansion: int) -> np.ndarray:
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _TYPES or head[3] == 0:
        raise DataError(f"{path} is no IDX file: it begins with {head.hex(' ') or 'nothing'}; expected 00 00, a type "
                        f"({', '.join(f'{code:02x}' for code in _TYPES)}) and the number of dimensions")
    dtype, num_dimensions = np.dtype(_TYPES[head[2]]), head[3]
    sizes = file.read(4 * num_dimensions)
    if len(sizes) < 4 * num_dimensions:
        raise DataError(f"{path} ends within its head; copy or download the file again")
    shape = tuple(int(size) for size in np.frombuffer(sizes, ">u4"))
    wanted = math.prod(shape) * dtype.itemsize
    check_claim(wanted, path, f"head of {dtype.name}{list(shape)}", expansion)
    content = np.empty(wanted, np.uint8)
    found = 0
    while chunk := file.read(min(_CHUNK, wanted - found)):
        content[found : found + len(chunk)] = np.frombuffer(chunk, np.uint8)
        found += len(chunk)
    if found < wanted or file.read(1):
        what = f"{found}" if found < wanted else f"more than {wanted}"
        raise DataError(f"{path} holds {what} bytes after its head, which says {dtype.name}{list(shape)}, {wanted} bytes; "
                        f"copy or download the file again")
    return content.view(dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)
