"""How readers speak of files that are missing, damaged or of another kind."""

from __future__ import annotations

import csv
import tarfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from federation.errors import DataError

#: What libraries raise for files that are damaged, or made to look larger than memory.
DAMAGE = (OSError, ValueError, EOFError, KeyError, RuntimeError, NotImplementedError, MemoryError, OverflowError,
          SyntaxError, csv.Error, tarfile.TarError, tokenize.TokenError, zipfile.BadZipFile, zlib.error)
#: How NumPy speaks of arrays of objects.
_OBJECTS = ("allow_pickle", "bject arrays", "Python objects")
#: Deflate, the densest of the usual compressions, makes at most 1032 bytes out of one.
EXPANSION = 1032


def check_claim(claimed: int, path: Path, what: str, expansion: int = EXPANSION) -> None:
    """Raise DataError where `what` claims more bytes than `path` can hold, before memory is asked for."""
    size = path.stat().st_size
    if claimed > size * expansion:
        raise DataError(f"{path}: the {what} says that it holds {claimed} bytes, which a file of {size} bytes cannot; copy or "
                        f"download the file again")


@contextmanager
def damage(path: Path, what: str) -> Iterator[None]:
    """Turn what a library raises while it reads `what` ("IDX file") from `path` into a DataError that names both."""
    try:
        yield
    except DAMAGE as error:
        if isinstance(error, ValueError) and any(words in str(error) for words in _OBJECTS):
            raise DataError(f"{path}: the {what} holds Python objects; expected numbers (objects are never loaded, as "
                            f"that could execute code)") from error
        raise DataError(f"{path}: the {what} cannot be read, it is damaged or incomplete ({type(error).__name__}: "
                        f"{error}); copy or download the file again") from error
