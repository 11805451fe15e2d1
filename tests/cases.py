"""Which test proves which acceptance case: `python -m tests.cases` writes tests/cases.md from the tests' own words.

A test claims a case by naming its id (S-COMM-01) in its docstring, or in a comment right above it.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent
PAGE = ROOT / "cases.md"

#: The cases that this project has to meet so far, and what each is about.
CASES = {
    "S-COMM-01": "memory order of arrays", "S-COMM-02": "dtype differs between peers",
    "S-COMM-03": "scalars and empty arrays", "S-COMM-04": "dtypes without an MPI type",
    "S-COMM-05": "counts above 2^31", "S-COMM-06": "blocking order of calls",
    "S-COMM-07": "messages of different rounds mixed", "S-COMM-08": "lengths differ in a reduction",
    "S-COMM-09": "message size limits", "S-COMM-10": "port already taken", "S-COMM-11": "proxy variables",
    "S-COMM-12": "idle channels and keepalive",
    "S-AGG-01": "integer buffers", "S-AGG-02": "buffers left out", "S-AGG-03": "zero samples", "S-AGG-04": "sample weights",
    "S-AGG-05": "low precision sums", "S-AGG-06": "shared references", "S-AGG-07": "proximal term",
    "S-AGG-08": "server optimisers", "S-AGG-09": "too few clients for robust selection", "S-AGG-10": "NaN and infinity",
    "S-AGG-11": "shapes, keys and order", "S-AGG-12": "staleness", "S-AGG-13": "weighting of metrics",
    "S-AGG-14": "order of arrival", "S-AGG-15": "median and trimmed mean",
    "S-PART-01": "endless Dirichlet sampling", "S-PART-02": "samples lost or doubled",
    "S-PART-03": "label partition limits", "S-PART-04": "same split everywhere", "S-PART-05": "very small clients",
    "S-PART-06": "missing classes in scikit-learn", "S-PART-07": "clients a round",
    "S-CONF-01": "numbers in YAML", "S-CONF-02": "words turned into booleans", "S-CONF-03": "keys given twice",
    "S-CONF-04": "settings without effect", "S-CONF-05": "null and wrong types", "S-CONF-06": "ranks against clients",
    "S-CKPT-01": "death while writing", "S-CKPT-02": "damaged or foreign files", "S-CKPT-03": "HDF5 limits",
    "S-CKPT-04": "dtypes through the file", "S-CKPT-05": "order of members", "S-CKPT-06": "file locks",
    "S-CKPT-07": "state restored", "S-CKPT-08": "resume of a finished or changed run",
    "S-LIFE-01": "one rank fails", "S-LIFE-02": "exit codes", "S-LIFE-03": "a worker dies", "S-LIFE-04": "join before drain",
    "S-LIFE-05": "start methods", "S-LIFE-06": "processes left over", "S-LIFE-07": "memory growth",
    "S-LIFE-08": "waiting without end", "S-LIFE-09": "late, returning and double clients", "S-LIFE-10": "lost connections",
    "S-HPC-01": "launcher and library do not match", "S-HPC-02": "launch inside a launch", "S-HPC-03": "Slurm variables",
    "S-HPC-04": "warnings before the end", "S-HPC-05": "device by local rank",
    "S-HPC-06": "threads a process", "S-HPC-07": "root and slots",
    "S-TRACK-01": "one writer", "S-TRACK-02": "steps after a resume", "S-TRACK-05": "odd metric values",
    "S-SEC-01": "code through data", "S-SEC-02": "checks on incoming updates", "S-SEC-03": "who may contribute, and once",
    "S-SEC-04": "certificates", "S-SEC-05": "secrets in output",
    "S-PKG-01": "optional parts", "S-PKG-02": "compiled helpers", "S-PKG-03": "the test suite itself",
    "S-PKG-04": "a world of one",
}


def claims() -> dict[str, list[str]]:
    """For each case id, the tests that name it, as path::name."""
    found: dict[str, list[str]] = {}
    for path in sorted(ROOT.rglob("*.py")):
        if path == Path(__file__):
            continue
        text = path.read_text()
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith(("test", "check", "_nothing")):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                above = []
                while first - 2 - len(above) >= 0 and lines[first - 2 - len(above)].lstrip().startswith("#"):
                    above.append(lines[first - 2 - len(above)])
                words = (ast.get_docstring(node) or "") + " ".join(above)
                for case in expanded(words):
                    found.setdefault(case, []).append(f"{path.relative_to(ROOT)}::{node.name}")
    return found


def expanded(words: str) -> list[str]:
    """The ids in a text; `S-COMM-01, 03` and `S-COMM-01 to 03` count as both and all of them."""
    ids = []
    for area, numbers in re.findall(r"(S-[A-Z]+-)(\d\d(?:(?:, | and | to )\d\d)*)", words):
        parts = re.findall(r"(to )?(\d\d)", numbers)
        for to, number in parts:
            first = int(ids[-1][-2:]) + 1 if to else int(number)
            ids += [f"{area}{value:02d}" for value in range(first, int(number) + 1)]
    return list(dict.fromkeys(ids))


def page() -> str:
    """The text of tests/cases.md."""
    proofs = claims()
    parts = ["# Acceptance cases and the tests that prove them", "",
             "Made by `python -m tests.cases` from the docstrings of the tests; a test checks that it is current.", ""]
    for case, subject in CASES.items():
        parts += [f"**{case}** {subject}", *(f"- `{test}`" for test in proofs.get(case, [])), ""]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
