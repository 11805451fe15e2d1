"""Placement: every client once, at home where it has one, and within the bound of longest-first."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.errors import FederationError
from federation.node import proxy
from federation.node.placement import Costs, Placement, place
from federation.node.protocol import FitReport, Outcome
from federation.node.proxy import ClientProxy, ClientTable, natural

costs_of = st.dictionaries(st.integers(0, 30).map(lambda index: f"client_{index}"), st.floats(0.01, 100), max_size=9)


@given(costs_of, st.integers(1, 3), st.data())
def test_every_client_is_placed_once(costs, ranks, data):
    homes = data.draw(st.dictionaries(st.sampled_from(sorted(costs)), st.integers(1, ranks))) if costs else {}
    for policy in ("balanced", "last_rank"):
        shares = place(costs, homes, range(1, ranks + 1), policy)
        assert sorted(itertools.chain(*shares.values())) == sorted(costs)
        assert sorted(shares) == list(range(1, ranks + 1))
        assert all(client in shares[rank] for client, rank in homes.items())


@given(costs_of.filter(bool), st.integers(1, 3))
def test_the_longest_rank_is_near_the_best(costs, ranks):
    """Graham 1969: longest first is at most 4/3 - 1/(3m) of the best schedule, found here by trying all."""
    shares = place(costs, {}, range(ranks))
    longest = max(sum(costs[client] for client in share) for share in shares.values())
    best = min(max(sum(cost for cost, rank in zip(costs.values(), ranks_of, strict=True) if rank == wanted)
                   for wanted in range(ranks))
               for ranks_of in itertools.product(range(ranks), repeat=min(len(costs), 6))) if len(costs) <= 6 else None
    if best is not None:
        assert longest <= (4 / 3 - 1 / (3 * ranks)) * best * (1 + 1e-9)


def test_a_client_that_has_left_is_named():
    """In a program of one's own, which asks for results of those who were there before."""
    with pytest.raises(FederationError, match="client_7 is not connected any more"):
        place({"client_7": 1.0}, {"client_7": 4}, [1, 2])


def test_who_lives_on_a_rank_loads_it():
    clients = [ClientProxy("a", 3, rank=0), ClientProxy("b", 2, rank=None), ClientProxy("c", 9, rank=None)]
    assert Placement().shares(clients, [0, 1], {}) == {0: ["a", "b"], 1: ["c"]}


def test_the_order_of_equal_clients_is_that_of_their_names():
    assert place({"b": 1.0, "c": 1.0, "a": 1.0}, {}, [1, 2]) == {1: ["a", "c"], 2: ["b"]}


def test_state_draws_clients_to_its_rank_up_to_an_equal_share():
    costs = {"new": 6.0, "a": 3.0, "b": 3.0, "c": 3.0, "d": 3.0, "gone": 0.0}
    at_one = dict.fromkeys("abcd", 1)
    assert place(costs, {}, [1, 2], preferred=at_one | {"gone": 7}) == {1: ["a", "b", "c", "gone"], 2: ["new", "d"]}
    # Of the whole cost, that of clients included which live elsewhere.
    assert place({"a": 3.0, "b": 3.0, "h": 12.0}, {"h": 3}, [1, 2, 3], preferred=at_one) == {1: ["a", "b"], 2: [], 3: ["h"]}


def test_costs_follow_measurement():
    costs = Costs()
    assert costs.of("a", 10) == 10
    costs.observe("a", 10, 2.0)
    assert costs.of("a", 10) == 2.0
    assert costs.of("b", 20) == 4.0
    costs.observe("a", 10, 4.0)
    assert costs.of("a", 10) == 3.0


def test_who_is_not_known_costs_what_samples_have_cost_so_far():
    costs = Costs()
    costs.observe("a", 10, 2.0)
    costs.observe("b", 30, 2.0)
    assert costs.of("c", 20) == 2.0


def test_the_worst_placement_is_one_when_it_is_asked_for():
    clients = [ClientProxy(name, count) for name, count in (("a", 3), ("b", 2), ("c", 9))]
    assert Placement("last_rank").shares(clients, [1, 2], {}) == {1: [], 2: ["b", "a", "c"]}


@pytest.mark.parametrize(("seconds", "is_doubtful"), [(1.05, False), (1.15, True)])
def test_a_round_is_compared_with_what_was_known_before_it(seconds, is_doubtful):
    """By the time that clients took: what a rank does beside them is no surprise."""
    placement = Placement()
    for first in (1.0, seconds):
        placement.observe({rank: FitReport(outcomes=[Outcome(name, 4, taken, 4.0, False)], problems=[], metrics={}, limbs=1,
                                           seconds=90.0 * rank)
                           for rank, (name, taken) in enumerate({"a": first, "b": 1.0}.items())})
    assert placement.is_doubtful == is_doubtful
    assert placement.costs.of("a", 4) == (1 + seconds) / 2
    assert placement.costs.of("c", 8) == pytest.approx((3 + seconds) / 2)


def test_names_in_natural_order():
    assert sorted(["client_10", "client_9", "b", "client_1"], key=natural) == ["b", "client_1", "client_9", "client_10"]
    assert sorted(["p\u00b2", "\u00b2", "p1\u00b2"], key=natural) == ["p1\u00b2", "p\u00b2", "\u00b2"], "a digit, but no number"


def test_clients_that_a_rank_brings_are_sorted_once(monkeypatch):
    """Not with each of them: thousands behind one connection would stop the server for minutes."""
    keys = []
    monkeypatch.setattr(proxy, "natural", lambda name: keys.append(name) or natural(name))
    table = ClientTable()
    for number in reversed(range(100)):
        table.add(ClientProxy(f"p/{number}", 1, 1))
    assert [table[index].client_id for index in range(len(table))] == [f"p/{number}" for number in range(100)]
    assert len(keys) == 100
