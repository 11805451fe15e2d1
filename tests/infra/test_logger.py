"""The log: rank and round in each line, one line a round at any number of ranks, no secrets."""

from __future__ import annotations

import base64
import json
import logging
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from datetime import datetime

import pytest

from federation.infra import logger as module
from federation.infra.logger import configure, redact, register_secret, round_number


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    """Loggers and secrets as they were, after each test."""
    loggers = [logging.getLogger(name) for name in ("federation", "node_comm")]
    before = [(list(one.handlers), one.level, one.propagate) for one in loggers]
    secrets = set(module._secrets)
    yield
    for one, (handlers, level, propagate) in zip(loggers, before, strict=True):
        one.handlers[:], one.propagate = handlers, propagate
        one.setLevel(level)
    module._secrets.clear()
    module._secrets.update(secrets)


def test_a_line_has_time_rank_round_level_and_name(capsys: pytest.CaptureFixture[str]) -> None:
    configure(rank=3, level="DEBUG")
    token = round_number.set(12)
    logging.getLogger("federation.node.server").info("round %d done", 12)
    round_number.reset(token)
    logging.getLogger("node_comm.mpi").warning("careful")
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d r3 #12 INFO federation\.node\.server: round 12 done", lines[0])
    assert re.fullmatch(r"\d\d:\d\d:\d\d r3 #- WARNING node_comm\.mpi: careful", lines[1])


def test_json_has_the_same_and_tracebacks_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """And secrets are masked in it, also such as JSON writes with backslashes."""
    configure(rank=3, form="json")
    register_secret('pass"word')
    token = round_number.set(12)
    try:
        raise ValueError('two\nlines and pass"word')
    except ValueError:
        logging.getLogger("federation.node.server").exception("round %d fails", 12)
    round_number.reset(token)
    logging.getLogger("node_comm.mpi").warning("careful")
    text = capsys.readouterr().err
    first, second = (json.loads(line) for line in text.splitlines())
    assert (first["rank"], first["round"], first["level"], first["logger"], first["message"]) == (
        3, 12, "ERROR", "federation.node.server", "round 12 fails")
    assert "ValueError: two\nlines and ***" in first["traceback"]
    assert (second["round"], second["message"], "traceback" in second) == (None, "careful", False)
    assert datetime.fromisoformat(first["time"]).tzinfo is not None
    assert "word" not in text


@pytest.mark.parametrize(("rank", "level", "quiet", "expected"), [
    (0, "info", False, "iwe"), (1, "info", False, "we"), (0, "INFO", True, "we"), (1, "INFO", True, "we"),
    (0, "DEBUG", False, "diwe"), (5, "DEBUG", False, "diwe"), (0, "ERROR", False, "e"), (1, "ERROR", False, "e"),
    (0, "WARNING", False, "we"), (0, "DEBUG", True, "we"),
])  # fmt: skip
def test_who_says_what(capsys: pytest.CaptureFixture[str], rank: int, level: str, quiet: bool, expected: str) -> None:
    configure(rank=rank, level=level, quiet=quiet)
    for name in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger("federation.x"), name)(name)
    assert "".join(line.split()[-1][0] for line in capsys.readouterr().err.splitlines()) == expected


def test_configuring_again_does_not_double_the_lines(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.StreamHandler(sys.stderr)
    logging.getLogger().addHandler(root)
    try:
        configure()
        configure(rank=2, level="DEBUG")
        logging.getLogger("federation").warning("once")
    finally:
        logging.getLogger().removeHandler(root)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert " r2 " in lines[0]


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="DEBUG, INFO, WARNING, ERROR, CRITICAL"):
        configure(level="loud")


def test_secrets_are_masked_wherever_they_are_in_a_record(capsys: pytest.CaptureFixture[str]) -> None:
    """S-SEC-05: in the message, its arguments, the exception, its cause, its notes and the stack."""
    configure(level="DEBUG")
    register_secret("SECRET123")
    log = logging.getLogger("federation.x")
    log.info("token SECRET123")
    log.info("config %s", {"api_key": "SECRET123"})
    try:
        try:
            raise ValueError("bad token SECRET123")
        except ValueError as error:
            raise RuntimeError("cannot log in with SECRET123") from error
    except RuntimeError:
        log.exception("failed with %r", "SECRET123", stack_info=True)
    printed = capsys.readouterr().err
    assert "SECRET123" not in printed
    assert printed.count("***") >= 5
    assert "Traceback" in printed


@pytest.mark.parametrize("secret", ["a\"b\\c'd", "p@ss w/rd+&é", "line one\nline two", "x.*[", "tok\ten"])
def test_secrets_are_masked_in_the_forms_that_they_take(secret: str) -> None:
    """S-SEC-05: quoted by Python or JSON, in a URL, and each line of a key of several lines."""
    import json
    import urllib.parse

    register_secret(secret)
    lines = secret.splitlines()
    for form in (secret, repr(secret), json.dumps({"k": secret}), *lines, *map(repr, lines),
                 *(f"https://u:{urllib.parse.quote(line, safe='')}@host" for line in lines)):  # fmt: skip
        hidden = redact(f"before {form} after")
        assert hidden.startswith("before ")
        assert hidden.endswith(" after")
        assert all(line not in hidden for line in lines), hidden
        assert "***" in hidden


def test_a_secret_that_contains_another_is_masked_whole() -> None:
    register_secret("abc")
    register_secret("abcdef")
    assert redact("abcdef abc") == "*** ***"


def test_blank_secrets_mask_nothing() -> None:
    for blank in ("", " ", "\n\t"):
        register_secret(blank)
    assert redact("a b\n\tc") == "a b\n\tc"
    assert base64.b64encode(b"x").decode() in redact("eA==")


def test_another_thread_has_its_own_round(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    token = round_number.set(4)
    thread = threading.Thread(target=lambda: logging.getLogger("federation").warning("x"))
    thread.start()
    thread.join()
    round_number.reset(token)
    assert " #- " in capsys.readouterr().err


def test_a_standard_error_that_is_gone_stops_nothing() -> None:
    program = """
        import logging, os, sys
        from federation.infra.logger import configure
        configure()
        reader, writer = os.pipe()
        os.dup2(writer, 2)
        os.close(reader), os.close(writer)
        logging.getLogger("federation").warning("nobody reads this")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        print("goes on")
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    result = subprocess.run(command, text=True, capture_output=True, check=True, timeout=60)
    assert result.stdout == "goes on\n"
