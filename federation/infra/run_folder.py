"""The folder of one run: who owns it, its configuration, its metrics, its summary.

    run.lock        who runs here now: run id, host, process; held with flock, which the OS drops at any death
    config.yaml     the resolved configuration
    metrics.jsonl   one JSON object a round
    summary.json    the end result
    checkpoints/    see `federation.infra.checkpoint`
    tensorboard/    see `federation.infra.tracker`

Only rank 0 makes a RunFolder.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from federation.errors import ConfigError, FederationError
from federation.infra.folder_lock import FolderLock
from federation.infra.json_values import to_json

logger = logging.getLogger(__name__)

_RUN_FILES = ("metrics.jsonl", "summary.json")
_RUN_PATTERNS = ("checkpoints/*.h5", "tensorboard/*tfevents*")


class RunFolder:
    """Owns `path` from `prepare` to `close`. Usable as a context manager; `close` is called at its end."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = FolderLock(self.path)
        self._metrics: int | None = None
        self._warned: set[str] = set()

    @property
    def run_id(self) -> str:
        """The id that this run keeps through every resume; known after `prepare`."""
        return self._lock.run_id

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    def prepare(self, config_text: str, *, resume: bool = False, overwrite: bool = False, job: str = "") -> None:
        """Take the folder for this process, and write `config_text` to config.yaml.

        `resume` goes on with the run that the folder holds (or begins one where it holds none), so that there is no
        summary until that has ended; `overwrite` removes that run's files, and no others. `job` is free text for whoever
        meets the lock, such as "Slurm job 4711".

        Raises ConfigError, before anything is changed, where the path cannot be a folder or be written, where a
        live process owns it, and where it holds another run and neither `resume` nor `overwrite` is given.
        """
        if resume and overwrite:
            raise ConfigError("resume and overwrite contradict each other: give one of them")
        if self._lock.held:
            raise ConfigError(f"output_dir {str(self.path)!r} is prepared already")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not self._lock.path.exists() and not (resume or overwrite):
                self._refuse_other_run(signed=False)
            earlier = self._lock.acquire()
            if not (resume or overwrite):
                self._refuse_other_run(signed=bool(earlier))
            if earlier.get("host") not in (None, socket.gethostname()):
                logger.warning(
                    "%s: process %s on host %s left without closing its run; taking over",
                    *(self.path, earlier.get("pid"), earlier["host"]),
                )
            if overwrite:
                self._remove_run()
            if resume:
                (self.path / "summary.json").unlink(missing_ok=True)
            self._lock.sign(str(earlier.get("run_id") or "") if resume else "", job)
            config = self.path / "config.yaml"
            if not config.is_file() or config.read_bytes() != config_text.encode():
                write_atomically(config, config_text.encode())
        except OSError as error:
            self._lock.release()
            raise ConfigError(
                f"output_dir {str(self.path)!r} cannot be used: {error.strerror or error} "
                f"({error.filename or self.path}). Give a folder that this user may create and write."
            ) from error
        except BaseException:
            self._lock.release()
            raise

    def resume_from(self, round: int, record: Mapping[str, Any] | None = None) -> None:
        """Make metrics.jsonl hold each round up to `round` once: cut later rounds, repeats and a torn last line.

        `record` is the line of `round` itself, taken from the checkpoint: it is added where the file lacks it, as
        happens when the run died between the checkpoint and the line.
        """
        path = self.path / "metrics.jsonl"
        try:
            self._cut(path, round, record)
        except OSError as error:
            raise FederationError(f"cannot go on with {path}: {error.strerror or error}") from error

    def _cut(self, path: Path, round: int, record: Mapping[str, Any] | None) -> None:
        old = path.read_bytes() if path.exists() else b""
        lines: dict[int, bytes] = {}
        for number, line in enumerate(old.split(b"\n"), 1):
            found = _round_of(line)
            if found is None:
                if line.strip():
                    logger.warning("%s: line %d is damaged and is left out", path, number)
            elif found <= round:
                lines.setdefault(found, line)
        if record is not None and round > 0 and round not in lines:
            lines[round] = self._line(record)
        new = b"".join(line + b"\n" for line in lines.values())
        if new != old:
            self._close_metrics()
            write_atomically(path, new)

    def log_metrics(self, record: Mapping[str, Any]) -> None:
        """Append `record`, which has an integer `round`, to metrics.jsonl as one line, complete when this returns.

        NaN and infinity are written as null and None is left out, with one warning a key; NumPy values are numbers.
        """
        if _integer(record.get("round")) is None:
            raise ValueError(f"a metrics record needs an integer 'round', not {record.get('round')!r}")
        path = self.path / "metrics.jsonl"
        try:
            if self._metrics is None:
                self._metrics = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            line = self._line(record) + b"\n"
            written = os.write(self._metrics, line)
            while written < len(line):
                written += os.write(self._metrics, line[written:])
        except OSError as error:
            raise FederationError(f"cannot write {path}: {error.strerror or error}") from error

    @property
    def has_summary(self) -> bool:
        """Whether a run has come to its end here."""
        return (self.path / "summary.json").exists()

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json, whole or not at all. Values as in `log_metrics`, None kept as null."""
        path = self.path / "summary.json"
        text = json.dumps(to_json(summary, path.name, self._warned, keep_none=True), indent=2, allow_nan=False) + "\n"
        try:
            write_atomically(path, text.encode())
        except OSError as error:
            raise FederationError(f"cannot write {path}: {error.strerror or error}") from error

    def close(self) -> None:
        """Close metrics.jsonl and give the folder back. May be called again."""
        self._close_metrics()
        self._lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _line(self, record: Mapping[str, Any]) -> bytes:
        return json.dumps(to_json(record, "metrics.jsonl", self._warned), allow_nan=False).encode()

    def _close_metrics(self) -> None:
        if self._metrics is not None:
            os.close(self._metrics)
            self._metrics = None

    def _refuse_other_run(self, signed: bool) -> None:
        """Raise ConfigError where the folder holds a run. `signed`: a run of ours was here before, by its lock."""
        held = [name for name in _RUN_FILES if (self.path / name).exists()]
        held += [pattern for pattern in _RUN_PATTERNS if any(self.path.glob(pattern))]
        # Beside a signed lock, a config.yaml alone is what a failed start left. Without, it is a person's own file.
        if (self.path / "config.yaml").exists() and not signed:
            held.append("config.yaml")
        if held:
            raise ConfigError(
                f"output_dir {str(self.path)!r} holds another run ({', '.join(held)}). Continue it with --resume, "
                "replace it with overwrite: true, or choose another output_dir."
            )

    def _remove_run(self) -> None:
        """Remove what a run writes, and nothing that somebody else put here."""
        for name in _RUN_FILES:
            (self.path / name).unlink(missing_ok=True)
        for pattern in (*_RUN_PATTERNS, "checkpoints/.*.tmp"):
            for path in self.path.glob(pattern):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file at `path` by `content`, so that a reader or a crash sees the old or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _integer(value: object) -> int | None:
    try:
        return None if isinstance(value, bool) else value.__index__()  # type: ignore[attr-defined]
    except AttributeError:
        return None


def _round_of(line: bytes) -> int | None:
    """The round of one line of metrics.jsonl, or None where the line is torn or foreign."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return _integer(record.get("round")) if isinstance(record, dict) else None
