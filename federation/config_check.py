"""Values as written, held against the types that are wanted: all problems are collected, none is guessed away.

`Checker.struct` turns a tree (federation.config_yaml) into a msgspec Struct; `check_settings` holds free settings such
as `learner_config` against the signature of the constructor that will get them. Both judge a value by the same rules:
`true` is no number, `'8'` is no number, `010` and `12:30` are no number that two YAML readers agree on, NaN and
infinity are not finite, null stands only where it is allowed, a name is one of the known names.
"""

from __future__ import annotations

import difflib
import inspect
import math
import os
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from federation.config_secret import MASK, Secret, is_secret_name
from federation.config_yaml import (
    FALSE_WORDS,
    TRUE_WORDS,
    WORDS_FOR_TRUTH,
    Given,
    Node,
    Series,
    Table,
    Text,
    from_python,
    join,
    kind_of,
    parse_number,
    problem,
)

S = TypeVar("S", bound=msgspec.Struct)

_REFERENCE = "${env:"
_MAX_SHOWN = 80


@dataclass(frozen=True)
class Misfit:
    """Why a value does not fit, "" where the wanted type alone says it; and the name that may have been meant."""

    reason: str
    meant: str | None = None


def nearest(word: str, known: Collection[str]) -> str | None:
    """The known name that `word` was most likely meant to be, or None when none is near."""
    folded = {name.casefold(): name for name in sorted(known, reverse=True)}
    close = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=0.6)
    if close:
        return folded[close[0]]
    # `lr` for `client_lr`, `mlp` for `model.torch.mlp`
    parts = [name for name in sorted(known) if word.casefold() in name.casefold().replace(".", "_").split("_")]
    return parts[0] if len(parts) == 1 else None


def _likeness(word: str, name: str) -> float:
    return difflib.SequenceMatcher(None, word.casefold(), name.casefold()).ratio()


def suggestion(word: str, known: Collection[str]) -> str:
    """"; did you mean X?" where a known name is near, else ""."""
    name = nearest(word, known)
    return f"; did you mean {name}?" if name else ""


def shown(node: Node) -> str:
    """A value as it was written, shortened."""
    if isinstance(node, Table):
        return "a section"
    if isinstance(node, Series):
        return "a list"
    if isinstance(node, Text):
        if node.is_null:
            return node.text or "nothing"
        text = node.text if node.style == "plain" else repr(node.text)
    else:
        words = {None: "null", True: "true", False: "false"}
        text = words[node.value] if node.value is None or isinstance(node.value, bool) else repr(node.value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."


# -- what is wanted, in words ----------------------------------------------------------------------------------------

def unwrap(annotation: Any) -> tuple[Any, msgspec.Meta]:
    """An annotation's type and its msgspec.Meta (an empty one where there is none)."""
    if get_origin(annotation) is Annotated:
        base, *extras = get_args(annotation)
        for extra in extras:
            if isinstance(extra, msgspec.Meta):
                return base, extra
        return base, msgspec.Meta()
    return annotation, msgspec.Meta()


def members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the annotation alone."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def wanted(annotation: Any) -> str:
    """What a key takes, in words: "an integer, at least 1, or auto"."""
    base, meta = unwrap(annotation)
    if "component" in (meta.extra or {}):
        return "the registry name of a component, or package.module:Class"
    words = []
    for member in members(base):
        word = _wanted_one(member)
        if member in (int, float):
            word += _range_words(meta)
        words.append(word)
    last = words.pop()
    return ", or ".join([", ".join(words), last] if words else [last])


def _wanted_one(member: Any) -> str:
    member, meta = unwrap(member)
    origin = get_origin(member)
    if origin is Literal:
        return ("one of " if len(get_args(member)) > 1 else "") + ", ".join(str(value) for value in get_args(member))
    if _is_list(member):
        inner = [argument for argument in get_args(member) if argument is not Ellipsis]
        return "a list of " + wanted(inner[0]).removeprefix("an ").removeprefix("a ") if inner else "a list"
    if _is_mapping(member) or (isinstance(member, type) and issubclass(member, msgspec.Struct)):
        return "a section (keys and values)"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text", Secret: "text",
             type(None): "null"}
    return names.get(member, getattr(member, "__name__", str(member))) + _range_words(meta)


def _range_words(meta: msgspec.Meta) -> str:
    limits = (("at least", meta.ge), ("above", meta.gt), ("at most", meta.le), ("below", meta.lt))
    words = " and ".join(f"{word} {limit}" for word, limit in limits if limit is not None)
    return f", {words}" if words else ""


def _is_list(annotation: Any) -> bool:
    origin = get_origin(annotation) or annotation
    return isinstance(origin, type) and issubclass(origin, Sequence) and not issubclass(origin, str | bytes)


def _is_mapping(annotation: Any) -> bool:
    origin = get_origin(annotation) or annotation
    return isinstance(origin, type) and issubclass(origin, Mapping)


# -- one value -------------------------------------------------------------------------------------------------------

def fit(node: Node, annotation: Any) -> Any:
    """The value that `node` gives for a key of type `annotation`, or a Misfit. Lists and sections are for Checker."""
    if get_origin(annotation) is Literal:
        return _fit_literal(node, get_args(annotation))
    fitting = {type(None): _fit_null, bool: _fit_bool, int: _fit_int, float: _fit_float, str: _fit_text,
               Secret: _fit_secret}.get(annotation)
    return fitting(node) if fitting else Misfit("")


def _fit_null(node: Node) -> Misfit | None:
    return None if node.is_null else Misfit("")


def _fit_bool(node: Node) -> bool | Misfit:
    if isinstance(node, Given):
        return node.value if isinstance(node.value, bool) else Misfit(f"is {kind_of(node.value)}")
    if isinstance(node, Text):
        if node.style == "quoted":
            return Misfit("is text, in quotes")
        if node.text in TRUE_WORDS or node.text in FALSE_WORDS:
            return node.text in TRUE_WORDS
        if node.text in WORDS_FOR_TRUTH:
            return Misfit("is a truth value to some YAML readers and text to others")
    return Misfit("")


def _fit_number(node: Node) -> int | float | Misfit:
    if isinstance(node, Given):
        if isinstance(node.value, bool) or not isinstance(node.value, int | float):
            return Misfit(f"is {kind_of(node.value)}")
        return node.value
    if isinstance(node, Text):
        if node.style == "quoted":
            return Misfit("is text, in quotes")
        if node.text in WORDS_FOR_TRUTH:
            return Misfit("is a truth value")
        number, reason = parse_number(node.text)
        return Misfit(reason) if number is None else number
    return Misfit("")


def _fit_int(node: Node) -> int | Misfit:
    number = _fit_number(node)
    if isinstance(number, float):
        is_whole = abs(number) < 1e15 and number == int(number)
        return Misfit("is not an integer" + (f"; write {int(number)}" if is_whole else ""))
    return number


def _fit_float(node: Node) -> float | Misfit:
    number = _fit_number(node)
    if isinstance(number, Misfit):
        return number
    try:
        value = float(number)
    except OverflowError:
        return Misfit("is too large for a 64-bit float")
    if not math.isfinite(value):
        return Misfit("is not a finite number")
    return value if value == number else Misfit("has more digits than a 64-bit float can hold")


def _fit_text(node: Node) -> str | Misfit:
    if isinstance(node, Given):
        if not isinstance(node.value, str):
            return Misfit(f"is {kind_of(node.value)}")
        return _text(str(node.value))
    if not isinstance(node, Text) or node.is_null:
        return Misfit("")
    if node.style == "plain":
        if node.text in TRUE_WORDS | FALSE_WORDS:
            return Misfit("is a truth value; put it in quotes if it is meant as text")
        if parse_number(node.text)[0] is not None:
            return Misfit("is a number; put it in quotes if it is meant as text")
    return _text(node.text)


def _text(text: str) -> str | Misfit:
    if _REFERENCE in text:
        return Misfit("refers to the environment, which only keys, tokens and passwords do")
    return text if text else Misfit("is empty")


def _fit_secret(node: Node) -> Secret | Misfit:
    if isinstance(node, Given) and isinstance(node.value, Secret):
        return node.value
    text = node.value if isinstance(node, Given) else node.text if isinstance(node, Text) and not node.is_null else None
    if not isinstance(text, str):
        return Misfit("is no text")
    if text == MASK:
        return Secret(None)
    if text.startswith(_REFERENCE) and text.endswith("}"):
        name = text[len(_REFERENCE):-1]
        value = os.environ.get(name)
        return Secret(value, shown=text) if value else Misfit(f"refers to {name}, which the environment does not set")
    return Secret(text) if text else Misfit("is empty")


def _fit_literal(node: Node, allowed: tuple[Any, ...]) -> Any:
    if isinstance(node, Given):
        matching = [value for value in allowed if type(value) is type(node.value) and value == node.value]
        text = node.value
    elif isinstance(node, Text):
        text = node.text
        # A name takes the text as written: `off` is off, never False.
        matching = [value for value in allowed if value == text and not node.is_null]
        matching += [value for value in allowed if not isinstance(value, str) and fit(node, type(value)) == value]
    else:
        return Misfit("")
    if matching:
        return matching[0]
    if not isinstance(text, str):
        return Misfit(f"is {kind_of(text)}")
    return Misfit("is not known", nearest(text, [str(value) for value in allowed]))


# -- a whole configuration -------------------------------------------------------------------------------------------

class _Invalid:
    """Stands for a value that was refused."""


INVALID = _Invalid()


class Checker:
    """Collects `problems` while it converts; `places` says where each path was given, `failed` which were refused."""

    def __init__(self, problems: list[str] | None = None, source: str = "") -> None:
        self.problems = [] if problems is None else problems
        self.source = source
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

    def struct(self, node: Node, kind: type[S], path: str = "", elsewhere: Mapping[str, str] | None = None) -> S:
        """`node` as a `kind`: refused fields take their defaults, so that everything else can be checked as well.

        Nothing below a section's key means its defaults. `elsewhere` maps a key's last name to where it belongs.
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
                    self._unknown(key, path, fields, elsewhere or {})
                continue
            value = self.value(child, hints[fields[key]], where, elsewhere)
            if value is not INVALID:
                values[fields[key]] = value
        return kind(**values)

    def _unknown(self, key: str, path: str, known: Collection[str], elsewhere: Mapping[str, str]) -> None:
        here = nearest(key, known)
        there = key if key in elsewhere else nearest(key, elsewhere)
        near = {name: _likeness(key, name) for name in (here, there) if name}
        best_first = sorted(near, key=near.__getitem__, reverse=True)
        names = [name if name == here else elsewhere[name] for name in best_first]
        hint = f"; did you mean {' or '.join(names)}?" if names else ""
        self.report(join(path, key), f"unknown key{hint} (known here: {', '.join(known)})")

    def value(self, node: Node, annotation: Any, path: str, elsewhere: Mapping[str, str] | None = None) -> Any:
        """`node` as `annotation`, or INVALID after reporting why not."""
        base, meta = unwrap(annotation)
        alternatives = members(base)
        misfits: list[Misfit] = []
        for member in alternatives:
            if isinstance(member, type) and issubclass(member, msgspec.Struct):
                return self.struct(node, member, path, elsewhere)
            if _is_mapping(member) and not (node.is_null and type(None) in alternatives):
                return self.settings(node, path)
            if _is_list(member) and isinstance(node, Series):
                return self.series(node, member, path)
            value = self._fit(node, member, alternatives)
            if not isinstance(value, Misfit):
                if not _beyond(value, meta):
                    return value
                value = Misfit("is out of range")
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
        if _REFERENCE in node.text:
            self.report(path, f"{shown(node)} {_text(node.text).reason}")  # type: ignore[union-attr]
        return node.text


def _beyond(value: Any, meta: msgspec.Meta) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return not ((meta.ge is None or value >= meta.ge) and (meta.gt is None or value > meta.gt)
                and (meta.le is None or value <= meta.le) and (meta.lt is None or value < meta.lt))


# -- settings against a constructor ----------------------------------------------------------------------------------

def check_settings(component: Callable[..., object], settings: Mapping[str, object], path: str,
                   reserved: Collection[str] = ()) -> list[str]:
    """The problems with `settings` as keyword arguments of `component`, a class or function; [] when they fit.

    Names are held against its signature, values against those annotations that YAML can express: bool, int, float (an
    integer is one), str, Literal, None, and lists, tuples, mappings and unions of them. A parameter with another
    annotation, or none, takes any value. `reserved` are the parameters that the caller gives. Each problem starts with
    `path` and the name of the setting.
    """
    return [problem("", where, message) for where, message in settings_problems(component, settings, path, reserved)]


def settings_problems(component: Callable[..., object], settings: Mapping[str, object], path: str,
                      reserved: Collection[str] = ()) -> list[tuple[str, str]]:
    """As check_settings, each problem as its dotted path and its message."""
    name = getattr(component, "__qualname__", repr(component))
    parameters = inspect.signature(component).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    known = {key: p for key, p in parameters.items()
             if key not in reserved and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    hints = _hints(component)
    found: list[tuple[str, str]] = []
    for key, value in settings.items():
        where = join(path, key)
        if key in reserved and key in parameters:
            found.append((where, f"is given to {name} by the framework, not by the configuration"))
        elif key not in known:
            if not takes_any:
                names = ", ".join(known) or "no settings at all"
                found.append((where, f"unknown setting of {name}{suggestion(key, known)} (it takes: {names})"))
        elif _is_checkable(hints.get(key, object)):
            found += _value_problems(value, hints[key], where)
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in settings:
            found.append((join(path, key), f"is missing: {name} needs it"))
    return found


def _value_problems(value: object, annotation: Any, path: str) -> list[tuple[str, str]]:
    objects: list[str] = []
    node = from_python(value, path, "", objects)
    if objects:
        return [(path, text.removeprefix(f"{path}: ")) for text in objects]
    if isinstance(node, Given) and isinstance(node.value, Secret) and Secret not in members(unwrap(annotation)[0]):
        node = Given(MASK if node.value.is_masked else node.value.reveal(), "")
    checker = Checker()
    checker.value(node, annotation, path)
    return [(path, text.removeprefix(f"{path}: ")) for text in checker.problems]


def _hints(component: Callable[..., object]) -> dict[str, Any]:
    """The annotations of a constructor or function; {} where they name types that only a type checker sees."""
    function = component.__init__ if isinstance(component, type) else component  # type: ignore[misc]
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}


def _is_checkable(annotation: Any) -> bool:
    """Whether YAML can express all that `annotation` allows."""
    base, _ = unwrap(annotation)
    if get_origin(base) in (Union, types.UnionType):
        return all(_is_checkable(member) for member in get_args(base))
    if get_origin(base) is Literal or base in (bool, int, float, str, type(None), Secret):
        return True
    if _is_mapping(base):
        return True
    if _is_list(base):
        return all(argument is Ellipsis or _is_checkable(argument) for argument in typing.get_args(base))
    return False
