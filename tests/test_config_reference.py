"""The documents of the configuration say what the code says."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import yaml

from federation import component_reference
from federation.builtin.table import COMPONENTS
from federation.config import Config, load_config, load_config_from_dict
from federation.config_reference import EXAMPLE, entries, example, keys_for_help, markdown

ROOT = Path(__file__).resolve().parents[1]


def _paths(mapping, path=""):
    for key, value in mapping.items():
        where = f"{path}.{key}" if path else key
        yield where
        if isinstance(value, dict):
            yield from _paths(value, where)


@pytest.mark.parametrize(("name", "text"), [("docs/configuration.md", markdown()),
                                            ("federation/examples/config.yaml", example())])
def test_documents_are_current(name, text):
    assert (ROOT / name).read_text(encoding="utf-8") == text, "run python -m federation.config_reference"


def test_every_key_is_in_every_document():
    paths = set(_paths(Config().to_dict()))
    assert {entry.path for entry in entries()} == paths
    page, terminal = markdown(), keys_for_help()
    written = {*_paths(yaml.safe_load(example())),
        "output_dir"} - {f"learner_config.{key}" for key in EXAMPLE["learner_config"]}
    assert written == paths
    for path in paths:
        assert f"| `{path.rpartition('.')[2]}` |" in page
    for entry in entries():
        assert entry.is_section or f"  {entry.path}: " in terminal


def test_every_key_says_what_it_means():
    for entry in entries():
        assert entry.description.endswith("."), entry.path
        assert entry.wanted, entry.path


def test_the_reference_file_runs_as_no_file_does():
    """Its values are the defaults, and those of the built-in example."""
    pytest.importorskip("torch")
    commented = load_config(ROOT / "federation/examples/config.yaml")
    built_in = load_config()
    assert msgspec.structs.replace(commented, output_dir=built_in.output_dir) == built_in
    assert (commented.output_dir, built_in.output_dir) == ("runs/config", "runs/example")
    assert built_in.learner_config == EXAMPLE["learner_config"]
    assert msgspec.structs.replace(built_in, learner_config={}, output_dir="runs/run") == load_config_from_dict({})


def test_the_page_of_components_is_current():
    """Every built-in component is on it, with its settings."""
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    text = component_reference.markdown()
    assert (ROOT / "docs/components.md").read_text(encoding="utf-8") == text, "run python -m federation.component_reference"
    assert all(f"### `{name}`" in text for name in COMPONENTS)
