"""An aggregator, a learner and a trainer of one's own, each in about twenty lines.

    python -m federation.launch --config federation/examples/custom.yaml
    mpirun -n 4 python -m federation.launch --config federation/examples/custom.yaml

The configuration names this file under `plugins` and the components under `components`.
"""

import numpy as np

from federation import Aggregator, ClientUpdate, EvalResult, Learner, Trainer, TrainResult, register


@register("custom.aggregator.clipped_mean")
class ClippedMean(Aggregator):
    """The plain mean of updates whose step away from the global model is shortened to at most `radius`."""

    def __init__(self, radius: float = 1.0) -> None:
        self.radius = radius

    def aggregate(self, updates, global_model=None):
        start = updates[0].weights if global_model is None else global_model
        total = [np.zeros(array.shape) for array in start]
        for update in updates:
            steps = [new - old for new, old in zip(update.weights, start, strict=True)]
            length = np.sqrt(sum(float((step.astype(float) ** 2).sum()) for step in steps))
            scale = min(1.0, self.radius / max(length, 1e-12)) / len(updates)
            total = [part + scale * step for part, step in zip(total, steps, strict=True)]
        return [(old + step).astype(old.dtype) for old, step in zip(start, total, strict=True)]


@register("custom.learner.perceptron")
class Perceptron(Learner):
    """Rosenblatt's rule on the weights (classes, features) and biases of a linear model."""

    def __init__(self, model=None, data=None, rate: float = 0.1) -> None:
        super().__init__(model, data)
        self.rate = rate

    def fit(self, config=None):
        weight, bias = (array.copy() for array in self.get_weights())
        mistakes = 0
        for _ in range((config or {}).get("epochs", 1)):
            for x, y in self.data.get_train_loader(batch_size=1):
                guess = int(np.argmax(weight @ x[0] + bias))
                if guess != y[0]:
                    mistakes += 1
                    weight[y[0]] += self.rate * x[0]
                    weight[guess] -= self.rate * x[0]
                    bias[y[0]] += self.rate
                    bias[guess] -= self.rate
        self.set_weights([weight, bias])
        samples = self.data.get_num_samples()
        return TrainResult(self.get_weights(), samples, {"mistakes": mistakes / max(1, samples)})

    def evaluate(self, config=None):
        weight, bias = self.get_weights()
        right = total = 0
        for x, y in self.data.get_test_loader():
            right += int((np.argmax(x @ weight.T + bias, axis=1) == y).sum())
            total += len(y)
        return EvalResult(total, {"accuracy": right / max(1, total)})


@register("custom.trainer.everyone")
class Everyone(Trainer):
    """Trains all clients every round and aggregates on the server."""

    async def run(self):
        await self.wait_for_clients(2)
        await self.broadcast_weights(self.model.get_weights())
        for _ in range(self.config.max_rounds):
            clients = self.get_connected_clients()
            results = await self.collect_results(clients, "fit", {"epochs": 1})
            updates = [ClientUpdate.from_result(client.client_id, result)
                       for client, result in zip(clients, results, strict=True)]
            weights = self.aggregator.aggregate(updates, self.model.get_weights())
            self.model.set_weights(weights)
            await self.broadcast_weights(weights)
