"""Names of components: known without an import, resolved on demand, refused with the nearest name."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

import federation.registry.registry as module
from federation.builtin.table import COMPONENTS
from federation.core.aggregator import Aggregator
from federation.core.model import Model
from federation.errors import ConfigError
from federation.registry import Registry, load_plugins
from tests.config_parts import NeedyAggregator, PlainLearner, PlainModel, Unrelated

PARTS = "tests.config_parts"


@pytest.fixture
def registry():
    return Registry({"federated.aggregator.fedavg": f"{PARTS}:NeedyAggregator",
        "federated.learner.default": f"{PARTS}:PlainLearner",
                     "model.numpy.linear": f"{PARTS}:PlainModel", "model.torch.gone": "tests.nowhere:Gone"})


@pytest.fixture
def entry_points(monkeypatch):
    """Announces entry points as an installed distribution does."""
    def announce(**points):
        found = [importlib.metadata.EntryPoint(name.replace("__", "."), value, "federation.components")
                 for name, value in points.items()]
        monkeypatch.setattr(importlib.metadata, "entry_points",
            lambda group: found if group == "federation.components" else [])
    return announce


def test_the_table_names_classes_by_place():
    for name, place in COMPONENTS.items():
        assert module._NAME.fullmatch(name)
        assert module._PLACE.fullmatch(place)
        assert place.startswith("federation.builtin.")


def test_nothing_is_imported_to_be_known():
    code = """
        import sys
        from federation.registry.registry import registry
        assert "model.torch.mlp" in registry.names("model")
        assert registry.name_problem("model.torch.mlp", "model") is None
        assert registry.name_problem("model.torch.mpl", "model")
        heavy = ("torch", "sklearn", "mpi4py", "numpy", "federation.builtin.")
        loaded = [name for name in sys.modules if name.startswith(heavy)]
        assert loaded == ["federation.builtin.table"], loaded
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60)


def test_a_name_resolves_to_its_class(registry):
    assert registry.resolve("federated.learner.default", "learner") is PlainLearner
    assert registry.resolve("model.numpy.linear") is PlainModel
    assert registry.resolve(f"{PARTS}:NeedyAggregator", "aggregator") is NeedyAggregator


def test_a_decorated_class_is_known(registry):
    @registry.register("custom.aggregator.mine")
    class Mine(NeedyAggregator):
        pass

    assert registry.resolve("custom.aggregator.mine", "aggregator") is Mine
    assert "custom.aggregator.mine" in registry.names("aggregator")
    assert "custom.aggregator.mine" not in registry.names("model")


def test_names_are_free(registry):
    """A user's name need not say its kind; the class does."""
    registry.register("mine")(NeedyAggregator)
    assert registry.resolve("mine", "aggregator") is NeedyAggregator
    assert "is an aggregator, where a learner is wanted" in registry.name_problem("mine", "learner")
    registry.register("lab.model.averager")(NeedyAggregator)
    assert registry.resolve("lab.model.averager", "aggregator") is NeedyAggregator


def test_a_name_is_given_once(registry):
    registry.register("a.model.x")(PlainModel)
    registry.register("a.model.x")(PlainModel)
    with pytest.raises(ConfigError, match=r"tests\.config_parts:PlainModel has; choose another"):
        registry.register("a.model.x")(PlainLearner)
    with pytest.raises(ConfigError, match="NeedyAggregator has"):
        registry.register("federated.aggregator.fedavg")(PlainLearner)
    assert registry.resolve("a.model.x") is PlainModel


def test_a_class_of_a_module_imported_anew_replaces_itself(registry):
    def define():
        class Mine(NeedyAggregator):
            pass
        return registry.register("custom.aggregator.mine")(Mine)

    first, second = define(), define()
    assert first is not second
    assert registry.resolve("custom.aggregator.mine") is second


@pytest.mark.parametrize("name", ["", "a b", "a:b", ".a", "a.", "a..b", 3, None])
def test_names_are_words_with_dots(registry, name):
    with pytest.raises(ConfigError, match="words joined by dots"):
        registry.register(name)


def test_only_classes_are_registered(registry):
    with pytest.raises(ConfigError, match="decorates classes"):
        registry.register("a.b")(lambda: None)


@pytest.mark.parametrize(("name", "kind", "meant"), [
    ("federated.agregator.fedavg", "aggregator", "federated.aggregator.fedavg"),
    ("federated.aggregator.fedavgg", "aggregator", "federated.aggregator.fedavg"),
    ("fedavg", "aggregator", "federated.aggregator.fedavg"),
    ("linear", "model", "model.numpy.linear"),
    ("federated.learner.defalt", None, "federated.learner.default"),
])
def test_unknown_names_suggest_the_nearest_of_their_kind(registry, name, kind, meant):
    with pytest.raises(ConfigError, match=f"did you mean {meant}\\?"):
        registry.resolve(name, kind)


def test_suggestions_are_of_the_kind_that_is_wanted(registry):
    with pytest.raises(ConfigError) as caught:
        registry.resolve("federated.learner.fedavg", "learner")
    assert "federated.aggregator" not in str(caught.value)


@pytest.mark.parametrize(("name", "kind"), [
    ("federated.learner.default", "aggregator"), (f"{PARTS}:PlainLearner", "aggregator"),
    (f"{PARTS}:PlainModel", "trainer"),
    ("model.numpy.linear", "learner"), (f"{PARTS}:Unrelated", "model"),
])
def test_a_component_of_another_kind_is_refused(registry, name, kind):
    with pytest.raises(ConfigError, match=f"an? {kind} is wanted"):
        registry.resolve(name, kind)


def test_an_unknown_kind(registry):
    with pytest.raises(ConfigError, match=r"did you mean learner\?"):
        registry.resolve(f"{PARTS}:PlainLearner", "lerner")


@pytest.mark.parametrize(("name", "words"), [
    (f"{PARTS}:PlainLerner", "has no class PlainLerner; did you mean PlainLearner?"),
    (f"{PARTS}:NOT_A_CLASS", "is not a class but int"),
    ("tests.nowhere:Gone", "there is no module 'tests.nowhere'"),
    ("model.torch.gone", "there is no module 'tests.nowhere'"),
    ("no-module:Class", "package.module:Class"), ("a:", "package.module:Class"), (":A", "package.module:Class"),
    ("a:b:c", "package.module:Class"), ("../a:B", "package.module:Class"),
])
def test_places_that_hold_no_class(registry, name, words):
    with pytest.raises(ConfigError) as caught:
        registry.resolve(name)
    assert words in str(caught.value)
    assert name in str(caught.value)


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    """S-PKG-01: one message with the extra to install, the original error chained."""
    (tmp_path / "needs_torch.py").write_text("import torch\nclass Net: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match=r"pip install 'federation-hpc\[torch\]'") as caught:
        Registry({"model.torch.net": "needs_torch:Net"}).resolve("model.torch.net")
    assert "model.torch.net" in str(caught.value)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_the_extras_exist():
    project = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(module._EXTRAS.values()) <= set(project["project"]["optional-dependencies"])


def test_a_broken_package_keeps_its_own_error(tmp_path, monkeypatch):
    """S-PKG-01: a package that raises something else on import."""
    (tmp_path / "broken_part.py").write_text("raise RuntimeError('cannot load MPI library')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="RuntimeError: cannot load MPI library") as caught:
        Registry({}).resolve("broken_part:Thing")
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_entry_points_answer_on_a_miss(registry, entry_points):
    entry_points(lab__model__net=f"{PARTS}:PlainModel", federated__learner__default="tests.nowhere:Other")
    assert registry.resolve("lab.model.net", "model") is PlainModel
    assert registry.resolve("federated.learner.default") is PlainLearner, "the table goes first"
    assert "lab.model.net" in registry.names("model")


def test_plugins_register_components(tmp_path, monkeypatch):
    """A module by name and a file by path; a file is imported once."""
    (tmp_path / "plug_module.py").write_text("NAME = 'module'\n")
    counting = "import builtins\nbuiltins.plugin_runs = getattr(builtins, 'plugin_runs', 0) + 1\n"
    (tmp_path / "torch.py").write_text(counting)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    import builtins

    first = load_plugins(["plug_module", "torch.py"])
    second = load_plugins([str(tmp_path / "torch.py")])
    try:
        assert first[0].NAME == "module"
        assert first[1] is second[0]
        assert builtins.plugin_runs == 1
        assert first[1].__name__.startswith("federation_plugin_torch_"), "a file does not shadow a package"
    finally:
        del builtins.plugin_runs, sys.modules[first[1].__name__], sys.modules["plug_module"]


@pytest.mark.parametrize(("name", "text", "words"), [
    ("absent.py", None, "there is no file"),
    ("absent_module_xyz", None, "there is no module 'absent_module_xyz'"),
    ("../absent", None, "neither a module's name"),
    (".absent", None, "neither a module's name"),
    ("raises.py", "1 / 0", "ZeroDivisionError"),
    ("broken.py", "def :", "SyntaxError"),
    ("script.py", "import sys; sys.exit()", "it ends the program (SystemExit)"),  # else a run that did nothing, and status 0
    ("needs.py", "import nowhere_at_all", "there is no module 'nowhere_at_all'"),
])
def test_plugins_that_fail_are_named(tmp_path, monkeypatch, name, text, words):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_plugins([name])
    assert f"plugin {name!r}" in str(caught.value)
    assert words in str(caught.value)
    assert not [key for key in sys.modules if key.startswith(f"federation_plugin_{name.removesuffix('.py')}_")]


def test_a_module_that_ends_the_program_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "script_of_a_test.py").write_text("import sys; sys.exit(0)")
    for call in (lambda: load_plugins(["script_of_a_test"]), lambda: Registry().resolve("script_of_a_test:Model", "model")):
        with pytest.raises(ConfigError, match=r"script_of_a_test.* cannot be imported: it ends the program .*__main__"):
            call()


def test_bases_are_the_core_classes():
    assert module._base("aggregator") is Aggregator
    assert module._base("model") is Model
    assert not issubclass(Unrelated, (Aggregator, Model))
