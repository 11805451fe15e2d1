"""What is measured between rounds: when, of whom, under which names, and what is left when a part of it fails."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from federation.builtin.trainers.evaluation import begin_evaluation, evaluate, is_due
from federation.config import trainer_config
from federation.core.metrics import MetricSum
from federation.errors import RoundError
from federation.node.round import Evaluated

CLIENTS: Any = ["a client"]


class Server:
    """Finds its part's number of each kind of metrics, once `answers` say so; two shards to test on, three to validate on."""

    def __init__(self, has_validation: bool = True, has_data: bool = True) -> None:
        shards = {"test": [0, 1], "validation": [0, 1, 2]}
        data = SimpleNamespace(has_validation=has_validation, shards=shards.__getitem__)
        self.host = SimpleNamespace(data=data if has_data else None)
        self.ordered: list[tuple[Any, ...]] = []
        self.tasks: dict[str, asyncio.Task[Evaluated]] = {}
        self.answers: dict[str, asyncio.Future[None]] = {}
        self.refused = ""

    async def begin_evaluation(self, *order: Any) -> asyncio.Task[Evaluated]:
        self.ordered.append(order)
        part = order[-1]
        if part == self.refused:
            raise RoundError("deliberate")
        self.tasks[part] = asyncio.create_task(self._find(part))
        return self.tasks[part]

    async def _find(self, part: str) -> Evaluated:
        if part in self.answers:
            await self.answers[part]
        sums = [MetricSum() for _ in range(3)]
        for kind, total in enumerate(sums):
            total.add({"accuracy": kind + 10 * len(part)}, 1)
        return Evaluated(*sums)


@pytest.mark.parametrize(("settings", "rounds"), [
    ({}, [1, 2, 3, 4, 5, 6, 7]), ({"eval_every": 3}, [3, 6, 7]), ({"eval_every": 9}, [7]), ({"evaluate": "none"}, [])])
def test_rounds_that_end_with_an_evaluation(settings, rounds):
    config = trainer_config({"max_rounds": 7} | settings)
    assert [number for number in range(1, 8) if is_due(config, number)] == rounds


@pytest.mark.parametrize(("which", "shards", "clients"), [
    ("server", (2, 3), ()), ("clients", (0, 0), CLIENTS), ("both", (2, 3), CLIENTS)])
def test_what_is_measured_and_of_whom(which, shards, clients):
    server: Any = Server()
    config = trainer_config({"max_rounds": 4, "evaluate": which})
    found = asyncio.run(evaluate(server, config, 4, CLIENTS))
    assert server.ordered == [(4, shards[0], clients, "test"), (4, shards[1], clients, "validation")]
    assert found == {"accuracy": 40, "client_accuracy": 41, "personal_accuracy": 42,
                     "validation_accuracy": 100, "client_validation_accuracy": 101, "personal_validation_accuracy": 102}


@pytest.mark.parametrize(("server", "shards"), [(Server(has_validation=False), 2), (Server(has_data=False), 0)],
                         ids=["no validation", "no data"])
def test_what_is_not_there_is_not_measured(server, shards):
    asyncio.run(evaluate(server, trainer_config({"max_rounds": 4, "evaluate": "both"}), 4, CLIENTS))
    assert server.ordered == [(4, shards, CLIENTS, "test")]


def test_a_round_without_evaluation_orders_none():
    server: Any = Server()
    assert asyncio.run(evaluate(server, trainer_config({"max_rounds": 4, "eval_every": 4}), 3, CLIENTS)) == {}
    assert server.ordered == []


def test_an_error_leaves_no_part_under_way():
    """In the orders for the second, or in the first while the second is at work."""
    config = trainer_config({"max_rounds": 4, "evaluate": "both"})

    async def main() -> None:
        server: Any = Server()
        server.answers["test"] = asyncio.get_running_loop().create_future()
        server.refused = "validation"
        with pytest.raises(RoundError, match="deliberate"):
            await begin_evaluation(server, config, 4, CLIENTS)
        assert server.tasks["test"].cancelled()

        server = Server()
        server.answers = {part: asyncio.get_running_loop().create_future() for part in ("test", "validation")}
        evaluating = await begin_evaluation(server, config, 4, CLIENTS)
        server.answers["test"].set_exception(RoundError("deliberate"))
        with pytest.raises(RoundError, match="deliberate"):
            await evaluating
        assert server.tasks["validation"].cancelled()

    asyncio.run(main())
