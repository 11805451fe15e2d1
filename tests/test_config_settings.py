"""Settings of components against the signature of their constructors."""

from __future__ import annotations

import inspect
from typing import Literal

import pytest

from federation.config import Secret, check_settings
from federation.config_settings import setting_parameters
from federation.config_value import nearest
from federation.core.learner import Learner
from tests.config_parts import NeedyAggregator, PlainLearner, PlainModel

RESERVED = ("model", "data")


def check(**settings):
    return check_settings(PlainLearner, settings, "learner_config", RESERVED)


@pytest.mark.parametrize("settings", [
    {}, {"client_lr": 0.1}, {"client_lr": 1}, {"local_epochs": 3}, {"local_steps": None}, {"local_steps": 4},
    {"nesterov": True}, {"optimizer": "adam"}, {"betas": [0.5, 1]}, {"betas": (0.5, 0.9)}, {"milestones": []},
    {"milestones": [1, 2]}, {"note": "x"}, {"note": ""}, {"extra": {"a": [1, {"b": None}]}}, {"extra": None},
    {"api_key": Secret("x")},
    {"schedule": "cosine"},
])
def test_settings_that_fit(settings):
    assert check(**settings) == []


@pytest.mark.parametrize("settings", [
    {"client_lr": "0.1"}, {"client_lr": True}, {"client_lr": None}, {"client_lr": float("nan")},
    {"client_lr": float("inf")},
    {"client_lr": [0.1]}, {"local_epochs": 1.0}, {"local_epochs": 1.5}, {"local_epochs": True}, {"local_epochs": None},
    {"local_epochs": 2**63},
    {"local_epochs": "3"}, {"local_steps": "none"}, {"nesterov": 1}, {"nesterov": "yes"}, {"nesterov": "true"},
    {"optimizer": "adm"}, {"optimizer": None}, {"betas": [0.5]}, {"betas": [0.5, 0.9, 0.99]}, {"betas": [0.5, "x"]},
    {"betas": 0.5}, {"betas": "ab"}, {"milestones": [1, 2.5]}, {"milestones": 3}, {"milestones": "12"}, {"note": 3},
    {"note": None}, {"extra": [1]}, {"extra": "x"}, {"schedule2": 1}, {"model": "x"}, {"data": None},
    {"extra": {"f": lambda: 1}},
])
def test_settings_that_do_not_fit(settings):
    """S-CONF-04, S-CONF-05: a component's own settings are as strict as the rest."""
    (name,) = settings
    (found,) = check(**settings)
    assert found.startswith(f"learner_config.{name}")


def test_messages_name_value_wanted_and_nearest():
    assert check(optimizer="adm") == ["learner_config.optimizer: 'adm' is not known: wanted is one of sgd, adam; "
                                      "did you mean adam?"]
    assert check(client_lr="fast") == ["learner_config.client_lr: 'fast' is text: wanted is a number"]
    (found,) = check(lr=0.1)
    assert found.startswith("learner_config.lr: unknown setting of PlainLearner; did you mean client_lr?")
    assert "local_steps" in found
    assert check(model=1) == ["learner_config.model: is given to PlainLearner by the framework, not by the "
                              "configuration"]


def test_all_problems_are_listed():
    assert len(check(lr=1, local_epochs="2", model=3, client_lr=0.1)) == 3


def test_what_is_needed_is_named():
    assert check_settings(NeedyAggregator, {}, "aggregator_config") == [
        "aggregator_config.strength: is missing: NeedyAggregator needs it"]
    assert check_settings(NeedyAggregator, {"strength": 1}, "aggregator_config") == []


def test_components_without_settings():
    (found,) = check_settings(PlainModel, {"size": 3}, "model_config")
    assert "it takes: no settings at all" in found


def test_functions_and_open_signatures():
    def partition(labels, num_clients, rng_seed, *, alpha: float = 0.5, **rest: object) -> None: ...

    assert check_settings(partition, {"alpha": 1, "other": "x"}, "p", ("labels", "num_clients", "rng_seed")) == []
    assert len(check_settings(partition, {"alpha": "x"}, "p", ("labels", "num_clients", "rng_seed"))) == 1


def test_annotations_that_cannot_be_evaluated_do_not_count():
    def make(a: Nowhere = 1, b: int = 2) -> None: ...  # noqa: F821

    assert check_settings(make, {"a": "x", "b": 3}, "p") == []
    assert len(check_settings(make, {"c": 3}, "p")) == 1


@pytest.mark.parametrize(("word", "known", "name"), [
    ("lr", ["client_lr", "server_momentum"], "client_lr"),
    ("lr", ["client_lr", "server_lr"], None),
    ("hiden", ["hidden_sizes", "dropout", "seed"], "hidden_sizes"),
    ("epochs", ["local_epochs", "local_steps"], "local_epochs"),
    ("SEED", ["seed"], "seed"),
    ("xyz", ["seed"], None),
    ("mlp", ["model.torch.mlp", "model.torch.cnn"], "model.torch.mlp"),
    ("", ["seed"], None),
])
def test_nearest(word, known, name):
    assert nearest(word, known) == name


class Base:
    """Two settings, after a parameter that the framework gives."""

    def __init__(self, model: object = None, *, rate: float = 0.1, kind: Literal["a", "b"] = "a") -> None: ...


class Middle(Base):
    """No constructor of its own."""


class HandsOn(Middle):
    """One setting more."""

    def __init__(self, model: object = None, *, strength: int, **settings: object) -> None:
        super().__init__(model, **settings)


class HandsOnAgain(HandsOn):
    """Another, and another type for one of the base's."""

    def __init__(self, *, rate: int = 3, note: str = "", **settings: object) -> None:
        super().__init__(rate=rate, **settings)


class Swallows(Learner):
    """Keyword arguments of its own, above a constructor that has no settings."""

    def __init__(self, model: object = None, data: object = None, *, rate: float = 0.1, **options: object) -> None: ...


@pytest.mark.parametrize(("settings", "problems"), [
    ({"strength": 1}, 0), ({"strength": 1, "rate": 0.5, "kind": "b"}, 0), ({}, 1), ({"strength": 1.5}, 1),
    ({"strength": 1, "rate": "x"}, 1), ({"strength": 1, "kind": "c"}, 1), ({"strength": 1, "ratio": 1}, 1),
    ({"strength": 1, "model": 2}, 1), ({"strength": 1, "settings": {}}, 1),
])
def test_keywords_that_are_handed_on(settings, problems):
    """S-CONF-04: what a constructor takes as **settings is held against the next constructor."""
    assert len(check_settings(HandsOn, settings, "c", ("model",))) == problems


def test_the_nearest_name_is_one_that_is_handed_on():
    (found,) = check_settings(HandsOn, {"strength": 1, "rat": 1}, "c", ("model",))
    assert found == "c.rat: unknown setting of HandsOn; did you mean rate? (it takes: strength, rate, kind)"


def test_parameters_through_several_constructors():
    found = setting_parameters(HandsOnAgain, ("model",))
    assert {name: (parameter.default, annotation) for name, (parameter, annotation) in found.items()} == {
        "rate": (3, int), "note": ("", str), "strength": (inspect.Parameter.empty, int), "kind": ("a", Literal["a", "b"])}
    assert list(setting_parameters(Base)) == ["model", "rate", "kind"]


def test_keywords_without_anywhere_to_go_are_the_classes_own():
    assert check_settings(Swallows, {"anything": 1, "rate": 2}, "c", RESERVED) == []
    assert len(check_settings(Swallows, {"anything": 1, "rate": "x", "data": 3}, "c", RESERVED)) == 2
    assert list(setting_parameters(Swallows, RESERVED)) == ["rate"]
