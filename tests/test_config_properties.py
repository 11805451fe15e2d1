"""Properties of configurations, over many random ones."""

from __future__ import annotations

import math
import random

import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from federation.config import Config, dump_config, load_config, load_config_from_dict
from federation.config_reference import entries
from federation.config_schema import Section
from federation.config_secret import is_secret_name
from federation.config_value import parse_number
from federation.config_yaml import read_yaml
from federation.errors import ConfigError

PLAIN = "tests.config_parts:PlainLearner"
# Every character but surrogates, which no file can hold.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NUMBERS = st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXT
KEYS = TEXT.filter(lambda key: not is_secret_name(key))
FREE = st.dictionaries(KEYS, st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3)
                                          | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8), max_size=4)
NAMES = TEXT.filter(bool)

CONFIGS = st.fixed_dictionaries({"components": st.just({"learner": PLAIN})}, optional={
    "seed": st.integers(0, 2**63 - 1), "num_clients": st.integers(5, 10**6),
    "mode": st.sampled_from(["auto", "serial", "mpi"]),
    "threads": st.integers(1, 64) | st.just("auto"), "client_id": st.integers(0, 99) | NAMES,
    "overwrite": st.booleans(),
    "output_dir": NAMES, "tracker": st.sampled_from(["none", "auto", "tensorboard", "wandb"]),
    "learner_config": FREE.map(lambda extra: {"extra": extra}),
    "trainer_config": st.fixed_dictionaries({}, optional={
        "fraction": st.none() | st.floats(0, 1, exclude_min=True), "max_rounds": st.integers(1, 10**9),
        "round_timeout": st.none() | st.integers(1, 10**6) | st.floats(1e-300, 1e300)}),
    "checkpoint": st.fixed_dictionaries({}, optional={"async": st.booleans(), "keep": st.integers(1, 9)}),
    "data": st.fixed_dictionaries({"root": st.none() | NAMES},
    optional={"test_fraction": st.floats(0, 1, exclude_max=True)}),
})


@settings(max_examples=80, deadline=None)
@example({"components": {"learner": PLAIN}, "output_dir": "\x85", "data": {"root": "a\u2028 \n \tb\r\n"}})
@given(CONFIGS)
def test_round_trip(tmp_path_factory, mapping):
    """What a configuration is written as is read back the same, by us and by a YAML 1.1 reader."""
    config = load_config_from_dict(mapping, name="c")
    text = dump_config(config)
    path = tmp_path_factory.mktemp("configs") / "c.yaml"
    path.write_text(text, encoding="utf-8", newline="")
    assert load_config(path) == config
    assert load_config_from_dict(config.to_dict()) == config
    assert load_config_from_dict(yaml.safe_load(text)) == config
    if "learner_config" in mapping:
        assert config.learner_config == mapping["learner_config"]
    assert load_config(path).digest() == config.digest()


PATHS = sorted(entry.path for entry in entries() if entry.is_section)


def _typo(word, rng):
    """`word` with one letter dropped, doubled, changed or swapped."""
    at = rng.randrange(len(word))
    other = rng.choice([c for c in "abcdefghijklmnopqrstuvwxyz" if c != word[at]])
    swapped = word[:at] + word[at + 1: at + 2] + word[at] + word[at + 2:]
    return rng.choice([word[:at] + word[at + 1:], word[:at] + word[at] + word[at:], word[:at] + other + word[at + 1:],
        swapped])


def _one_letter_apart(one: str, other: str) -> bool:
    """A letter more, less, or another, or two that have changed places."""
    while one and other and one[0] == other[0]:
        one, other = one[1:], other[1:]
    while one and other and one[-1] == other[-1]:
        one, other = one[:-1], other[:-1]
    return max(len(one), len(other)) <= 1 or (len(one) == 2 and one == other[::-1])


def _fields(path):
    section: Section = Config()
    for name in path.split(".") if path else []:
        section = getattr(section, name)
    return list(section.to_dict())


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["", *PATHS]), st.randoms(use_true_random=False))
def test_typos_are_refused_with_the_right_suggestion(path, rng: random.Random):
    """S-CONF-04: one wrong letter, in any key, at any depth."""
    fields = _fields(path)
    key = rng.choice([name for name in fields if len(name) > 3])
    typo = _typo(key, rng)
    assume(typo not in fields)
    mapping: dict[str, object] = {typo: None}
    for name in reversed(path.split(".") if path else []):
        mapping = {name: mapping}
    with pytest.raises(ConfigError) as caught:
        load_config_from_dict(mapping)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}.{typo}: unknown key; " if path else f"{typo}: unknown key; ")
    meant = problem.partition("did you mean ")[2].partition("?")[0].split(" or ")
    # `tokes` may mean `token` as well as `tokens`.
    assert key in meant or any(name in fields and _one_letter_apart(typo, name) for name in meant)


@given(NUMBERS)
def test_numbers_as_python_writes_them_are_read(number):
    assert parse_number(repr(number)) == (number, "")


@given(st.from_regex(r"[-+]?[0-9]{1,4}(\.[0-9]{0,3})?([eE][-+]?[0-9]{1,3})?", fullmatch=True))
def test_a_number_is_read_as_python_reads_it_or_refused_with_a_reason(text):
    """S-CONF-01: against the float() of Python, which knows no octal and no base 60."""
    number, reason = parse_number(text)
    value = float(text)
    if number is None:
        assert reason
        digits = text.lstrip("+-").lower().partition("e")[0]
        has_leading_zero = len(digits.partition(".")[0]) > 1 and digits.startswith("0")
        assert has_leading_zero or math.isinf(value) or value == 0
    else:
        assert reason == ""
        assert number == value
        assert isinstance(number, int) is text.lstrip("+-").isdigit()


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("ab:-[]{}&*!|>'\"%@`,#?\n\t 10.<~"), max_size=30) | st.text(max_size=30))
def test_any_text_is_read_or_refused(text):
    """No text makes the reader raise anything: it gives a tree, or problems with the file's name."""
    _, problems = read_yaml(text, "c.yaml")
    assert all(problem.startswith("c.yaml") for problem in problems)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from([*_fields(""), "x"]), st.recursive(
    SCALARS | st.floats(), lambda inner: st.lists(inner, max_size=2)
    | st.dictionaries(st.sampled_from(["max_rounds", "name", "address", "a"]), inner, max_size=2), max_leaves=5),
        max_size=4))
def test_any_mapping_is_taken_or_refused_with_its_keys(mapping):
    """S-CONF-05: never another exception, and every problem names a key that was given or should have been."""
    mapping.pop("plugins", None)  # names of modules to import
    config, problems = _load(mapping)
    known = {*_fields(""), "x"}
    assert {problem.partition(":")[0].partition(".")[0].partition("[")[0] for problem in problems} <= known
    assert (config is None) == bool(problems)
    if config is not None:
        assert load_config_from_dict(config.to_dict()) == config


def _load(mapping):
    """The configuration, or None and its problems."""
    try:
        return load_config_from_dict(mapping), []
    except ConfigError as refusal:
        return None, refusal.problems
