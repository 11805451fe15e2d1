"""What this process prints, at its end."""

from __future__ import annotations

import contextlib
import sys


def flush_output() -> None:
    """Give what was printed to whoever reads it, before the process ends. That nobody does must not change how it ends."""
    for stream in (sys.stderr, sys.stdout):
        if stream is not None:  # as in a process that was started without
            with contextlib.suppress(OSError, ValueError):  # closed, or its reader is gone
                stream.flush()
