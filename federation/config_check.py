"""A whole tree of values held against a schema: all problems are collected, none is guessed away."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from federation.config_secret import MASK, Secret, is_secret_name
from federation.config_value import (
    FALSE_WORDS,
    TRUE_WORDS,
    Misfit,
    fit,
    fit_path,
    fit_reference,
    is_list,
    is_mapping,
    likeness,
    members,
    nearest,
    parse_number,
    shown,
    unwrap,
    wanted,
)
from federation.config_yaml import Given, Node, Series, Table, Text, join, problem

S = TypeVar("S", bound=msgspec.Struct)


class _Invalid:
    """Stands for a value that was refused."""


INVALID = _Invalid()


class Checker:
    """Collects `problems` while it converts; `places` says where each path was given, `failed` which were refused."""

    def __init__(self, problems: list[str] | None = None, source: str = "", empty_text: bool = False) -> None:
        self.problems = [] if problems is None else problems
        self.source = source
        self.empty_text = empty_text
        self.places: dict[str, str] = {}
        self.failed: set[str] = set()

    def report(self, path: str, message: str, place: str | None = None) -> None:
        """Add a problem with `path`, and mark it as refused."""
        self.problems.append(problem(self.place_of(path) if place is None else place, path, message))
        self.failed.add(path)

    def place_of(self, path: str) -> str:
        """Where `path`, or else the section around it, was given; for what is missing, the source."""
        while path and path not in self.places:
            path = path.rpartition(".")[0]
        return self.places.get(path, self.source)

    def sound(self, *paths: str) -> bool:
        """Whether none of `paths` has been refused, so that rules between them make sense."""
        return not any(path in self.failed for path in paths)

    def struct(self, node: Node, kind: type[S], path: str = "",
               elsewhere: Callable[[], Mapping[str, str]] = dict) -> S:
        """`node` as a `kind`: refused fields take their defaults, so that everything else can be checked as well.

        Nothing below a section's key means its defaults. `elsewhere` maps a key's last name to where it belongs; it is called
        only where a key is unknown.
        """
        if node.is_null:
            return kind()
        if not isinstance(node, Table):
            self.report(path, f"{shown(node)}: wanted is a section (keys and values)", node.place)
            return kind()
        hints = get_type_hints(kind, include_extras=True)
        fields = {info.encode_name: info.name for info in msgspec.structs.fields(kind)}
        values = {}
        for key, child in node.entries.items():
            where = join(path, key)
            self.places[where] = node.places[key]
            if key not in fields:
                if not (key in node.shelves and (key.startswith("x-") or not nearest(key, fields))):
                    self._unknown(key, path, fields, elsewhere())
                continue
            value = self.value(child, hints[fields[key]], where, elsewhere)
            if value is not INVALID:
                values[fields[key]] = value
        return kind(**values)

    def _unknown(self, key: str, path: str, known: Collection[str], elsewhere: Mapping[str, str]) -> None:
        here = None if key in elsewhere else nearest(key, known)
        there = key if key in elsewhere else nearest(key, elsewhere)
        near = {name: likeness(key, name) for name in (here, there) if name}
        best_first = sorted(near, key=near.__getitem__, reverse=True)
        names = [name if name == here else elsewhere[name] for name in best_first]
        hint = f"; did you mean {' or '.join(names)}?" if names else ""
        section, dot, rest = key.partition(".")
        if dot and section in known:
            hint = f"; dots are for --set: write it in a section, as {section}: {{{rest}: ...}}"
        self.report(join(path, key), f"unknown key{hint} (known here: {', '.join(known)})")

    def value(self, node: Node, annotation: Any, path: str,
              elsewhere: Callable[[], Mapping[str, str]] = dict) -> Any:
        """`node` as `annotation`, or INVALID after reporting why not."""
        base, meta = unwrap(annotation)
        alternatives = members(base)
        misfits: list[Misfit] = []
        for member in alternatives:
            if isinstance(member, type) and issubclass(member, msgspec.Struct):
                return self.struct(node, member, path, elsewhere)
            if is_mapping(member) and not (node.is_null and type(None) in alternatives):
                return self.secrets(node, path) if Secret in get_args(member) else self.settings(node, path)
            if is_list(member) and isinstance(node, Series):
                return self.series(node, member, path)
            value = self._fit(node, member, alternatives)
            if isinstance(value, str) and "path" in (meta.extra or {}):
                value = fit_path(value)
            if not isinstance(value, Misfit):
                if _beyond(value, meta):
                    value = Misfit("is out of range")
                elif value == "" and not self.empty_text:
                    value = Misfit("is empty")
                else:
                    return value
            misfits.append(value)
        misfit = max(misfits, key=lambda one: len(one.reason), default=Misfit(""))
        hidden = any(member is Secret for member in alternatives) or is_secret_name(path.rpartition(".")[2])
        written = MASK if hidden and not node.is_null else shown(node)
        reason = f" {misfit.reason}" if misfit.reason else ""
        meant = f"; did you mean {misfit.meant}?" if misfit.meant else ""
        self.report(path, f"{written}{reason}: wanted is {wanted(annotation)}{meant}")
        return INVALID

    def _fit(self, node: Node, member: Any, alternatives: tuple[Any, ...]) -> Any:
        """As `fit`; where a key takes a number or text, text that looks like a doubtful number is neither."""
        value = fit(node, member)
        numeric = int in alternatives or float in alternatives
        if member is str and numeric and isinstance(node, Text) and node.style != "quoted":
            reason = parse_number(node.text)[1]
            return Misfit(reason) if reason else value
        return value

    def series(self, node: Series, annotation: Any, path: str) -> Any:
        """A list whose items are of one type, or a tuple with a type for each; INVALID if any item is refused."""
        arguments = get_args(annotation)
        is_tuple = (get_origin(annotation) or annotation) is tuple
        if is_tuple and arguments and Ellipsis not in arguments:
            if len(arguments) != len(node.items):
                self.report(path, f"a list of {len(node.items)}: wanted are {len(arguments)} values")
                return INVALID
            kinds: Sequence[Any] = arguments
        else:
            kinds = [arguments[0] if arguments else object] * len(node.items)
        values = []
        for index, (item, kind) in enumerate(zip(node.items, kinds, strict=True)):
            where = f"{path}[{index}]"
            self.places[where] = item.place
            values.append(self.free(item, where) if kind in (object, Any) else self.value(item, kind, where))
        if any(value is INVALID for value in values):
            self.failed.add(path)
            return INVALID
        return tuple(values) if is_tuple else values

    def settings(self, node: Node, path: str) -> Any:
        """A section with keys of its own choice, such as `learner_config`, as plain Python values."""
        if node.is_null:
            return {}
        if not isinstance(node, Table):
            self.report(path, f"{shown(node)}: wanted is a section (keys and values)")
            return INVALID
        return self.free(node, path)

    def secrets(self, node: Node, path: str) -> Any:
        """A section of secrets under keys of its own choice."""
        if node.is_null:
            return {}
        if not isinstance(node, Table):
            self.report(path, "wanted is a section (names and secrets)")
            return INVALID
        found = {}
        for key, child in node.entries.items():
            where = join(path, key)
            self.places[where] = node.places[key]
            found[key] = self.value(child, Secret, where)
        return INVALID if any(value is INVALID for value in found.values()) else found

    def free(self, node: Node, path: str) -> Any:
        """A value of no declared type, by what is written. Doubtful numbers are refused: quotes make them text."""
        if isinstance(node, Table):
            result = {}
            for key, child in node.entries.items():
                where = join(path, key)
                self.places[where] = node.places[key]
                result[key] = self.free(child, where)
            return result
        if isinstance(node, Series):
            self.places |= {f"{path}[{index}]": item.place for index, item in enumerate(node.items)}
            return [self.free(item, f"{path}[{index}]") for index, item in enumerate(node.items)]
        if node.is_null:
            return None
        written = node.text if isinstance(node, Text) else node.value
        if isinstance(written, str | Secret) and is_secret_name(path.rpartition(".")[2]):
            return self.value(node, Secret, path)
        if isinstance(node, Given):
            if isinstance(node.value, float) and not math.isfinite(node.value):
                self.report(path, f"{shown(node)} is not a finite number")
            return node.value
        if node.style == "quoted":
            return self._free_text(node, path)
        if node.text in TRUE_WORDS | FALSE_WORDS:
            return node.text in TRUE_WORDS
        number, reason = parse_number(node.text)
        if number is not None:
            return number
        if reason:
            self.report(path, f"{node.text} {reason} (put it in quotes if it is meant as text)")
            return INVALID
        return self._free_text(node, path)

    def _free_text(self, node: Text, path: str) -> Any:
        text = fit_reference(node.text)
        if isinstance(text, Misfit):
            self.report(path, f"{shown(node)} {text.reason}")
        return text


def _beyond(value: Any, meta: msgspec.Meta) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return not ((meta.ge is None or value >= meta.ge) and (meta.gt is None or value > meta.gt)
                and (meta.le is None or value <= meta.le) and (meta.lt is None or value < meta.lt))
