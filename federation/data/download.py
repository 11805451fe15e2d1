"""Getting the files of published data sets: downloaded aside, checked by digest, moved into place."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from federation.data.sources.catalogue import Download
from federation.errors import DataError

_CHUNK = 1 << 20
_TIMEOUT_S = 60.0  # without a byte
_AGENT = {"User-Agent": "federation-hpc"}  # some publishers turn away what says it is Python

#: Told of progress: file, bytes so far, bytes in all (None: the publisher does not say).
Progress = Callable[[str, int, int | None], None]


def download(wanted: Download, folder: Path, progress: Progress = lambda file, done, total: None) -> list[Path]:
    """Bring `wanted` into `folder`, made where needed, and unpack its members; returns the files, all of them whole.

    What is there already, and has the right digest, is not downloaded again. The addresses are tried in order. Raises
    DataError where none gives the file with its digest, where the archive lacks a member, and where `folder` cannot be
    written.
    """
    path = folder / wanted.file
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not (path.is_file() and digest_of(path, wanted.digest) == wanted.digest):
            _download(wanted, path, progress)
        return [path] if not wanted.members else [_unpack(path, member) for member in wanted.members]


def digest_of(path: Path, like: str) -> str:
    """The digest of a file, of the kind that `like` ("md5:..." or "sha256:...") is, written in the same way."""
    kind = like.partition(":")[0]
    with open(path, "rb") as file:
        return f"{kind}:{hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()}"


def check_digest(path: Path, wanted: str) -> None:
    """Raise DataError, naming the file, unless it has the digest `wanted`."""
    found = digest_of(path, wanted)
    if found != wanted:
        raise DataError(f"{path} has the digest {found}; expected {wanted}: it is damaged or another edition; delete it "
                        f"and download it again")


def _download(wanted: Download, path: Path, progress: Progress) -> None:
    failures = []
    for url in wanted.urls:
        aside = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            _copy(url, aside, wanted.file, progress)
            found = digest_of(aside, wanted.digest)
            if found == wanted.digest:
                os.replace(aside, path)
                return
            failures.append(f"{url} gave a file with the digest {found}")
        except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
            failures.append(f"{url}: {error.reason if isinstance(error, urllib.error.URLError) else error}")
        finally:
            aside.unlink(missing_ok=True)
    raise DataError(f"{wanted.file} (digest {wanted.digest}) could not be downloaded: {'; '.join(failures)}. Where there "
                    f"is no network, download it elsewhere and copy it to {path}")


def _copy(url: str, aside: Path, name: str, progress: Progress) -> None:
    request = urllib.request.Request(url, headers=_AGENT)
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer, open(aside, "wb") as file:
        size = answer.headers.get("Content-Length")
        total, done = None if size is None else int(size), 0
        while chunk := answer.read(_CHUNK):
            file.write(chunk)
            done += len(chunk)
            progress(name, done, total)
        file.flush()
        os.fsync(file.fileno())


def _unpack(archive: Path, member: str) -> Path:
    """One member of a checked archive, beside it, under its last name; whole or not at all."""
    path = archive.with_name(PurePosixPath(member).name)
    if path.is_file() and path.stat().st_mtime_ns >= archive.stat().st_mtime_ns:
        return path
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with _member(archive, member) as source, open(aside, "wb") as file:
            shutil.copyfileobj(source, file, _CHUNK)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def _member(archive: Path, member: str) -> Iterator[IO[bytes]]:
    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as packed, packed.open(member) as source:
                yield source
        else:
            with tarfile.open(archive) as tar:
                file = tar.extractfile(_tar_member(tar, member))
                if file is None:
                    raise KeyError(member)
                with file:
                    yield file
    except (KeyError, EOFError, zipfile.BadZipFile, tarfile.TarError, zlib.error) as error:
        raise DataError(f"{archive}: the member {member} cannot be read ({type(error).__name__}: {error})") from error


def _tar_member(tar: tarfile.TarFile, member: str) -> tarfile.TarInfo:
    for info in tar:
        if PurePosixPath(info.name).name == member and info.isfile():
            return info
    raise KeyError(member)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({type(error).__name__}: {error.strerror or error}): free space, or "
                        f"give another folder with --root") from error
