"""The reader: what is written is what is read, and nothing in a file makes an object."""

from __future__ import annotations

import enum

import pytest

from federation.config_value import parse_number
from federation.config_yaml import Given, Series, Table, Text, from_python, overlay, read_yaml


def texts(node):
    """The tree as plain text, for comparison."""
    if isinstance(node, Table):
        return {key: texts(value) for key, value in node.entries.items()}
    if isinstance(node, Series):
        return [texts(item) for item in node.items]
    return node.text if isinstance(node, Text) else node.value


@pytest.mark.parametrize(("text", "value"), [
    ("1e-3", 0.001), ("1E5", 100000.0), ("1.e3", 1000.0), ("0", 0), ("-7", -7), ("+7", 7), ("0.5", 0.5), (".5", 0.5),
    ("5.", 5.0), ("1e+3", 1000.0), ("1e-05", 1e-5), ("-1.5E-2", -0.015), ("0e0", 0.0),
    ("123456789012345678901", 123456789012345678901),
    ("5e-324", 5e-324), ("1.7976931348623157e308", 1.7976931348623157e308),
])
def test_numbers_are_read_whatever_their_form(text, value):
    """S-CONF-01: exponents without a dot, and dots without digits, are numbers."""
    number, reason = parse_number(text)
    assert (number, type(number), reason) == (value, type(value), "")


@pytest.mark.parametrize(("text", "word"), [
    ("010", "leading zero"), ("08080", "leading zero"), ("-010", "leading zero"), ("00", "leading zero"),
    ("01.5", "leading zero"), ("00e1", "leading zero"), ("12:30", "sexagesimal"), ("1:00:00", "sexagesimal"),
    ("-1:30", "sexagesimal"),
    ("12:30.5", "sexagesimal"), ("190:20:30", "sexagesimal"), ("0x1F", "decimal"), ("0o17", "decimal"),
    ("0b11", "decimal"),
    ("-0x1F", "decimal"), ("1_000", "underscore"), ("1_000.5", "underscore"), ("0_1", "underscore"),
    (".inf", "finite"), ("-.INF", "finite"),
    (".NaN", "finite"), ("1e400", "too large"), ("1e-400", "too small"), ("9" * 500, "too long"),
])
def test_doubtful_numbers_carry_their_reason(text, word):
    """S-CONF-01: what YAML readers disagree about, or what no float can hold, is refused with the reason."""
    number, reason = parse_number(text)
    assert number is None
    assert word in reason


@pytest.mark.parametrize("text", ["abc", "", "-", ".", "e5", "1e", "1.2.3", "1,5", "٣", "1 2", "--1", "127.0.0.1",
    "v10"])
def test_other_text_is_no_number(text):
    assert parse_number(text) == (None, "")


def test_text_quotes_and_lines_are_kept():
    node, problems = read_yaml("a: yes\nb:\n  - '8'\n  - 010\n", "c.yaml")
    assert problems == []
    assert texts(node) == {"a": "yes", "b": ["8", "010"]}
    assert node.places["b"] == "c.yaml:2"
    quoted, plain = node.entries["b"].items
    assert (quoted.style, quoted.place, plain.style, plain.place) == ("quoted", "c.yaml:3", "plain", "c.yaml:4")


@pytest.mark.parametrize(("text", "path", "first", "second"), [
    ("seed: 5\nmode: auto\nseed: 50\n", "seed", 1, 3),
    ("learner_config:\n  client_lr: 1\n  client_lr: 2\n", "learner_config.client_lr", 2, 3),
    ("a:\n  - x: 1\n    x: 1\n", "a[0].x", 2, 3),
    ("a: {b: {c: 1,\n c: 2}}\n", "a.b.c", 1, 2),
    ("a: 1\n'a': 2\n", "a", 1, 2),
    ("b: &b {x: 1}\na: {<<: *b,\n <<: *b}\n", "a.<<", 2, 3),
])
def test_a_key_given_twice_is_named_with_both_lines(text, path, first, second):
    """S-CONF-03: at any depth, the message has the path and both lines."""
    _, problems = read_yaml(text, "c.yaml")
    assert len(problems) == 1
    assert problems[0].startswith(f"c.yaml:{second}: {path}: given twice")
    assert f"line {first} " in problems[0]
    assert f"line {second};" in problems[0]


def test_every_key_given_twice_is_found():
    _, problems = read_yaml("a: 1\na: 2\nb: {c: 1, c: 2}\na: 3\n", "c.yaml")
    assert len(problems) == 3


def test_merge_keys_yield_to_the_keys_beside_them():
    """S-CONF-03: an anchor merged with << and one key overridden is accepted; of two merged, the earlier counts."""
    node, problems = read_yaml("b: &b {x: 1, y: 2}\nc: &c {y: 3, z: 4}\n"
                               "one:\n  <<: *b\n  x: 9\ntwo:\n  x: 9\n  <<: [*b, *c]\n", "c.yaml")
    assert problems == []
    assert texts(node)["one"] == {"x": "9", "y": "2"}
    assert texts(node)["two"] == {"x": "9", "y": "2", "z": "4"}


def test_shelves_are_keys_whose_anchor_is_used_behind_them():
    node, _ = read_yaml("a: &a {x: 1}\nb: {y: *a}\nc: &c [*a]\nd: [&d 1, *d]\ne: *a\nf:\n  g: &g 1\nh: *g\n", "c.yaml")
    assert node.shelves == {"a", "f"}


@pytest.mark.parametrize("text", ["a: {<<: 3}", "a: {<<: [3]}"])
def test_only_sections_can_be_merged(text):
    _, problems = read_yaml(text, "c.yaml")
    assert "merge key" in problems[0]


@pytest.mark.parametrize("text", [
    "a: !!python/object/apply:os.system ['touch MARK']", "a: !!python/name:os.system ''",
    "!!python/object/new:dict [[]]",
    "a: !mine 1", "a: !!int '5'", "a: !!binary aGk=", "? !!python/tuple [1]\n: 2", "a: !!set {x}",
    "a: !!timestamp 2001-01-01",
    "a: [1, !!python/object/apply:os.getcwd []]", "a: &x !!python/object/apply:os.getcwd []\nb: *x",
])
def test_tags_are_refused(text, tmp_path, monkeypatch):
    """S-SEC-01: no tag makes an object, at any depth, as a key or behind an alias."""
    monkeypatch.chdir(tmp_path)
    _, problems = read_yaml(text, "c.yaml")
    assert problems
    assert list(tmp_path.iterdir()) == []


def test_the_text_tag_is_text():
    node, problems = read_yaml("a: !!str 8", "c.yaml")
    assert problems == []
    assert node.entries["a"].style == "quoted"


@pytest.mark.parametrize(("text", "line", "word"), [
    ("seed: 1\ntrainer_config:\n\tmax_rounds: 5\n", 3, "tab"),
    ("\tseed: 1\n", 1, "tab"),
    ("seed: 1\nmode: [a\nb: 2\n", 3, "syntax"),
    ("seed: 1\n  mode: auto\n", 2, "syntax"),
    ("seed: 'abc\n", 2, "syntax"),
    ("seed: *nowhere\n", 1, "undefined alias"),
    ("seed: 1\n---\nseed: 2\n", 2, "document"),
    ("seed: @1\n", 1, "syntax"),
    ("{seed: 1\n", 2, "syntax"),
])
def test_bad_syntax_is_one_message_with_file_and_line(text, line, word):
    """S-CONF-05: tabs and broken text are named with their line."""
    node, problems = read_yaml(text, "c.yaml")
    assert node is None
    assert len(problems) == 1
    assert problems[0].startswith(f"c.yaml:{line}: ")
    assert word in problems[0]


def test_characters_that_yaml_excludes():
    node, problems = read_yaml("a: \x07", "c.yaml")
    assert node is None
    assert problems == ["c.yaml: is not YAML text: special characters are not allowed"]


def test_syntax_messages_never_repeat_the_text():
    """S-SEC-05: the line that a message is about may hold a secret."""
    for text in ("tracker: {api_key: SECRET123", "api_key: 'SECRET123", "api_key: SECRET123: x", "\tapi_key: SECRET123",
                 "a: !SECRET {b: SECRET123}"):
        _, problems = read_yaml(text, "c.yaml")
        assert problems
        assert "SECRET123" not in "".join(problems)


@pytest.mark.parametrize("text", ["? [a, b]\n: 1", "? {a: 1}\n: 1", "?\n: 1", "a: {? : 1}"])
def test_keys_are_words(text):
    _, problems = read_yaml(text, "c.yaml")
    assert len(problems) == 1
    assert "key" in problems[0]


def test_a_value_that_contains_itself():
    _, problems = read_yaml("a: &a\n  b: *a\n", "c.yaml")
    assert problems == ["c.yaml:1: a.b: contains itself (an alias inside the value that its anchor names)"]


def test_aliases_cannot_blow_up():
    """S-SEC-01: a page of aliases of aliases is refused before it fills the memory."""
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
    _, problems = read_yaml(text, "c.yaml")
    assert problems
    assert all("expand" in problem for problem in problems)


def test_nesting_is_bounded():
    _, problems = read_yaml("[" * 3000, "c.yaml")
    assert problems == ["c.yaml: is nested too deeply"]


def test_overlay_merges_sections_and_replaces_the_rest():
    below, _ = read_yaml("a: {x: 1, y: {z: 1}}\nb: [1, 2]\n", "low")
    above, _ = read_yaml("a: {y: {w: 2}}\nb: [3]\nc: 4\n", "high")
    both = overlay(below, above)
    assert texts(both) == {"a": {"x": "1", "y": {"z": "1", "w": "2"}}, "b": ["3"], "c": "4"}
    assert both.places["b"] == "high:2"


def test_python_objects_are_named_with_key_and_type():
    """S-LIFE-05: a lambda in a configuration is refused with its key, at any depth."""
    problems: list[str] = []
    from_python({"learner_config": {"transforms": [1, lambda x: x]}, "a": object(), "b": {1, 2}, 3: 4, "c": print,
                 "d": 1j, "e": b"x"}, "", "", problems)
    assert len(problems) == 7
    assert problems[0].startswith("learner_config.transforms[1]: the function test_python_objects")
    assert "<lambda>" in problems[0]
    assert __file__ in problems[0]
    assert problems[1].startswith("a: an object of type object ")
    assert problems[2].startswith("b: an object of type set ")
    assert problems[3].startswith("the key 3 ")


def test_python_scalars_become_plain():
    import numpy as np

    problems: list[str] = []
    tree = from_python({"a": np.int64(5), "b": np.float64(0.5), "c": np.bool_(True), "d": np.str_("x"), "e": (1, 2)},
        "", "",
                       problems)
    assert problems == []
    assert texts(tree) == {"a": 5, "b": 0.5, "c": True, "d": "x", "e": [1, 2]}
    assert [type(tree.entries[key].value) for key in "abcd"] == [int, float, bool, str]


def test_members_of_enumerations_are_their_values():
    """str() of a member is "Optimizer.SGD", which would be taken as it is in a free section."""
    optimizer = enum.Enum("Optimizer", {"SGD": "sgd"}, type=str)
    size = enum.IntEnum("Size", {"SMALL": 3})
    problems: list[str] = []
    tree = from_python({"a": optimizer.SGD, "b": size.SMALL}, "", "", problems)
    assert problems == []
    assert texts(tree) == {"a": "sgd", "b": 3}
    assert [type(tree.entries[key].value) for key in "ab"] == [str, int]


def test_a_mapping_that_contains_itself():
    mapping: dict[str, object] = {}
    mapping["a"] = [mapping]
    problems: list[str] = []
    assert isinstance(from_python(mapping, "", "", problems).entries["a"].items[0], Given)
    assert problems == ["a[0]: contains itself"]
