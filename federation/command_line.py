"""The options of `python -m federation.launch`, and the configuration that they lead to."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

import msgspec

from federation.config_reference import keys_for_help, summary
from federation.config_schema import Config
from federation.config_value import suggestion
from federation.config_yaml import Text
from federation.errors import ConfigError


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed command line. Values are the words as given; None where an option is left out."""

    config: str | None = None
    mode: str | None = None
    num_clients: str | None = None
    set: tuple[str, ...] = ()
    seed: str | None = None
    output_dir: str | None = None
    #: "auto", the newest checkpoint of `output_dir`; or the path of one.
    resume: str | None = None
    dry_run: bool = False
    quiet: bool = False


def parse(arguments: Sequence[str]) -> Options:
    """The options in `arguments`, which is sys.argv without the program.

    Every option may be written with `_` or with `-`, and in full only. `--help` prints, and exits with status 0. Raises
    ConfigError that lists what is wrong with the command line, with the nearest option.
    """
    parser = _parser()
    found, extra = parser.parse_known_args([_with_underscores(word) for word in arguments])
    problems = list(_leftovers(extra, _names(parser)))
    if problems:
        raise ConfigError(problems)
    overrides = tuple(word for group in found.set or () for word in group)
    return Options(config=found.config, mode=found.mode, num_clients=found.num_clients, set=overrides, seed=found.seed,
                   output_dir=found.output_dir, resume=found.resume, dry_run=found.dry_run, quiet=found.quiet)


def resolve_options(options: Options) -> Config:
    """The configuration: options go before `--set`, that before the file. Raises ConfigError with all problems."""
    from federation.config import load_config

    words = {"mode": options.mode, "num_clients": options.num_clients, "seed": options.seed,
             "output_dir": options.output_dir}
    given = {key: Text(word, "argument", f"--{key}") for key, word in words.items() if word is not None}
    return load_config(options.config, overrides=options.set, options=given)


class Parser(argparse.ArgumentParser):
    """Raises what is wrong instead of ending the process, so that of many ranks one can say it."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message.removeprefix("argument "))


class _Once(argparse.Action):
    """Stores a value; an option given twice is an error, since one of the two would have no effect."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
                 option_string: str | None = None) -> None:
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option_string}: given twice; keep one")
        setattr(namespace, self.dest, values)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m federation.launch", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train one model over many clients: in this process, in several, under mpirun, or across machines.",
        epilog="exit status: 0 done; 1 failed while running; 2 bad configuration or usage;\n"
               "75 stopped by a signal after a checkpoint, to be resumed\n\n"
               f"keys of a configuration, with their defaults:\n{keys_for_help()}")
    add = parser.add_argument
    add("--config", metavar="FILE", action=_Once,
        help="the configuration, in YAML; without it, handwritten digits and 10 clients")
    add("--mode", metavar="MODE", action=_Once, help=f"auto|serial|parallel|mpi|server|client. {summary('mode')}")
    add("--num_clients", metavar="N", action=_Once, help=summary("num_clients"))
    add("--set", metavar="KEY=VALUE", nargs="+", action="append",
        help="change keys of the configuration: dotted.key=value, the value in YAML; may be repeated")
    add("--seed", metavar="N", action=_Once, help=summary("seed"))
    add("--output_dir", metavar="DIR", action=_Once, help=summary("output_dir"))
    add("--resume", metavar="auto|FILE", nargs="?", const="auto", action=_Once,
        help="go on from the newest checkpoint of the run's folder, or from a file")
    add("--dry_run", action="store_true", help="show configuration, partition and placement; train nothing")
    add("--quiet", action="store_true", help="log warnings only, and show no progress")
    return parser


def _with_underscores(word: str) -> str:
    """`--dry-run` as `--dry_run`; values are left alone."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _names(parser: argparse.ArgumentParser) -> list[str]:
    return [name for action in parser._actions for name in action.option_strings if name.startswith("--")]


def _leftovers(extra: Sequence[str], known: Sequence[str]) -> list[str]:
    """A problem for each unknown option. The words behind one are not repeated, as they may be secrets."""
    problems = []
    after_option = False
    for word in extra:
        if word.startswith("-"):
            name = word.partition("=")[0]
            problems.append(f"{name}: unknown option{suggestion(name, known)} (options: {', '.join(known)})")
            after_option = True
        elif not after_option:
            problems.append(f"{word!r}: all options have names; did you mean --config {word}?")
    return problems
