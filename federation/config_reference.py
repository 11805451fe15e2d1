"""The reference of all configuration keys, made from federation.config_schema.

    python -m federation.config_reference      # writes docs/configuration.md and federation/examples/config.yaml
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import yaml

from federation.config_schema import Config, Section, is_outside, plain
from federation.config_value import unwrap, wanted

#: What runs when no file is named, beside the defaults: handwritten digits on a small network, in seconds.
EXAMPLE: dict[str, Any] = {"learner_config": {"local_epochs": 5, "batch_size": 20, "client_lr": 0.1}}


@dataclass(frozen=True)
class Entry:
    """One key: its dotted path, what it takes, its default in YAML, what it means, and whether the digest covers it."""

    path: str
    wanted: str
    default: str
    description: str
    in_digest: bool
    is_section: bool


def entries(kind: type[Section] = Config, path: str = "", in_digest: bool = True) -> Iterator[Entry]:
    """All keys in their order, each section before what it holds."""
    hints = get_type_hints(kind, include_extras=True)
    for info in msgspec.structs.fields(kind):
        base, meta = unwrap(hints[info.name])
        where = f"{path}.{info.encode_name}" if path else info.encode_name
        default = info.default_factory() if info.default is msgspec.NODEFAULT else info.default
        covered = in_digest and not is_outside(kind, info.name)
        is_section = isinstance(default, Section)
        text = (meta.extra or {}).get("default") or _yaml(plain(default))
        yield Entry(where, wanted(hints[info.name]), "" if is_section else text, meta.description or "", covered,
                    is_section)
        if is_section:
            yield from entries(base, where, covered)


def summary(path: str) -> str:
    """What the key at `path` means."""
    return next(entry.description for entry in entries() if entry.path == path)


def keys_for_help(width: int = 100) -> str:
    """All keys with their defaults and meaning, as lines for a terminal."""
    lines = []
    for entry in entries():
        if not entry.is_section:
            text = f"{entry.path}: {entry.default}"
            lines += [f"  {text}", *textwrap.wrap(entry.description, width, initial_indent=" " * 6,
                                                  subsequent_indent=" " * 6)]
    return "\n".join(lines)


_INTRODUCTION = """\
# Configuration

Made from `federation/config_schema.py` by `python -m federation.config_reference`; change it there.

A run is described by a YAML file, all of whose keys are optional. Each source goes before the one on its left:
default, file, `--set dotted.key=value`, option. The run's folder keeps the result of it as `config.yaml`,
which repeats the run.

- A file is read as it is written. `1e-3`, `1E5` and `1.e3` are numbers. `010`, `12:30`, `0x10`, `1_000`, `.nan` and
  `.inf`, about which YAML readers disagree or which are not finite, are refused where a number is wanted or may be
  wanted; in quotes they are text.
- Truth values are `true` and `false` alone. `yes`, `no`, `on` and `off` are text: `tracker: off` names a tracker.
- `'8'` is text, `true` is no number, and `null` stands only where the table says so.
- A section with nothing below means its defaults. An empty file, a list at the top, a tab as indentation, a tag such as
  `!!python/name`, a key given twice and a key that is not in the table are errors.
- Anchors, aliases and merge keys (`<<`) work. A top-level key whose name is near no known one, and whose anchor is used
  further down, only keeps values for its aliases; `x-` at its start makes sure of it.
- `learner_config`, `aggregator_config`, `model_config`, `partitioner_config` are the keyword arguments of the class or
  function named, and are held against its signature: names and types.
- All problems are listed at once, each with file and line, key, value as written, what is allowed, and the nearest
  known name.
- `api_key` and `token`, and in free sections `password`, `secret` and names that end in `_key`, are secrets: shown and
  saved as `***`. Write `'${env:NAME}'` to take one from the environment; that is what is saved then.
- Paths are seen from the current folder, those that begin with `~` from the home folder. Variables such as `$SCRATCH` are
  not filled in, and refused; a shell does it: `--set output_dir=$SCRATCH/runs`.

The digest of a configuration covers the keys that decide the model after a round. A run can be resumed with other
values of the rest.

"""


def markdown() -> str:
    """The text of docs/configuration.md."""
    lines = [_INTRODUCTION + "## Top level", "", *_HEADER]
    sections: list[Entry] = []
    found = list(entries())
    for entry in found:
        if "." not in entry.path:
            lines.append(_row(entry, entry.path))
            sections += [entry] * entry.is_section
    for section in [entry for entry in found if entry.is_section]:
        lines += ["", f"## {section.path}", "", *_HEADER]
        for entry in found:
            parent, _, name = entry.path.rpartition(".")
            if parent == section.path:
                lines.append(_row(entry, name))
    return "\n".join(lines) + "\n"


_HEADER = ["| key | takes | default | meaning | in the digest |", "| --- | --- | --- | --- | --- |"]


def _row(entry: Entry, name: str) -> str:
    default = f"`{entry.default}`" if entry.default else f"see [{name}](#{entry.path.replace('.', '')})"
    return f"| `{name}` | {entry.wanted} | {default} | {entry.description} | {'yes' if entry.in_digest else ''} |"


def example() -> str:
    """The text of federation/examples/config.yaml: every key at its default, and the example's own settings."""
    lines = ["# Every key, with the value that it has when it is left out, apart from learner_config, which is that of",
             "# the built-in example: this file and no file at all run the same.",
             "# Made by python -m federation.config_reference."]
    for entry in entries():
        indent = "  " * entry.path.count(".")
        name = entry.path.rpartition(".")[2]
        takes = "" if entry.is_section else f" Takes: {entry.wanted}."
        if not indent:
            lines.append("")
        lines += textwrap.wrap(entry.description + takes, 118, initial_indent=f"{indent}# ",
                               subsequent_indent=f"{indent}# ")
        if entry.path in EXAMPLE:
            lines.append(f"{name}:")
            lines += [f"  {key}: {_yaml(value)}" for key, value in EXAMPLE[entry.path].items()]
        elif entry.path == "output_dir":
            lines.append(f"# {name}: {entry.default}")
        elif entry.path in ("role", "components.learner"):
            lines.append(f"{indent}{name}: null")
        else:
            lines.append(f"{indent}{name}: {entry.default}".rstrip())
    return "\n".join(lines) + "\n"


def _yaml(value: object) -> str:
    return str(yaml.safe_dump(value, default_flow_style=True, width=10**6)).removesuffix("\n").removesuffix("\n...")


def main(root: Path = Path()) -> None:
    """Write both files below `root`, the folder of the project."""
    for name, text in (("docs/configuration.md", markdown()), ("federation/examples/config.yaml", example())):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
