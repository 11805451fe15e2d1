"""Downloads from a publisher that the test plays itself: whole and checked, or not there."""

from __future__ import annotations

import hashlib
import http.server
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from federation.data.__main__ import main
from federation.data.download import check_digest, digest_of, download
from federation.data.sources.catalogue import CATALOGUE, Download, Entry
from federation.data.sources.published import PUBLISHED
from federation.errors import DataError

CONTENT = bytes(range(256)) * 8000


class Publisher:
    """Answers from `files`; `cut` breaks off half way."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut = False
        self.asked: list[str] = []
        publisher = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                publisher.asked.append(self.path)
                content = publisher.files.get(self.path)
                if content is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if publisher.cut else content)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}{path}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    made = Publisher()
    yield made
    made.close()


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_downloaded_once(publisher: Publisher, tmp_path: Path) -> None:
    publisher.files["/a.bin"] = CONTENT
    seen: list[tuple[str, int, int | None]] = []
    wanted = Download("a.bin", (publisher.url("/a.bin"),), sha256(CONTENT))
    for _ in range(2):
        assert download(wanted, tmp_path / "new", lambda *step: seen.append(step)) == [tmp_path / "new" / "a.bin"]
    assert (tmp_path / "new" / "a.bin").read_bytes() == CONTENT
    assert publisher.asked == ["/a.bin"]
    assert seen[-1] == ("a.bin", len(CONTENT), len(CONTENT))
    assert names(tmp_path / "new") == ["a.bin"]


def test_a_damaged_file_is_downloaded_again(publisher: Publisher, tmp_path: Path) -> None:
    publisher.files["/a.bin"] = CONTENT
    (tmp_path / "a.bin").write_bytes(CONTENT[:-1])
    download(Download("a.bin", (publisher.url("/a.bin"),), sha256(CONTENT)), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_the_next_address_is_tried(publisher: Publisher, tmp_path: Path) -> None:
    publisher.files |= {"/wrong": b"another edition", "/right": CONTENT}
    urls = (publisher.url("/missing"), publisher.url("/wrong"), publisher.url("/right"))
    download(Download("a.bin", urls, sha256(CONTENT)), tmp_path)
    assert publisher.asked == ["/missing", "/wrong", "/right"]
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


@pytest.mark.parametrize(("path", "cut", "words"), [
    ("/missing", False, "Not Found"), ("/wrong", False, f"gave a file with the digest {sha256(b'x')}"),
    ("/a.bin", True, "digest|IncompleteRead"),
])
def test_what_did_not_come_whole_is_not_there(publisher: Publisher, tmp_path: Path, path: str, cut: bool,
                                              words: str) -> None:
    publisher.files |= {"/a.bin": CONTENT, "/wrong": b"x"}
    publisher.cut = cut
    with pytest.raises(DataError, match=rf"a\.bin .*could not be downloaded: .*({words}).*copy it to .*a\.bin"):
        download(Download("a.bin", (publisher.url(path),), sha256(CONTENT)), tmp_path)
    assert names(tmp_path) == []


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Connection refused"):
        download(Download("a.bin", ("http://127.0.0.1:9/a.bin",), "md5:0"), tmp_path)


def archive(kind: str, members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(packed, "w") as file:
            for name, content in members.items():
                file.writestr(name, content)
    else:
        with tarfile.open(fileobj=packed, mode="w:bz2") as tar:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar.bz2"])
def test_members_are_unpacked_beside_the_archive(publisher: Publisher, tmp_path: Path, kind: str) -> None:
    """Under their last name, so that nothing is ever written outside of the folder."""
    folder = "gzip/" if kind == "zip" else ""
    packed = archive(kind, {f"{folder}a": b"A", "../../outside": b"no", f"{folder}b": CONTENT})
    publisher.files["/all"] = packed
    wanted = Download(f"all.{kind}", (publisher.url("/all"),), sha256(packed), (f"{folder}a", f"{folder}b"))
    for _ in range(2):
        assert download(wanted, tmp_path / "set") == [tmp_path / "set" / "a", tmp_path / "set" / "b"]
    assert (tmp_path / "set" / "b").read_bytes() == CONTENT
    assert names(tmp_path) == ["set"]
    assert names(tmp_path / "set") == ["a", f"all.{kind}", "b"]
    lacking = Download(f"all.{kind}", wanted.urls, wanted.digest, ("c",))
    with pytest.raises(DataError, match="the member c cannot be read"):
        download(lacking, tmp_path / "set")


def test_a_link_in_an_archive_is_no_member(publisher: Publisher, tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:bz2") as tar:
        info = tarfile.TarInfo("a")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    publisher.files["/all"] = packed.getvalue()
    with pytest.raises(DataError, match="the member a cannot be read"):
        download(Download("all.tar.bz2", (publisher.url("/all"),), sha256(packed.getvalue()), ("a",)), tmp_path)


def test_digests(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"hello")
    assert digest_of(path, "md5:") == "md5:5d41402abc4b2a76b9719d911017c592"  # RFC 1321's sum of "hello"
    check_digest(path, "md5:5d41402abc4b2a76b9719d911017c592")
    with pytest.raises(DataError, match=r"a has the digest md5:5d41.*; expected md5:00: it is damaged"):
        check_digest(path, "md5:00")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be written .*--root"):
        download(Download("a", ("http://127.0.0.1:9/",), "md5:0"), tmp_path / "file")


def test_the_command(publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                     capsys: pytest.CaptureFixture[str]) -> None:
    publisher.files["/a.bin"] = CONTENT
    entry = Entry("mnist", (Download("a.bin", (publisher.url("/a.bin"),), sha256(CONTENT)),))
    monkeypatch.setattr("federation.data.__main__.CATALOGUE", {**CATALOGUE, "mnist": entry})
    assert main(["check", "mnist", "--root", str(tmp_path)]) == 1
    assert main(["fetch", "mnist", "--root", str(tmp_path)]) == 0
    assert main(["check", "mnist", "--root", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "a.bin is not there" in said
    assert "a.bin is as it was published" in said
    (tmp_path / "mnist" / "a.bin").write_bytes(b"")
    assert main(["check", "mnist", "--root", str(tmp_path)]) == 1
    publisher.files.clear()
    assert main(["fetch", "mnist", "--root", str(tmp_path)]) == 1
    assert "could not be downloaded" in capsys.readouterr().err


def test_the_root_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    main(["check", "mnist", "--root=~/data"])
    assert f"{tmp_path}/data/mnist/train-images-idx3-ubyte.gz is not there" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "words"), [
    (["fetch", "minst"], "known: mnist"), (["fetch", "femnist"], "preprocess.sh"), (["check", "femnist"], "no digests"),
    (["fetch", "mnist", "--option", "x=1"], "no options"), (["fetch", "hf:a", "--option", "x"], "expected KEY=VALUE"), ([], ""),
])
def test_bad_usage_is_status_2(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_the_list_names_all_sets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n{name} " in f"\n{said}" for name in ("digits", *PUBLISHED))


def test_every_published_set_is_in_the_catalogue() -> None:
    assert set(PUBLISHED) == set(CATALOGUE)
    for name, entry in CATALOGUE.items():
        assert bool(entry.downloads) != bool(entry.advice), name
        for wanted in entry.downloads:
            kind, _, digest = wanted.digest.partition(":")
            assert len(bytes.fromhex(digest)) == {"md5": 16, "sha256": 32}[kind]
            assert wanted.urls
