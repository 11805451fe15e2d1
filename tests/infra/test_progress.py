"""Progress: a bar on a terminal, a line a round elsewhere, and never a reason to stop."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from federation.errors import FederationError
from federation.infra.progress import Progress
from federation.infra.recorder import Recorder
from federation.infra.tracker import NoTracker

ROWS = [{"round": round, "cohort_size": 8, "train_loss": 1 / round, "accuracy": np.float32(0.5), "client_loss": None,
         "seconds": {"fit": 1.0}} for round in (1, 2, 3)]  # fmt: skip


def show(stream: io.StringIO, quiet: bool = False) -> str:
    progress = Progress(3, quiet, stream)
    for row in ROWS:
        progress.update(row)
    progress.close()
    progress.close()
    return stream.getvalue()


def test_a_plain_line_a_round() -> None:
    lines = show(io.StringIO()).splitlines()
    assert len(lines) == 3
    for round, line in enumerate(lines, 1):
        expected = rf"round {round}/3  train_loss {1 / round:.4f}  accuracy 0\.5000  \S+ rounds/s  ETA \d+:\d\d:\d\d"
        assert re.fullmatch(expected, line)
    assert lines[2].endswith("ETA 0:00:00")


def test_quiet_is_quiet() -> None:
    assert show(io.StringIO(), quiet=True) == ""


def test_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stream = io.StringIO()
    progress = Progress(1000, stream=stream)
    now[0] = 30.0
    progress.update({"round": 501})  # the first after a resume: 499 are left, 30 s each
    now[0] = 40.0
    progress.update({"round": 502})
    assert stream.getvalue().splitlines() == [
        "round 501/1000  0.0333 rounds/s  ETA 4:09:30", "round 502/1000  0.05 rounds/s  ETA 2:46:00"]  # fmt: skip


def test_waiting_for_clients_is_no_part_of_the_first_round(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stream = io.StringIO()
    recorder = Recorder(progress=Progress(100, stream=stream))
    now[0] = 3600.0  # they come
    for number in (1, 2):
        recorder.check_time()
        now[0] += 1.0
        recorder.check_time()
        now[0] += 1.0
        recorder.record({"round": number})
    assert [line.rpartition("  ")[2] for line in stream.getvalue().splitlines()] == ["ETA 0:03:18", "ETA 0:03:16"]


def on_a_terminal(program: str, **environment: str) -> str:
    """What `program` prints when its standard output is a terminal."""
    master, slave = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=slave, stderr=subprocess.PIPE,
                               env=os.environ | {"TERM": "xterm", "COLUMNS": "120"} | environment)  # fmt: skip
    os.close(slave)
    printed = b""
    try:
        while chunk := os.read(master, 65536):
            printed += chunk
    except OSError:  # how Linux reports that the other side is closed
        pass
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    os.close(master)
    return printed.decode()


PROGRAM = """
    import sys
    from federation.infra.progress import Progress
    progress = Progress(3)
    for round in (1, 2, 3):
        progress.update({"round": round, "train_loss": 0.125, "accuracy": 0.75, "note": "[bold]"})
    progress.close()
    print("rich" in sys.modules)
"""


def test_a_bar_on_a_terminal() -> None:
    printed = on_a_terminal(PROGRAM)
    assert "\x1b[" in printed  # it is drawn over
    assert "3/3" in printed
    assert "train_loss 0.1250  accuracy 0.7500" in printed
    assert "rounds/s" in printed
    assert printed.rstrip().endswith("True")


def test_the_log_goes_where_standard_error_goes(tmp_path: Path) -> None:
    """`2> errors.log` on a terminal: what is logged beside the bar is in that file."""
    log = tmp_path / "errors.log"
    printed = on_a_terminal(f"""
        import logging, os, sys
        from federation.infra.logger import configure
        from federation.infra.progress import Progress
        sys.stderr = open({str(log)!r}, "w")
        configure()
        progress = Progress(3)
        progress.update({{"round": 1}})
        logging.getLogger("federation").warning("client_3 is late")
        progress.close()
    """)
    assert "client_3 is late" in log.read_text()
    assert "client_3 is late" not in printed


def test_the_terminal_is_left_in_order_by_a_run_that_cannot_start(tmp_path: Path) -> None:
    printed = on_a_terminal(f"""
        import socket
        import federation
        from federation.errors import ConfigError
        taken, free = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{{each.getsockname()[1]}}" for each in (taken, free)]
        free.close()
        try:
            federation.run({{"mode": "server", "transport": {{"monitor": addresses[0], "address": addresses[1]}},
                            "tracker": {{"name": "none"}}, "output_dir": {str(tmp_path)!r}}}, quiet=False)
        except ConfigError as error:
            print(error)
    """)
    assert "transport.monitor: cannot listen on" in printed
    assert printed.count("\x1b[?25l") == printed.count("\x1b[?25h"), "the cursor stays hidden"


def test_the_bar_ends_whatever_else_fails_at_the_end() -> None:
    class Failing(NoTracker):
        def close(self) -> None:
            raise FederationError("not all was sent")

    stream = io.StringIO()
    progress = Progress(3, stream=stream)
    recorder = Recorder(tracker=Failing(), progress=progress)
    with pytest.raises(FederationError, match="not all was sent"):
        recorder.close()
    progress.update(ROWS[0])
    assert stream.getvalue() == "", "it is still open"


def test_lines_on_a_terminal_that_cannot_draw() -> None:
    printed = on_a_terminal(PROGRAM, TERM="dumb")
    assert "\x1b[" not in printed
    assert printed.count("rounds/s") == 3
    assert printed.rstrip().endswith("False")  # and rich is not even loaded


def test_a_reader_that_leaves_does_not_stop_the_run() -> None:
    program = """
        import os, sys
        from federation.infra.progress import Progress
        progress = Progress(1000)
        for round in range(1, 1001):
            progress.update({"round": round, "loss": 0.1})
        progress.close()
        print("done", file=sys.stderr)
    """
    reader, writer = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=writer, stderr=subprocess.PIPE,
                               text=True)  # fmt: skip
    os.close(writer)
    os.close(reader)
    _, errors = process.communicate(timeout=60)
    assert errors == "done\n"  # no "Exception ignored ... BrokenPipeError" at the end either
    assert process.returncode == 0


class Ascii(io.StringIO):
    """A stream that takes nothing at all."""

    def write(self, text: str) -> int:
        raise UnicodeEncodeError("ascii", text, 0, 1, "no")


def test_streams_that_are_closed_or_take_nothing() -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (closed, Ascii()):
        progress = Progress(3, stream=stream)
        for row in ROWS:
            progress.update(row)
        progress.close()


def test_without_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    progress = Progress(3)
    progress.update(ROWS[0])
    progress.close()
