"""Exact weighted means of metrics."""

from __future__ import annotations

import math
from fractions import Fraction

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.core.metrics import MetricSum


def sum_of(*entries: tuple[dict[str, object], int]) -> MetricSum:
    total = MetricSum()
    for metrics, n in entries:
        total.add(metrics, n)
    return total


def test_means_are_weighted_by_the_samples_given():
    """S-AGG-13: accuracy 0.9 over 10 samples and 0.5 over 90 samples is 0.54."""
    assert sum_of(({"accuracy": 0.9}, 10), ({"accuracy": 0.5}, 90)).means() == {"accuracy": 0.54}


@pytest.mark.parametrize("nothing", [None, "x", b"x", [1.0], np.zeros(1), np.zeros((2, 2)), {}, object(), 1j,
                                     np.complex64(1), np.array("x"), np.datetime64("2020-01-01"), torch.zeros(2)])
def test_odd_values_are_left_out_and_recorded(nothing):
    """S-TRACK-05: None, text and whatever is not a number."""
    total = sum_of(({"odd": nothing, "loss": 2.0}, 3), ({"odd": nothing, "loss": 4.0}, 1))
    assert total.means() == {"loss": 2.5}
    assert total.left_out == {"odd"}


def test_numpy_and_torch_scalars_are_numbers():
    """S-TRACK-05: n np.int64(5), f1 np.float32(0.5), loss NaN, accuracy None, note 'x'."""
    total = sum_of(({"loss": math.nan, "accuracy": None, "n": np.int64(5), "f1": np.float32(0.5), "note": "x"}, 4))
    means = total.means()
    assert math.isnan(means.pop("loss"))
    assert means == {"f1": 0.5, "n": 5.0}
    assert all(type(value) is float for value in means.values())
    assert total.left_out == {"accuracy", "note"}
    values = {"a": np.array(1.5), "b": torch.tensor(2.5), "c": True, "d": np.bool_(False), "e": np.float16(0.25),
              "f": torch.tensor(3, requires_grad=False), "g": Fraction(1, 4), "h": np.uint8(255)}
    assert sum_of((values, 2)).means() == {"a": 1.5, "b": 2.5, "c": 1, "d": 0, "e": 0.25, "f": 3, "g": 0.25, "h": 255}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 10**400, np.float32("nan")])
def test_a_value_that_is_not_finite_makes_its_mean_nan_and_no_other(bad):
    """S-TRACK-05: the run goes on, and the key shows it."""
    for entries in ([({"loss": bad, "acc": 1.0}, 1), ({"loss": 1.0, "acc": 0.0}, 1)],
                    [({"loss": 1.0, "acc": 0.0}, 1), ({"loss": bad, "acc": 1.0}, 1)]):
        means = sum_of(*entries).means()
        assert math.isnan(means["loss"])
        assert means["acc"] == 0.5


def test_keys_of_some_clients_are_averaged_over_those_and_sorted():
    means = sum_of(({"b": 1.0, "a": 2.0}, 1), ({"a": 5.0}, 2), ({"c": 7.0}, 0)).means()
    assert list(means.items()) == [("a", 4.0), ("b", 1.0)]
    assert sum_of(({"a": math.nan}, 0)).means() == {}
    assert MetricSum().means() == {}


@pytest.mark.parametrize("count", [-1, 1.0, True, None, "3", np.float64(2)])
def test_numbers_of_samples_must_be_integers_from_zero(count):
    total = MetricSum()
    with pytest.raises(ValueError, match="num_samples must be an integer of 0 or more"):
        total.add({"a": 1.0}, count)
    assert total.means() == {}
    total.add({"a": 1.0}, np.int16(3))
    assert total.means() == {"a": 1.0}


floats = st.floats(allow_nan=False, allow_infinity=False)
entry = st.tuples(st.dictionaries(st.sampled_from("abc"), floats, max_size=3), st.integers(0, 2**48))


@settings(max_examples=150, deadline=None)
@given(entries=st.lists(entry, max_size=8), data=st.data())
def test_order_and_grouping_do_not_matter_and_means_are_rounded_once(entries, data):
    means = sum_of(*entries).means()
    for key in "abc":
        given_values = [(Fraction(metrics[key]), n) for metrics, n in entries if key in metrics and n]
        if given_values:
            total = sum(n for _, n in given_values)
            assert means[key] == float(sum(value * n for value, n in given_values) / total)
        else:
            assert key not in means
    order = data.draw(st.permutations(entries))
    cut = data.draw(st.integers(0, len(entries)))
    one, other = sum_of(*order[:cut]), sum_of(*order[cut:])
    other.merge(one)
    assert other.means() == means
    assert other.to_dict() == sum_of(*entries).to_dict()


def test_a_sum_travels_as_plain_builtins():
    total = sum_of(({"a": 5e-324, "b": 1.7976931348623157e308, "c": math.nan, "d": None, "e": -0.1}, 2**48))
    total.add({"a": -1e300, "b": -1.0}, 7)
    received = MetricSum.from_dict(msgspec.msgpack.decode(msgspec.msgpack.encode(total.to_dict())))
    assert repr(received.means()) == repr(total.means())
    assert received.left_out == {"d"}
    received.add({"a": 1.0}, 1)
    total.add({"a": 1.0}, 1)
    assert repr(received.means()) == repr(total.means())


@pytest.mark.parametrize("change", [{"weights": {}}, {"sums": {}}, {"not_finite": ["z"]}, {"weights": {"a": "0x0"}},
                                    {"weights": {"a": "-0x1"}}, {"sums": {"a": "many"}},
                                    {"sums": {1: "0x0"}, "weights": {1: "0x1"}}])
def test_descriptions_that_contradict_themselves_are_refused(change):
    description = sum_of(({"a": 1.0}, 1)).to_dict() | change
    with pytest.raises(ValueError, match=r"metric sum|invalid literal"):
        MetricSum.from_dict(description)
