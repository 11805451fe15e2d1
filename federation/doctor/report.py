"""Findings as a table on a terminal, as lines elsewhere, as JSON on request."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

import msgspec

from federation.doctor.finding import Finding, exit_status

_COLOURS = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def as_json(findings: Sequence[Finding]) -> str:
    """`{"status": 0, "findings": [{"subject": ..., "level": ..., "message": ..., "remedy": ...}, ...]}`"""
    return msgspec.json.format(msgspec.json.encode({"status": exit_status(findings), "findings": findings})).decode()


def show(findings: Sequence[Finding], stream: TextIO | None = None) -> None:
    """Write `findings`, and a last line that sums them up, to `stream` (standard output by default)."""
    from rich.console import Console

    console = Console(file=stream or sys.stdout)
    if console.is_terminal and not console.is_dumb_terminal:
        _show_table(console, findings)
    else:
        print("\n".join(as_lines(findings)), file=stream or sys.stdout, flush=True)


def as_lines(findings: Sequence[Finding]) -> list[str]:
    """A line a finding, its remedy below it, and the sum."""
    width = max((len(finding.subject) for finding in findings), default=0)
    lines = []
    for finding in findings:
        message = finding.message.replace("\n", "\n" + " " * (width + 10))
        lines.append(f"{finding.level:8s} {finding.subject:{width}s} {message}")
        if finding.remedy:
            lines.append(f"{'':{width + 9}s} -> {finding.remedy}")
    return [*lines, summary(findings)]


def summary(findings: Sequence[Finding]) -> str:
    """The last line."""
    counts = {level: sum(finding.level == level for finding in findings) for level in ("problem", "warning")}
    if not any(counts.values()):
        return "nothing found that would trouble a run"
    said = ", ".join(f"{count} {level}{'s' if count > 1 else ''}" for level, count in counts.items() if count)
    return f"{said}: {'a run would fail' if counts['problem'] else 'a run would work'}"


def _show_table(console: object, findings: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    assert isinstance(console, Console)
    table = Table(show_header=False, box=None, padding=(0, 1))
    for finding in findings:
        message = Text(finding.message)
        if finding.remedy:
            message.append(f"\n-> {finding.remedy}", style="italic")
        table.add_row(Text(finding.level, style=_COLOURS[finding.level]), Text(finding.subject, style="bold"), message)
    console.print(table)
    console.print(Text(summary(findings), style="bold"))
