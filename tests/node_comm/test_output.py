"""What a process prints at its end."""

from __future__ import annotations

import io
import sys

import pytest

from node_comm.output import flush_output


class Buffered(io.StringIO):
    """Counts its flushes; the reader of a broken one is gone."""

    def __init__(self, is_broken: bool = False) -> None:
        super().__init__()
        self.flushes = 0
        self._is_broken = is_broken

    def flush(self) -> None:
        self.flushes += 1
        if self._is_broken:
            raise BrokenPipeError


@pytest.mark.parametrize("what", ["absent", "closed", "broken"])
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_stream_that_nobody_reads_keeps_no_other_from_its_reader(monkeypatch: pytest.MonkeyPatch, name: str, what: str) -> None:
    other, given = Buffered(), None if what == "absent" else io.StringIO() if what == "closed" else Buffered(is_broken=True)
    if what == "closed":
        given.close()
    monkeypatch.setattr(sys, name, given)
    monkeypatch.setattr(sys, "stderr" if name == "stdout" else "stdout", other)
    flush_output()
    assert other.flushes == 1
