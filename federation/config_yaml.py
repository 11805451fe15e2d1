"""YAML read as written: every value keeps its text, its quotes and its line, and no type is guessed.

    table, problems = read_yaml("seed: 010\\n", "c.yaml")

What `010`, `12:30` or `off` means is decided where the wanted type is known (federation.config_check); YAML 1.1's
guesses (8, 750, False) never happen. Nothing here constructs an object, so no tag can run code.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import yaml
from yaml.composer import Composer
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.scanner import Scanner

from federation.config_secret import Secret

# An alias costs a few bytes and repeats all that it names: this bounds what a small file can grow to.
MAX_VALUES = 100_000
NULL_WORDS = frozenset({"", "~", "null", "Null", "NULL"})
_STRING_TAG = "tag:yaml.org,2002:str"
_MERGE_KEY = "<<"


@dataclass(frozen=True)
class Text:
    """A scalar as written. `style` is "plain", "quoted", or "argument" (a command line's word, which has no quotes)."""

    text: str = field(repr=False)
    style: str
    place: str

    @property
    def is_null(self) -> bool:
        return self.style == "plain" and self.text in NULL_WORDS


@dataclass(frozen=True)
class Given:
    """A value that came as a Python object, not as text."""

    value: object = field(repr=False)
    place: str

    @property
    def is_null(self) -> bool:
        return self.value is None


@dataclass(frozen=True)
class Series:
    """A list of values."""

    items: tuple[Node, ...]
    place: str
    is_null = False


@dataclass(frozen=True)
class Table:
    """Keys and values, in order; `places` says where each key stands.

    `shelves` are top-level keys that hold an anchor used behind them: `base: &base {...}` is there for its aliases.
    `assigned`: the section takes the place of the one below it, as the value of `--set key={...}` does.
    """

    entries: dict[str, Node]
    places: dict[str, str]
    place: str
    shelves: frozenset[str] = frozenset()
    assigned: bool = False
    is_null = False


Node = Text | Given | Series | Table


def problem(place: str, path: str, message: str) -> str:
    """One problem as the user sees it: `file:line: key: message`, parts that are empty left out."""
    return ": ".join(part for part in (place, path, message) if part)


def join(path: str, key: str) -> str:
    """The dotted path of `key` below `path`."""
    return f"{path}.{key}" if path else key


def overlay(below: Node, above: Node) -> Node:
    """`below`, with what `above` says in place of it. Sections merge key by key, unless `above` is assigned."""
    if not (isinstance(below, Table) and isinstance(above, Table)) or above.assigned:
        return above
    entries = dict(below.entries)
    for key, node in above.entries.items():
        entries[key] = overlay(entries[key], node) if key in entries else node
    return Table(entries, below.places | above.places, above.place or below.place, below.shelves | above.shelves)


def hidden_values(below: Node, above: Node, path: str = "") -> Iterator[tuple[str, Node]]:
    """The values of `below` that are no sections, in place of which `overlay` puts keys of `above`; with their paths."""
    if not isinstance(above, Table) or above.assigned or below.is_null:
        return
    if not isinstance(below, Table):
        yield path, below
        return
    for key, node in above.entries.items():
        if key in below.entries:
            yield from hidden_values(below.entries[key], node, join(path, key))


def table_at(path: str, node: Node, place: str) -> Table:
    """`node` assigned to a dotted `path`: `a.b` and 1 give {a: {b: 1}}."""
    if isinstance(node, Table):
        node = replace(node, assigned=True)
    for key in reversed(path.split(".")):
        node = Table({key: node}, {key: place}, place)
    assert isinstance(node, Table)
    return node


# -- from YAML text --------------------------------------------------------------------------------------------------

class _Loader(Reader, Scanner, Parser, Composer):
    """PyYAML up to its node graph: no resolver that guesses types and no constructor that makes objects."""

    def __init__(self, stream: str) -> None:
        Reader.__init__(self, stream)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        self.last_use: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        alias = self.peek_event() if self.check_event(yaml.AliasEvent) else None  # type: ignore
        node = super().compose_node(parent, index)
        if alias is not None:
            self.last_use[id(node)] = alias.start_mark.index
        return node

    def descend_resolver(self, current_node: object, current_index: object) -> None:
        """Nothing to do: values are not resolved by where they stand."""

    def ascend_resolver(self) -> None:
        """Nothing to do, as above."""

    def resolve(self, kind: type[yaml.Node], value: object, implicit: object) -> str:
        """No tag, which tells a value without one from a value that carries one."""
        return ""


class _Reading:
    """The conversion of one file's node graph; collects problems instead of stopping at the first."""

    def __init__(self, source: str, last_use: dict[int, int], one_line: bool) -> None:
        self.source = source
        self.last_use = last_use
        self.one_line = one_line
        self.problems: list[str] = []
        self._done: dict[int, tuple[Node, int]] = {}
        self._open: set[int] = set()

    def place(self, node: yaml.Node) -> str:
        return self.source if self.one_line else f"{self.source}:{node.start_mark.line + 1}"

    def report(self, node: yaml.Node, path: str, message: str) -> None:
        self.problems.append(problem(self.place(node), path, message))

    def convert(self, node: yaml.Node, path: str) -> tuple[Node, int]:
        """The node and the number of values below it, aliases counted as often as they are used."""
        if id(node) in self._done:
            return self._done[id(node)]
        if id(node) in self._open:
            self.report(node, path, "contains itself (an alias inside the value that its anchor names)")
            return Text("", "plain", self.place(node)), 1
        self._open.add(id(node))
        result, size = self._convert(node, path)
        self._open.discard(id(node))
        if size > MAX_VALUES:
            self.report(node, path, f"its aliases expand to more than {MAX_VALUES} values")
            result, size = Table({}, {}, self.place(node)), 1
        self._done[id(node)] = result, size
        return result, size

    def _convert(self, node: yaml.Node, path: str) -> tuple[Node, int]:
        if node.tag and node.tag != _STRING_TAG:
            self.report(node, path, f"the tag {_shown_tag(node.tag)} is refused: values are plain text, numbers, lists "
                                    "and sections, and never make objects")
            return Text("", "plain", self.place(node)), 1
        if isinstance(node, yaml.ScalarNode):
            style = "plain" if node.style is None and not node.tag else "quoted"
            return Text(node.value, style, self.place(node)), 1
        if isinstance(node, yaml.SequenceNode):
            pairs = [self.convert(item, f"{path}[{index}]") for index, item in enumerate(node.value)]
            return Series(tuple(item for item, _ in pairs), self.place(node)), 1 + sum(size for _, size in pairs)
        assert isinstance(node, yaml.MappingNode)
        return self._table(node, path)

    def _table(self, node: yaml.MappingNode, path: str) -> tuple[Table, int]:
        entries: dict[str, Node] = {}
        places: dict[str, str] = {}
        shelves: set[str] = set()
        merged: list[Table] = []
        first: dict[str, yaml.Node] = {}
        total = 1
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag not in ("", _STRING_TAG):
                self.report(key_node, path, "a key must be a word, not a list, a section or a tagged value")
                continue
            key = key_node.value
            if key == "" and key_node.style is None:
                self.report(key_node, path, "a value stands here without a key")
                continue
            where = join(path, key)
            if key in first:
                self.report(key_node, where, f"given twice, in line {first[key].start_mark.line + 1} and in line "
                                             f"{key_node.start_mark.line + 1}; keep one")
                continue
            first[key] = key_node
            value, size = self.convert(value_node, where)
            total += size
            if key == _MERGE_KEY and key_node.style is None:
                merged += self._merged(value, where)
                continue
            if path == "" and self._is_shelf(key_node, value_node):
                shelves.add(key)
            entries[key] = value
            places[key] = self.place(key_node)
        for table in merged:
            entries = table.entries | entries
            places = table.places | places
        return Table(entries, places, self.place(node), frozenset(shelves)), total

    def _merged(self, value: Node, path: str) -> list[Table]:
        """The sections that a merge key names; of two, the earlier goes before the later."""
        values = value.items if isinstance(value, Series) else (value,)
        for item in values:
            if not isinstance(item, Table):
                self.problems.append(problem(item.place, path, "a merge key needs a section, or a list of sections"))
        return [item for item in values if isinstance(item, Table)]

    def _is_shelf(self, key: yaml.Node, value: yaml.Node) -> bool:
        """Whether an anchor is defined at or below `value` and used behind it."""
        begin, end = key.start_mark.index, value.end_mark.index
        return any(node.start_mark.index > begin and self.last_use.get(id(node), -1) > end
                   for node in _nodes_below(value, set()))


def _nodes_below(node: yaml.Node, seen: set[int]) -> list[yaml.Node]:
    if id(node) in seen:
        return []
    seen.add(id(node))
    below = [node]
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            below += _nodes_below(item, seen)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below += _nodes_below(key, seen) + _nodes_below(value, seen)
    return below


def _shown_tag(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!", 1)


def read_yaml(text: str, source: str, *, path: str = "", one_line: bool = False) -> tuple[Node | None, list[str]]:
    """The document in `text` as written, None when it holds nothing, and the problems met on the way.

    `source` names the text in messages, followed by the line unless `one_line`, and `path` the key that it is the value
    of. Refused, each with its line: bad syntax, tabs as indentation, several documents, tags, keys given twice at any
    depth, keys that are not words, aliases that contain themselves or expand without measure. Merge keys (`<<`) work,
    and keys beside them take precedence. No message repeats a line of the text, which may hold a secret.
    """
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line if mark else 0
        tab = _tab_near(text, line)
        message = f"line {tab + 1} is indented with a tab; YAML wants spaces" if tab is not None else _syntax(error)
        return None, [problem(source if one_line else f"{source}:{line + 1}", path, message)]
    except yaml.YAMLError as error:
        return None, [problem(source, path, f"is not YAML text: {getattr(error, 'reason', 'it has a bad character')}")]
    except RecursionError:
        return None, [problem(source, path, "is nested too deeply")]
    if root is None:
        return None, []
    reading = _Reading(source, loader.last_use, one_line)
    try:
        node, _ = reading.convert(root, path)
    except RecursionError:
        return None, [problem(source, path, "is nested too deeply")]
    return node, reading.problems


def _tab_near(text: str, line: int) -> int | None:
    """The line at or just before the error that a tab indents."""
    lines = text.splitlines()
    for number in (line, line - 1):
        if 0 <= number < len(lines) and "\t" in lines[number][: len(lines[number]) - len(lines[number].lstrip())]:
            return number
    return None


def _syntax(error: yaml.MarkedYAMLError) -> str:
    parts = [str(part) for part in (error.context, error.problem) if part]
    return "bad YAML syntax: " + ", ".join(parts)


# -- from Python objects ---------------------------------------------------------------------------------------------

def from_python(value: object, path: str, place: str, problems: list[str], _open: tuple[int, ...] = ()) -> Node:
    """The same tree for a mapping that a program made. Objects that YAML cannot write are named in `problems`."""
    if id(value) in _open:
        problems.append(problem(place, path, "contains itself"))
        return Given(None, place)
    if isinstance(value, Mapping):
        entries: dict[str, Node] = {}
        for key, item in value.items():
            if not isinstance(key, str):
                problems.append(problem(place, path, f"the key {key!r} is {kind_of(key)}; keys are text"))
                continue
            entries[key] = from_python(item, join(path, key), place, problems, (*_open, id(value)))
        return Table(entries, dict.fromkeys(entries, place), place)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        return Series(tuple(from_python(item, f"{path}[{index}]", place, problems, (*_open, id(value)))
                            for index, item in enumerate(value)), place)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    plain = _plain(value)
    if plain is None and value is not None:
        problems.append(problem(place, path, f"{kind_of(value)} cannot be part of a configuration, which holds plain "
                                             "data only; name a class or a function as 'package.module:name' instead"))
    return Given(plain, place)


def _plain(value: object) -> object:
    """The plain Python value that `value` or a NumPy scalar holds; None for any other object. Needs no NumPy."""
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool | Secret):
        return value
    for kind in (int, float):
        if isinstance(value, kind):
            return kind(value)
    return str.__str__(value) if isinstance(value, str) else None  # str() of an enumeration's member is its name


def kind_of(value: object) -> str:
    """What a Python value is, in words, for a message."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a truth value"
    if isinstance(value, int):
        return "an integer"
    if isinstance(value, float):
        return "a number"
    if isinstance(value, str | Secret):
        return "text"
    name = getattr(value, "__qualname__", None)
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    if name is None:
        return f"an object of type {kind}"
    code = getattr(value, "__code__", None)
    where = f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else ""
    return f"the {kind} {name}{where}"
