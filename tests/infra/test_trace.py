"""The timeline: spans by rank, in a file that is whole JSON at its end, and readable at any time before."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from federation.infra.timer import Timer
from federation.infra.trace import Span, Spans, TraceFile


def test_nothing_is_kept_unless_it_is_wanted() -> None:
    spans = Spans()
    with spans.span("fit"):
        pass
    spans.add("reduce", 1.0)
    assert spans.take() == []


def test_spans_have_a_beginning_and_a_length() -> None:
    spans = Spans(wanted=True)
    before = time.time()
    with pytest.raises(KeyError), spans.span("fit", "client_3"):
        raise KeyError
    spans.add("reduce", 0.5)
    Timer(spans=spans).add("not a phase of its own", 1.0)
    with Timer(spans=spans).phase("evaluate"):
        pass
    fit, reduce, evaluate = spans.take()
    assert (fit.name, fit.who, reduce.name, evaluate.name) == ("fit", "client_3", "reduce", "evaluate")
    assert before <= fit.began <= time.time()
    assert reduce.began + reduce.seconds <= time.time()
    assert spans.take() == []


def events(path: Path) -> list[dict[str, Any]]:
    return [event for event in json.loads(path.read_text()) if event["ph"] == "X"]


def test_the_file_is_what_viewers_read(tmp_path: Path) -> None:
    """Microseconds, a process for each rank; after a resumption the old events and the new ones."""
    path = tmp_path / "trace.json"
    trace = TraceFile(path)
    trace.write(0, [Span("broadcast", 100.0, 0.5)])
    trace.write(2, [Span("fit", 101.0, 0.25, "client_7"), Span("idle", 101.25, 1.0)])
    assert len(json.loads(path.read_text() + "]")) == 5  # as a run that was killed leaves it
    trace.close()
    trace.close()
    assert [(event["pid"], event["name"], event["ts"], event["dur"]) for event in events(path)] == [
        (0, "broadcast", 100e6, 0.5e6), (2, "fit", 101e6, 0.25e6), (2, "idle", 101.25e6, 1e6)]
    assert events(path)[1]["args"] == {"client": "client_7"}
    names = [event["args"]["name"] for event in json.loads(path.read_text()) if event["ph"] == "M"]
    assert names == ["rank 0", "rank 2"]
    for _ in range(2):
        trace = TraceFile(path, resume=True)
        trace.write(1, [Span("fit", 200.0, 1.0)])
        trace.close()
    assert [event["pid"] for event in events(path)] == [0, 2, 2, 1, 1]
    TraceFile(path).close()
    assert events(path) == []


def test_a_line_that_was_being_written_is_left_out(tmp_path: Path) -> None:
    """As a process that was killed, or a full disk, leaves it; wherever the line is torn."""
    path = tmp_path / "trace.json"
    trace = TraceFile(path)
    trace.write(0, [Span("broadcast", 100.0, 0.5), Span("fit", 101.0, 0.25, "client_7")])
    whole = path.read_bytes()
    trace.close()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        trace = TraceFile(path, resume=True)
        trace.write(0, [Span("reduce", 200.0, 1.0)])
        trace.close()
        assert [event["name"] for event in events(path)][-1] == "reduce"
    assert [event["name"] for event in events(path)] == ["broadcast", "fit", "reduce"]


def test_a_full_disk_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """A timeline is no reason to end a run, nor to hide why one ends."""
    trace = TraceFile(Path("/dev/full"))
    for _ in range(2):
        trace.write(0, [Span("fit", 100.0, 0.5)])
    trace.close()
    TraceFile(Path("/dev/full")).close()
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "/dev/full: No space left on device" in caplog.text
