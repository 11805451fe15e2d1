"""Small worlds for tests of the node layer: a server, ranks with clients, quick learners."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import numpy as np

from federation import ClientNode, EvalResult, Learner, Model, ServerNode, TrainResult
from federation.core.weights import Weights
from node_comm import Transport, memory


class Arrays(Model):
    """A model that is nothing but named arrays."""

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self._weights = Weights.of(arrays)

    def get_weights(self):
        return self._weights.copy()

    def set_weights(self, weights):
        self._weights.copy_from(weights, who="the server")


class Answers(Learner):
    """Answers a fit with what `answer(start, context)` returns: (arrays, num_samples) or an exception to raise."""

    def __init__(self, model: Model, answer: Callable[..., Any], evaluation: tuple[int, dict[str, float]] = (1, {})) -> None:
        super().__init__(model, answer if isinstance(answer, Constant) else None)
        self.answer = answer
        self.evaluation = evaluation
        self.seen: list[Mapping[str, Any]] = []

    def fit(self, config=None):
        self.seen.append(dict(config or {}))
        given = self.answer(self.get_weights(), self.context)
        if isinstance(given, BaseException):
            raise given
        arrays, count = given
        return TrainResult(arrays, count, {"loss": float(count)})

    def evaluate(self, config=None):
        count, metrics = self.evaluation
        return EvalResult(count, metrics)


class Constant:
    """An answer that is always the same, of a client that says from the start how many samples it has."""

    def __init__(self, arrays: Any, num_samples: int) -> None:
        self.arrays, self.num_samples = arrays, num_samples

    def __call__(self, start: Any, context: Any) -> Any:
        return self.arrays, self.num_samples

    def get_num_samples(self) -> int:
        return self.num_samples


def constant(arrays: Any, num_samples: int = 1) -> Constant:
    """The answer `arrays`, trained on `num_samples`."""
    return Constant(arrays, num_samples)


def in_world(arrays: Mapping[str, Any], answers: Mapping[str, Any], program: Callable[[ServerNode], Awaitable[Any]],
             evaluations: Mapping[str, tuple[int, dict[str, float]]] | None = None,
             wrap: Callable[[Transport], Transport] = lambda transport: transport,
             learner: type[Answers] = Answers) -> Any:
    """Run `program(server)` in a world in memory with one rank for each client of `answers`."""

    async def main(transport: Transport) -> Any:
        transport = wrap(transport)
        if transport.rank == 0:
            server = ServerNode(transport=transport)
            await server.start()
            try:
                await server.wait_for_clients(len(answers), timeout=10)
                return await program(server)
            finally:
                await server.stop()
        name = list(answers)[transport.rank - 1]
        client = ClientNode({"node_id": name}, transport=transport)
        evaluation = (evaluations or {}).get(name, (1, {}))
        client.bind(learner(Arrays(arrays), answers[name], evaluation))
        await client.connect_and_register()
        try:
            await asyncio.wait_for(client.wait(), 30)
        finally:
            await client.stop()
        return None

    return memory.run(main, len(answers) + 1)[0]


def names(count: int) -> Sequence[str]:
    """client_0, client_1, ..."""
    return [f"client_{index}" for index in range(count)]


def f32(*values: float) -> np.ndarray:
    """A float32 vector."""
    return np.array(values, np.float32)
