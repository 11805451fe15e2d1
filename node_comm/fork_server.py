"""Imported by the fork server of `processes.World` alone: it cleans up for a parent that is killed.

The folder of the server's socket is its parent's, which removes it at its end. SIGKILL, or `os._exit`, leaves it no time
for that; the server notices, and ends too.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys

#: The variable that names the folder.
FOLDER = "NODE_COMM_FORK_SERVER_FOLDER"

if FOLDER in os.environ:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # to all processes of the job, say
    atexit.register(shutil.rmtree, os.environ.pop(FOLDER), ignore_errors=True)
