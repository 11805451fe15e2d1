"""What attackers do to each aggregation rule: accuracy on digits with 4 of 20 clients (20 %) malicious.

    python benchmarks/bench_robust.py [--model mlp|linear] [--rounds 30] [--quick] [--json FILE]

Twenty clients hold an even (IID) share of scikit-learn's handwritten digits each; all take part in every round, from the
same seed. With w0 the global weights and w what honest training gives, the first four of them

    sign_flip    send w0 - 5 (w - w0): five honest updates, backwards
    gaussian     send w0 + noise, a standard deviation of 1 in every value
    label_flip   train on labels y -> 9 - y, and are honest otherwise
    large_norm   send w0 + 1000 (w - w0)

Each rule that takes a number of attackers is told four. A rule holds where its accuracy is within 3 points of what FedAvg
reaches without attackers.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, final

import numpy as np

import federation
from federation import EvalResult, Learner, Model, TrainResult, register
from federation.builtin import DefaultLearner
from federation.core.learner import Context
from federation.core.weights import Weights
from federation.data.client_data import ClientData

Attack = Literal["none", "sign_flip", "gaussian", "label_flip", "large_norm"]

NUM_CLIENTS, NUM_ATTACKERS = 20, 4
ATTACKS: tuple[Attack, ...] = ("none", "sign_flip", "gaussian", "label_flip", "large_norm")
RULES: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "median": {},
    "trimmed_mean": {"trim_fraction": NUM_ATTACKERS / NUM_CLIENTS},
    "krum": {"num_byzantine": NUM_ATTACKERS},
    "multikrum": {"num_byzantine": NUM_ATTACKERS},
    "bulyan": {"num_byzantine": NUM_ATTACKERS},
    "geometric_median": {},
    "centred_clipping": {"clip_norm": 0.4},
    "norm_clipping": {"clip_norm": 0.4},
    "fltrust": {"root_client": f"client_{NUM_CLIENTS - 1}"},
}
#: Points of accuracy that a rule may lose and still hold.
MARGIN = 0.03


@register("benchmark.learner.attacking")
@final
class AttackingLearner(Learner):
    """Trains as the default learner does; clients with an index below `num_attackers` attack (see this module)."""

    def __init__(self, model: Model, data: Any = None, *, attack: Attack = "none", num_attackers: int = NUM_ATTACKERS,
                 local_epochs: int = 1, batch_size: int = 32, client_lr: float = 0.1) -> None:
        super().__init__(model, data)
        self._honest = DefaultLearner(model, data, local_epochs=local_epochs, batch_size=batch_size, client_lr=client_lr)
        self._attack = attack
        self._num_attackers = num_attackers

    def bind(self, data: ClientData, context: Context) -> None:
        """Turn to a client; one that flips labels gets others."""
        super().bind(data, context)
        if self._attack == "label_flip" and self._attacks:
            assert data.num_classes is not None, "labels are flipped where there are classes"
            data = ClientData(data.x, data.num_classes - 1 - data.y, data.x_test, data.y_test, data.num_classes)
        self._honest.bind(data, context)

    def fit(self, config: Mapping[str, Any] | None = None) -> TrainResult:
        """The result of honest training, or what an attacker makes of it."""
        start = Weights.of(self.get_weights())
        result = self._honest.fit(config)
        if not self._attacks:
            return result
        sent = [self._spoiled(before, after) for before, after in zip(start, result.weights, strict=True)]
        return TrainResult(sent, result.num_samples, result.metrics)

    def evaluate(self, config: Mapping[str, Any] | None = None) -> EvalResult:
        """See DefaultLearner."""
        return self._honest.evaluate(config)

    @property
    def _attacks(self) -> bool:
        index = self.context.client_id.removeprefix("client_")
        return index.isdecimal() and int(index) < self._num_attackers

    def _spoiled(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        match self._attack:
            case "sign_flip":
                return before - 5 * (after - before)
            case "gaussian":
                noise = self.random("attack").standard_normal(before.shape, np.float32)
                return before + noise
            case "large_norm":
                return before + 1000 * (after - before)
        return after


def accuracy(rule: str, attack: Attack, model: str, rounds: int, folder: Path, seed: int = 0) -> float:
    """The share of test images that are recognised after training with this rule under this attack."""
    result = federation.run({
        "mode": "serial", "seed": seed, "num_clients": NUM_CLIENTS, "tracker": "none",
        "output_dir": str(folder / f"{model}-{rule}-{attack}-{seed}"),
        "components": {"aggregator": f"federated.aggregator.{rule}", "learner": "benchmark.learner.attacking",
                       "model": {"mlp": "model.torch.mlp", "linear": "model.numpy.linear"}[model]},
        "aggregator_config": RULES[rule],
        "learner_config": {"attack": attack, "local_epochs": 2, "batch_size": 16, "client_lr": 0.2},
        "trainer_config": {"max_rounds": rounds, "eval_every": rounds}, "checkpoint": {"every": rounds},
    }, quiet=True)
    return float(result.metrics["accuracy"])


def table(model: str, rounds: int) -> dict[str, dict[str, float]]:
    """The accuracy for each rule and attack; printed as it comes."""
    print(f"{'rule':18s}" + "".join(f"{attack:>12s}" for attack in ATTACKS))
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for rule in RULES:
            found[rule] = {}
            print(f"{rule:18s}", end="", flush=True)
            for attack in ATTACKS:
                found[rule][attack] = accuracy(rule, attack, model, rounds, Path(folder))
                mark = " " if found[rule][attack] >= found["fedavg"]["none"] - MARGIN else "*"
                print(f"{found[rule][attack]:11.3f}{mark}", end="", flush=True)
            print()
    print(f"* more than {100 * MARGIN:.0f} points below FedAvg without attackers")
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["mlp", "linear"], default="mlp")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="the linear model and 15 rounds: some seconds")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    model, rounds = ("linear", 15) if given.quick else (given.model, given.rounds)
    began = time.perf_counter()
    found = table(model, rounds)
    seconds = time.perf_counter() - began
    print(f"{model}, {rounds} rounds, {NUM_ATTACKERS} of {NUM_CLIENTS} clients attack; {seconds:.0f} s")
    if given.json:
        given.json.write_text(json.dumps({"model": model, "rounds": rounds, "clients": NUM_CLIENTS, "seconds": seconds,
                                          "attackers": NUM_ATTACKERS, "accuracy": found}, indent=1))


if __name__ == "__main__":
    main()
