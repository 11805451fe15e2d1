"""TensorBoard event files, written without TensorFlow, torch or a thread.

A file is a series of records: length (8 bytes), its checksum (4), an `Event` protocol buffer, its checksum (4).
"""

from __future__ import annotations

import importlib
import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class EventFile:
    """Appends scalars to the one event file in `folder`; each round is in the file when `write` returns.

    resume_from: go on with the file that is there, and tell its readers to forget all steps after this one. None
        begins a file.

    Raises ImportError where tensorboard is missing, OSError where the folder cannot be written.
    """

    def __init__(self, folder: Path, resume_from: int | None = None) -> None:
        # The protocol buffers alone: the writer that tensorboard offers loads ten times as much, TensorFlow included.
        self._events: Any = importlib.import_module("tensorboard.compat.proto.event_pb2")
        self._summaries: Any = importlib.import_module("tensorboard.compat.proto.summary_pb2")
        folder.mkdir(parents=True, exist_ok=True)
        earlier = sorted(folder.glob("events.out.tfevents.*")) if resume_from is not None else []
        if earlier:
            path = earlier[-1]
            os.truncate(path, _whole_length(path.read_bytes()))  # what was being written when the process died
        else:
            path = folder / f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.0"
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - open for the whole run
        if self._file.tell() == 0:
            self._append(file_version="brain.Event:2")
        # A second start in a file is a restart: readers drop the steps that they have seen from its own on.
        start = self._events.SessionLog(status=self._events.SessionLog.START)
        self._append(step=(resume_from or 0) + 1, session_log=start)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Append one event with a scalar a tag."""
        summary = self._summaries.Summary()
        for tag, value in scalars.items():
            summary.value.add(tag=tag, simple_value=value)
        self._append(step=step, summary=summary)

    def close(self) -> None:
        self._file.close()

    def _append(self, **fields: Any) -> None:
        record = _record(self._events.Event(wall_time=time.time(), **fields).SerializeToString())
        written = self._file.write(record)
        while written < len(record):  # a disk takes a part before it is full
            written += self._file.write(record[written:])


def _record(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    return length + _checksum(length) + content + _checksum(content)


def _whole_length(data: bytes) -> int:
    """Bytes up to the end of the last whole record."""
    at = 0
    while at + 12 <= len(data):
        length = data[at : at + 8]
        end = at + 12 + struct.unpack("<Q", length)[0]
        if data[at + 8 : at + 12] != _checksum(length) or data[end : end + 4] != _checksum(data[at + 12 : end]):
            break
        at = end + 4
    return at


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
