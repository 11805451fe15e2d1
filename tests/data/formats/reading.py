"""What a reader makes of a file that may be anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from federation.errors import DataError

Found = TypeVar("Found")


def content_or_error(read: Callable[[Path], Found], path: Path) -> Found | None:
    """What `read` finds, None where it refuses with a DataError that names `path`. Anything else fails the test."""
    try:
        return read(path)
    except DataError as error:
        message = str(error)
    assert str(path) in message
    return None
