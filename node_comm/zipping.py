"""Pieces of arrays made smaller, without loss: the bytes of one place in all elements side by side, then zstandard.

Exponents and leading zeros are alike among the elements of an array, and lie together then. Importing this module loads
zstandard.
"""

from __future__ import annotations

import numpy as np
import zstandard

from node_comm.errors import ProtocolError


def zipped(piece: memoryview, itemsize: int, level: int) -> bytes:
    """`piece` of an array whose elements have `itemsize` bytes, zipped."""
    planes = np.frombuffer(piece, np.uint8).reshape(-1, _width(len(piece), itemsize)).T
    return zstandard.ZstdCompressor(level=level).compress(np.ascontiguousarray(planes).data)


def unzipped(data: memoryview, itemsize: int, most: int) -> memoryview:
    """What was zipped. Raises ProtocolError where that is more than `most` bytes, before they are made, or none at all."""
    try:
        size = zstandard.frame_content_size(data)
        if not 0 < size <= most:
            raise ProtocolError(f"a zipped piece of {size} bytes; 1 to {most} are allowed")
        planes = np.frombuffer(zstandard.ZstdDecompressor().decompress(data), np.uint8)
    except zstandard.ZstdError as error:
        raise ProtocolError(f"a zipped piece is damaged: {error}") from error
    return np.ascontiguousarray(planes.reshape(_width(size, itemsize), -1).T).reshape(-1).data


def _width(size: int, itemsize: int) -> int:
    """Bytes of one place are found this far apart. Pieces that do not hold whole elements are zipped as they are."""
    return itemsize if size % itemsize == 0 else 1
