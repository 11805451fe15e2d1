"""Clients that disagree, on problems whose answer is known: least squares, solved in closed form here.

Each client holds a quadratic of its own; the answer minimises their mean. Algorithms that train for several steps on
each client before averaging end elsewhere, unless they correct for it.
"""

from __future__ import annotations

import numpy as np
import pytest

from federation import ServerNode
from federation.builtin import (
    DefaultLearner,
    DefaultTrainer,
    FedAvgAggregator,
    FedNovaAggregator,
    LinearModel,
    ScaffoldAggregator,
    ScaffoldLearner,
)
from federation.data.dataset import Dataset
from federation.data.manager import DataManager
from federation.data.partition import Partition
from federation.node.host import ClientHost
from node_comm import memory

FEATURES = 3


class Problem:
    """Clients' samples, and what follows from them in exact terms."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    @classmethod
    def random(cls, sizes, scales, seed=0):
        """Each client has inputs of its own scale, and an answer of its own."""
        generator = np.random.default_rng(seed)
        x = [scale * generator.normal(size=(size, FEATURES)) for size, scale in zip(sizes, scales, strict=True)]
        return cls(x, [part @ generator.normal(size=FEATURES) + generator.normal() for part in x])

    def data(self) -> DataManager:
        offsets = np.cumsum([0, *(len(y) for y in self.y)])
        dataset = Dataset(np.concatenate(self.x), np.concatenate(self.y), np.empty((0, self.x[0].shape[1])), np.empty(0), None,
                          "least squares")
        return DataManager(dataset, Partition(np.arange(offsets[-1]), offsets))

    def normal_equations(self, client):
        """H and b of the client's mean squared error, whose gradient is 2 (H w - b); w is (weights, bias)."""
        x = np.column_stack([self.x[client], np.ones(len(self.y[client]))])
        return x.T @ x / len(x), x.T @ self.y[client] / len(x)

    def answer(self, weights):
        """The minimum of the clients' losses, so weighted."""
        parts = [self.normal_equations(client) for client in range(len(self.y))]
        hessian = sum(weight * part[0] for weight, part in zip(weights, parts, strict=True))
        return np.linalg.solve(hessian, sum(weight * part[1] for weight, part in zip(weights, parts, strict=True)))

    def averaged(self, client_lr, steps, weights):
        """Where averaging ends that runs `steps[k]` gradient steps on client k and weighs them so: its fixed point."""
        size = self.x[0].shape[1] + 1
        total, constant = np.zeros((size, size)), np.zeros(size)
        for client, (weight, count) in enumerate(zip(weights, steps, strict=True)):
            hessian, b = self.normal_equations(client)
            keep = np.eye(size)
            for _ in range(count):
                constant += weight * 2 * client_lr * keep @ b
                keep = keep @ (np.eye(size) - 2 * client_lr * hessian)
            total += weight * (np.eye(size) - keep)
        return np.linalg.solve(total, constant)


def train(problem, learner, aggregator, rounds, **settings):
    """The weights and the bias after `rounds` rounds of all clients."""

    async def main(transport):
        model = LinearModel(input_size=problem.x[0].shape[1], output_size=1)
        host = ClientHost(learner(model, **settings), problem.data(), aggregator=aggregator)
        server = ServerNode(transport=transport, host=host)
        await server.start()
        trainer = DefaultTrainer(server, model, aggregator, {"max_rounds": rounds, "evaluate": "none"})
        await trainer.run()
        await server.stop()
        return np.concatenate([array.ravel() for array in trainer.weights.head(2)]).astype(float)

    return memory.run(main, 1)[0]


def test_scaffold_finds_the_answer_where_averaging_does_not():
    """Karimireddy et al. 2020: clients drift apart in 10 local steps; FedAvg ends at its own fixed point."""
    problem = Problem.random(sizes=[40, 40, 40, 40], scales=[0.3, 0.6, 1.0, 1.4])
    settings = dict(local_steps=10, batch_size=40, client_lr=0.1)
    uniform = [0.25] * 4
    answer, drifted = problem.answer(uniform), problem.averaged(0.1, [10] * 4, uniform)
    assert np.abs(answer - drifted).max() > 0.05, "the problem has no drift to correct"
    plain = train(problem, DefaultLearner, FedAvgAggregator(), 400, **settings)
    corrected = train(problem, ScaffoldLearner, ScaffoldAggregator(), 400, **settings)
    assert np.abs(plain - drifted).max() < 1e-4
    assert np.abs(corrected - answer).max() < 1e-4


def test_fednova_removes_the_inconsistency_of_unequal_work():
    """Wang et al. 2020: with unequal numbers of local steps FedAvg minimises another objective, FedNova the right one.

    The claim is about the first order in the learning rate: FedNova's error vanishes with it, FedAvg's does not. Each
    client has one point, as often as it takes steps, so that every step of a pass has the same gradient.
    """
    points, steps = [(-2.0, 0.5), (0.2, -1.0), (2.0, 0.7)], [1, 4, 12]
    problem = Problem([np.full((count, 1), x) for count, (x, _) in zip(steps, points, strict=True)],
                      [np.full(count, y) for count, (_, y) in zip(steps, points, strict=True)])
    shares = np.array(steps) / sum(steps)
    answer = problem.answer(shares)
    errors = []
    for client_lr in (0.04, 0.02, 0.01):
        settings = dict(local_epochs=1, batch_size=1, client_lr=client_lr)
        rounds = int(9 / client_lr)
        plain = train(problem, DefaultLearner, FedAvgAggregator(), rounds, **settings)
        normalised = train(problem, DefaultLearner, FedNovaAggregator(), rounds, **settings)
        assert np.abs(plain - problem.averaged(client_lr, steps, shares)).max() < 1e-4
        assert np.abs(normalised - problem.averaged(client_lr, steps, shares / steps)).max() < 1e-4
        errors.append([np.abs(found - answer).max() for found in (plain, normalised)])
    plain_errors, normalised_errors = np.array(errors).T
    assert plain_errors.min() > 0.05
    assert normalised_errors[2] < 0.6 * normalised_errors[1] < 0.6 * 0.6 * normalised_errors[0]
    assert normalised_errors[2] < 0.1 * plain_errors[2]


@pytest.mark.parametrize("rounds", [3])
def test_the_oracle_itself(rounds):
    """The fixed point of averaging, against the iteration written out."""
    problem = Problem.random(sizes=[10, 20], scales=[0.5, 1.0])
    w = np.zeros(FEATURES + 1)
    for _ in range(3000):
        ends = []
        for client in range(2):
            hessian, b = problem.normal_equations(client)
            v = w
            for _ in range(rounds):
                v = v - 0.1 * 2 * (hessian @ v - b)
            ends.append(v)
        w = 0.3 * ends[0] + 0.7 * ends[1]
    assert np.allclose(w, problem.averaged(0.1, [rounds] * 2, [0.3, 0.7]), atol=1e-8)
