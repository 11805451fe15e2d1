"""What the doctor says: one sentence on one subject, how bad it is, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

Level = Literal["ok", "warning", "problem"]


class Finding(msgspec.Struct, frozen=True):
    """`problem`: a run would fail. `warning`: it would be slow, or less safe than it looks. `remedy`: for these two."""

    subject: str
    level: Level
    message: str
    remedy: str = ""


def ok(subject: str, message: str) -> Finding:
    """Nothing to do."""
    return Finding(subject, "ok", message)


def warning(subject: str, message: str, remedy: str) -> Finding:
    """A run works, and could do better."""
    return Finding(subject, "warning", message, remedy)


def problem(subject: str, message: str, remedy: str) -> Finding:
    """A run would fail."""
    return Finding(subject, "problem", message, remedy)


def exit_status(findings: Sequence[Finding]) -> int:
    """1 where something would break a run, else 0."""
    return int(any(finding.level == "problem" for finding in findings))
