"""`python -m federation.data`: fetch a data set, list those that are known, and preview a partition."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from federation.data.download import check_digest, download
from federation.data.sources.catalogue import CATALOGUE
from federation.data.sources.generated import GENERATED
from federation.data.sources.libraries import BUNDLED, LIBRARIES, fetch_library
from federation.data.sources.published import PUBLISHED
from federation.errors import FederationError


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0 done, 1 failed (said on stderr), 2 bad usage."""
    parser = argparse.ArgumentParser(prog="python -m federation.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    fetch = commands.add_parser("fetch", help="download a data set into a folder, on a machine with network")
    fetch.add_argument("name", help="a name that `list` shows, or openml:NAME, hf:NAME, sklearn:NAME, torchvision:NAME")
    fetch.add_argument("--root", type=_folder, default=Path("."), help="the folder, data.root of a configuration (default: "
                       "the current one)")
    fetch.add_argument("--option", action="append", default=[], metavar="KEY=VALUE",
                       help="for sets of other libraries, such as x=image, y=label, columns=user (hf) or target=NAME (openml)")
    check = commands.add_parser("check", help="compare files that are there with their publishers' digests")
    check.add_argument("name")
    check.add_argument("--root", type=_folder, default=Path("."))
    commands.add_parser("list", help="the data sets that are known by name")
    preview = commands.add_parser("preview", help="draw and describe how a configuration shares out its samples")
    preview.add_argument("--config", help="the configuration; the built-in example by default")
    preview.add_argument("--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE",
                         help="change a setting, as for federation.launch")
    preview.add_argument("-o", "--output", type=Path, help="a picture to write, .png, .pdf or .svg")
    arguments = parser.parse_args(argv)
    try:
        match arguments.command:
            case "fetch":
                _fetch(parser, arguments.name, arguments.root, _options(parser, arguments.option))
            case "check":
                return _check(parser, arguments.name, arguments.root)
            case "list":
                _list()
            case "preview":
                from federation.preview import preview as describe

                print(describe(arguments.config, arguments.set, arguments.output))
    except FederationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _fetch(parser: argparse.ArgumentParser, name: str, root: Path, options: dict[str, str]) -> None:
    prefix, colon, rest = name.partition(":")
    if colon and rest and prefix in LIBRARIES:
        print(f"wrote {fetch_library(name, root, options)}")
        return
    if name not in CATALOGUE:
        parser.error(f"{name!r} is no data set that can be fetched; known: {', '.join(CATALOGUE)}, and "
                     f"{', '.join(f'{prefix}:NAME' for prefix in LIBRARIES)}")
    if options:
        parser.error(f"{name} has no options")
    entry, folder = CATALOGUE[name], root / CATALOGUE[name].folder
    if entry.advice:
        parser.error(f"{name} cannot be downloaded: {entry.advice.format(folder=folder.absolute())}")
    for wanted in entry.downloads:
        for path in download(wanted, folder, _show):
            print(f"{path} is there")


def _check(parser: argparse.ArgumentParser, name: str, root: Path) -> int:
    """Status 1 where there is nothing at all; a part of the files may be all that is wanted."""
    if name not in CATALOGUE or not CATALOGUE[name].downloads:
        parser.error(f"no digests are known of {name!r}; they are of "
                     f"{', '.join(key for key, entry in CATALOGUE.items() if entry.downloads)}")
    status = 1
    for wanted in CATALOGUE[name].downloads:
        path = root / CATALOGUE[name].folder / wanted.file
        if not path.is_file():
            print(f"{path} is not there")
            continue
        check_digest(path, wanted.digest)
        print(f"{path} is as it was published")
        status = 0
    return status


def _list() -> None:
    for name, source in (*GENERATED.items(), *PUBLISHED.items()):
        print(f"{name:24}{(source.__doc__ or '').splitlines()[0]}")
    for name in BUNDLED:
        print(f"{f'sklearn:{name}':24}Comes with scikit-learn.")


def _show(file: str, done: int, total: int | None) -> None:
    """Progress on a terminal, nothing in a log."""
    if sys.stderr.isatty():
        of = "" if total is None else f" of {total >> 20}"
        print(f"\r{file}: {done >> 20}{of} MiB", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _folder(text: str) -> Path:
    """A shell leaves the `~` of --root=~/data alone."""
    return Path(os.path.expanduser(text))


def _options(parser: argparse.ArgumentParser, given: Sequence[str]) -> dict[str, str]:
    options = dict(text.partition("=")[::2] for text in given)
    if bad := [text for text in given if "=" not in text]:
        parser.error(f"--option {bad[0]}: expected KEY=VALUE")
    return options


if __name__ == "__main__":
    sys.exit(main())
