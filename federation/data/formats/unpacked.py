"""Files that may be compressed by gzip, which is told by what they hold, not by their names."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

_GZIP = b"\x1f\x8b"


@contextmanager
def unpacked(path: Path) -> Iterator[tuple[IO[bytes], bool]]:
    """The bytes of the file, unpacked as they are read, and whether it is compressed.

    gzip's checksum is compared when the end is reached, not before. Raises OSError, EOFError and zlib.error.
    """
    with open(path, "rb") as plain:
        is_packed = plain.read(len(_GZIP)) == _GZIP
        plain.seek(0)
        if is_packed:
            with gzip.GzipFile(fileobj=plain) as file:
                yield cast(IO[bytes], file), True
        else:
            yield plain, False
