"""CSV and Parquet: features, targets and columns against what is written in the rows; missing and odd values."""

from __future__ import annotations

import builtins
import gzip
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federation.data.formats.table import MOST_KINDS, read_table
from federation.data.provider import Request
from federation.data.sources.files import table
from federation.errors import DataError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ROWS = b"""age,colour,member,city,user,label
31,red,true,"Pau, France",zoe,2
4.5,blue,false,Rom,adam,0
-7,red,true,Rom,zoe,1
"""
#: age; blue, red; member; "Pau, France", Rom
FEATURES = [[31, 0, 1, 1, 1, 0], [4.5, 1, 0, 0, 0, 1], [-7, 0, 1, 1, 0, 1]]


def csv(folder: Path, content: bytes, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def parquet(folder: Path, columns: Mapping[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(dict(columns)), folder / "table.parquet", **options)
    return folder / "table.parquet"


@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz", "TABLE.CSV"])
@pytest.mark.parametrize("content", [ROWS, ROWS.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + ROWS], ids=["lf", "crlf", "bom"])
def test_csv(tmp_path: Path, name: str, content: bytes) -> None:
    found = read_table(csv(tmp_path, content, name), target="label", columns=["user"])
    assert found.train.x.tolist() == FEATURES
    assert (found.train.x.dtype, found.train.y.dtype) == (np.float32, np.int64)
    assert found.train.y.tolist() == [2, 0, 1]
    assert {key: column.tolist() for key, column in found.train.columns.items()} == {"user": [1, 0, 1]}
    assert (found.test, found.num_classes, found.scale) == (None, None, 1.0)


@pytest.mark.parametrize("options", [{}, {"row_group_size": 1}, {"compression": "gzip"}, {"use_dictionary": False}])
def test_parquet(tmp_path: Path, options: dict[str, Any]) -> None:
    found = read_table(parquet(tmp_path, {
        "age": [31, 4.5, -7], "colour": pa.array(["red", "blue", "red"]).dictionary_encode(), "member": [True, False, True],
        "city": pa.array(["Pau, France", "Rom", "Rom"], pa.large_string()), "user": ["zoe", "adam", "zoe"],
        "label": pa.array([2, 0, 1], pa.uint8())}, **options), target="label", columns=["user"])
    assert found.train.x.tolist() == FEATURES
    assert found.train.y.tolist() == [2, 0, 1]
    assert found.train.columns["user"].tolist() == [1, 0, 1]


def test_types_are_those_of_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which the first block, 16 MiB or here 64 bytes, need not show."""
    rows = 50
    head = b"drop,whole,word,code,truth,who,label\n"
    body = [b"%d,%d,%d,7,true,%d,1\n" % (row, row, row, row) for row in range(rows)]
    body[-1] = b"x,0.5,last,0x,maybe,me,2.5\n"
    path = csv(tmp_path, head + b"".join(body))
    monkeypatch.setattr("federation.data.formats.table._CSV_BLOCK", 64)
    found = read_table(path, target="label", columns=["who"], drop=["drop"]).train
    words = sorted({*map(str, range(rows - 1)), "last"})
    assert found.y.tolist() == [1.0] * (rows - 1) + [2.5]
    assert found.x[:, 0].tolist() == [*range(rows - 1), 0.5]
    assert found.x[:, 1 : rows + 1].argmax(axis=1).tolist() == [words.index(str(row)) for row in range(rows - 1)] + [
        words.index("last")]
    assert found.x[:, rows + 1 :].tolist() == [[0, 1, 0, 1]] * (rows - 1) + [[1, 0, 1, 0]], "0x, 7, maybe, true"
    users = sorted({*map(str, range(rows - 1)), "me"})
    assert found.columns["who"].tolist() == [users.index(str(row)) for row in range(rows - 1)] + [users.index("me")]


def test_targets(tmp_path: Path) -> None:
    path = parquet(tmp_path, {"x": [1, 2, 3], "word": ["b", "c", "b"], "truth": [True, False, True], "real": [0.5, 1.5, -1.0],
                              "single": pa.array([0.5, 1, 2], pa.float32())})
    for target, labels, kind in (("word", [0, 1, 0], "i"), ("truth", [1, 0, 1], "i"), ("real", [0.5, 1.5, -1.0], "f"),
                                 ("single", [0.5, 1, 2], "f")):
        found = read_table(path, target=target, drop=[name for name in ("word", "truth", "real", "single") if name != target])
        assert found.train.y.tolist() == labels
        assert found.train.y.dtype.kind == kind
        assert found.train.x.tolist() == [[1], [2], [3]]


def test_text_is_no_target_of_a_regression(tmp_path: Path) -> None:
    """Numbered in sorted order, "1,200" would be a smaller target than "900"."""
    path = csv(tmp_path, b'x,price\n1,"1,200"\n2,"1,300"\n3,900\n')
    with pytest.raises(DataError, match=r"the target 'price' is text, such as '1,200'; expected numbers, as task is regression"):
        read_table(path, target="price", is_regression=True)
    provider = table(Request("table.csv", tmp_path), target="price", task="regression")
    with pytest.raises(DataError, match="the target 'price' is text"):
        provider.dataset()


def test_columns_of_every_kind_are_numbered(tmp_path: Path) -> None:
    path = parquet(tmp_path, {"x": [1, 2, 3], "y": [0, 1, 0], "id": [70, 30, 70], "name": ["b", "é", "a"],
                              "truth": [True, False, True], "real": [2.5, -1, 2.5]})
    columns = read_table(path, target="y", columns=["id", "name", "truth", "real"]).train.columns
    assert {key: column.tolist() for key, column in columns.items()} == {
        "id": [70, 30, 70], "name": [1, 2, 0], "truth": [1, 0, 1], "real": [1, 0, 1]}
    assert {column.dtype for column in columns.values()} == {np.dtype(np.int64)}


WRONG: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "no such target": (ROWS, {"target": "class"}, "has no column 'class'; it has age, colour, member, city, user, label"),
    "no such column": (ROWS, {"columns": ["who"]}, "has no column 'who'"),
    "no such drop": (ROWS, {"drop": ["what"]}, "has no column 'what'"),
    "target dropped": (ROWS, {"drop": ["label"]}, "the target 'label' can neither be dropped nor kept"),
    "target kept": (ROWS, {"columns": ["label"]}, "the target 'label' can neither be dropped nor kept"),
    "no features": (b"a,label\n1,2\n", {"drop": ["a"]}, "no features are left beside label, a"),
    "names twice": (b"a,a,label\n1,2,0\n", {}, "has several columns called a"),
    "number missing": (b"a,label\n1,0\n,1\n,1\n", {}, r"the column 'a' has no value in row 2 \(2 are missing\); fill"),
    "label missing": (b"a,label\n1,0\n2,\n", {}, "the column 'label' has no value in row 2"),
    "text missing": (b"a,label\nx,0\n,1\n", {}, r"the column 'a' has no text in row 2 \(1 are empty\)"),
    "user missing": (b"a,user,label\n1,x,0\n2,,1\n", {"columns": ["user"]}, "the column 'user' has no text in row 2"),
    "NA": (b"a,label\n1,0\nNA,1\n", {}, "the column 'a' has no value in row 2"),
    "infinite": (b"a,label\n1,0\n-inf,1\n", {}, "the column 'a' is -inf in row 2; expected finite numbers"),
    "too large": (b"a,label\n1,0\n1e39,1\n", {}, "the column 'a' is inf in row 2; .* within the range of float32"),
    "target infinite": (b"a,label\n1,0.5\n2,inf\n", {}, "the column 'label' is inf in row 2"),
    "dates": (b"a,label\n2020-01-01,0\n", {}, r"the column 'a' is date32\[day\]; expected numbers, truth values or text"),
    "not UTF-8": (b"a,label\n\xff,0\n", {}, "the column 'a' is binary; expected"),
    "names are not UTF-8": (b"a\xff,label\n1,0\n", {}, "the table cannot be read"),
    "ragged": (b"a,label\n1,0\n1,2,3\n", {}, "the table cannot be read.*Expected 2 columns, got 3"),
    "empty": (b"", {}, "the table cannot be read.*Empty CSV"),
    "names alone": (b"a,label\n", {}, "has no rows"),
}


@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz"])
@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(tmp_path: Path, case: str, name: str) -> None:
    content, options, words = WRONG[case]
    path = csv(tmp_path, content, name)
    with pytest.raises(DataError, match=words) as caught:
        read_table(path, **{"target": "label", **options})
    assert str(path) in str(caught.value)


def test_parquet_has_missing_values_of_its_own(tmp_path: Path) -> None:
    for values, words in (([1.0, None, None], r"has no value in row 2 \(2 are missing\)"), ([1, 2, None], "has no value in row 3"),
                          ([1.0, float("nan"), 2.0], "is nan in row 2"), (["a", None, "b"], "has no value in row 2"),
                          ([[1], [2], [3]], r"is list<.*>; expected numbers"), ([b"a", b"b", b"c"], "is binary; expected")):
        path = parquet(tmp_path, {"feature": values, "y": [0, 1, 0]})
        with pytest.raises(DataError, match=rf"table\.parquet: the column 'feature' {words}"):
            read_table(path, target="y")


def test_text_with_too_many_values_is_no_feature(tmp_path: Path) -> None:
    rows = 4 * MOST_KINDS
    for kinds in (MOST_KINDS, MOST_KINDS + 1):
        path = parquet(tmp_path, {"name": [f"n{number % kinds}" for number in range(rows)], "x": range(rows), "y": [0] * rows})
        if kinds == MOST_KINDS:
            x = read_table(path, target="y").train.x
            assert x.shape == (rows, MOST_KINDS + 1)
            assert (x[:, :-1].sum(axis=1) == 1).all()
        else:
            with pytest.raises(DataError, match=f"'name' is text with {kinds} different values, more than the {MOST_KINDS}"):
                read_table(path, target="y")
            assert read_table(path, target="y", columns=["name"]).train.x.shape == (rows, 1)


@pytest.mark.parametrize("name", ["table.csv.gz", "table.parquet"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_files_are_named(tmp_path: Path, name: str, kept: float) -> None:
    if name == "table.parquet":
        path = parquet(tmp_path, {"x": np.arange(999), "y": np.arange(999) % 3})
    else:
        path = csv(tmp_path, b"x,y\n" + b"".join(b"%d,%d\n" % (row * 7919 % 1000, row % 3) for row in range(999)), name)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(DataError, match=rf"{name}: the table cannot be read, it is damaged"):
        read_table(path, target="y")


def test_a_parquet_page_that_claims_too_much(tmp_path: Path) -> None:
    """The footer's length, set to more than the file has."""
    path = parquet(tmp_path, {"x": [1], "y": [0]})
    content = path.read_bytes()
    path.write_bytes(content[:-8] + struct.pack("<I", 2**31 - 1) + b"PAR1")
    with pytest.raises(DataError, match=r"table\.parquet: the table cannot be read"):
        read_table(path, target="y")


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.csv does not exist; expected a table"):
        read_table(tmp_path / "gone.csv", target="y")
    (tmp_path / "table.parquet").mkdir()
    with pytest.raises(DataError, match=r"table\.parquet is a folder"):
        read_table(tmp_path / "table.parquet", target="y")


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S-PKG-01"""
    real = builtins.__import__

    def without(name: str, globals: Any = None, locals: Any = None, fromlist: Sequence[str] = (), level: int = 0) -> Any:
        if name.split(".")[0] == "pyarrow":
            raise ImportError("No module named 'pyarrow'")
        return real(name, globals, locals, fromlist, level)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=r"needs pyarrow, which is not installed: pip install 'federation-hpc\[tabular\]'"):
        read_table(csv(tmp_path, ROWS), target="label")
