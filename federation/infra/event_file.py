"""TensorBoard event files: written and cut without TensorFlow, torch or a thread.

A file is a series of records: length (8 bytes), its checksum (4), an `Event` protocol buffer, its checksum (4).
"""

from __future__ import annotations

import importlib
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class EventFile:
    """Appends scalars to one event file in `folder`; each round is in the file when `write` returns.

    keep_until: events of earlier files in `folder` up to this step are taken over, later ones dropped, and the
        earlier files removed, so that each step stands once. None keeps nothing.

    Raises ImportError where tensorboard is missing, OSError where the folder cannot be written.
    """

    def __init__(self, folder: Path, keep_until: int | None = None) -> None:
        # The protocol buffers alone: the writer that tensorboard offers loads ten times as much, TensorFlow included.
        self._events: Any = importlib.import_module("tensorboard.compat.proto.event_pb2")
        self._summaries: Any = importlib.import_module("tensorboard.compat.proto.summary_pb2")
        folder.mkdir(parents=True, exist_ok=True)
        earlier = sorted(folder.glob("events.out.tfevents.*"))
        # Readers go through the files by name, which begins with the second of creation: ours must come last.
        second = max([int(time.time()), *(_second_of(path) + 1 for path in earlier)])
        path = folder / f"events.out.tfevents.{second:010d}.{socket.gethostname()}.{os.getpid()}.0"
        building = folder / f".{path.name.replace('tfevents', 'building')}"
        with open(building, "wb") as file:
            file.write(_record(self._event(file_version="brain.Event:2")))
            # A reader that has followed an earlier file drops what it has seen from this step on.
            start = self._events.SessionLog(status=self._events.SessionLog.START)
            file.write(_record(self._event(step=0, session_log=start)))
            for event in self._kept(earlier, keep_until):
                file.write(_record(event))
        os.replace(building, path)
        for old in earlier:
            old.unlink(missing_ok=True)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - open for the whole run

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Append one event with a scalar a tag."""
        summary = self._summaries.Summary()
        for tag, value in scalars.items():
            summary.value.add(tag=tag, simple_value=value)
        self._file.write(_record(self._event(step=step, summary=summary)))

    def close(self) -> None:
        self._file.close()

    def _event(self, **fields: Any) -> bytes:
        content: bytes = self._events.Event(wall_time=time.time(), **fields).SerializeToString()
        return content

    def _kept(self, files: list[Path], until: int | None) -> Iterator[bytes]:
        """Events of `files` up to step `until`, each once: a run that died while it took over has some in two files."""
        seen: set[bytes] = set()
        for path in files if until is not None else ():
            for content in _records(path.read_bytes()):
                event = self._events.Event.FromString(content)
                own = event.HasField("file_version") or event.HasField("session_log")
                if not own and event.step <= until and content not in seen:
                    seen.add(content)
                    yield content


def _second_of(path: Path) -> int:
    digits = path.name.split(".")[3]
    return int(digits) if digits.isdigit() else 0


def _record(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    return length + _checksum(length) + content + _checksum(content)


def _records(data: bytes) -> Iterator[bytes]:
    """The records in `data`, up to the first that is torn or damaged."""
    at = 0
    while at + 12 <= len(data):
        length = data[at : at + 8]
        end = at + 12 + struct.unpack("<Q", length)[0]
        content = data[at + 12 : end]
        if data[at + 8 : at + 12] != _checksum(length) or data[end : end + 4] != _checksum(content):
            return
        yield content
        at = end + 4


def _crc32c_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _crc32c_table()


def _checksum(data: bytes) -> bytes:
    """CRC-32C (Castagnoli), rotated and offset as the record format asks."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
