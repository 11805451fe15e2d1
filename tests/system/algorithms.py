"""Every algorithm once, one after the other in one world: prints what each came to, as JSON.

    python -m tests.system.algorithms serial|parallel|mpi FOLDER [NAME ...]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import federation

COMMON: dict[str, Any] = {
    "seed": 5, "num_clients": 9, "num_workers": 2, "tracker": "none",
    "data": {"partitioner": "dirichlet", "partitioner_config": {"alpha": 0.5}, "client_test_fraction": 0.2},
    "trainer_config": {"max_rounds": 4, "cohort_size": 7, "evaluate": "both"},
}


def _with(aggregator: str = "fedavg", model: str = "model.numpy.linear", trainer: str = "default",
          **sections: Any) -> dict[str, Any]:
    components = {"aggregator": f"federated.aggregator.{aggregator}", "model": model,
                  "trainer": f"federated.trainer.{trainer}"}
    learner = {"client_lr": 0.05, "batch_size": 16, **sections.pop("learner_config", {})}
    rounds = {**COMMON["trainer_config"], **sections.pop("trainer_config", {})}
    return {**COMMON, "components": components, "learner_config": learner, "trainer_config": rounds, **sections}


#: A virtual clock on which clients differ much.
SLOW = {"clock": "virtual", "latency": {"kind": "lognormal", "work_seconds": 1.0, "spread": 0.8}}
IN_FLIGHT = {"cohort_size": None, "concurrency": 4, **SLOW}

ALGORITHMS: dict[str, dict[str, Any]] = {
    "fedavg": _with(),
    "fedavg uniform": _with(aggregator_config={"weighting": "uniform"}),
    "fedprox": _with("fedprox", learner_config={"mu": 0.1}),
    "fedavgm": _with("fedavgm"),
    "fedadam": _with("fedadam", aggregator_config={"server_lr": 0.02}),
    "fedyogi": _with("fedyogi", aggregator_config={"server_lr": 0.02}),
    "fedadagrad": _with("fedadagrad", aggregator_config={"server_lr": 0.02}),
    "fednova": _with("fednova"),
    "qfedavg": _with("qfedavg", aggregator_config={"q": 1.0, "lipschitz": 20.0}),
    "norm_clipping": _with("norm_clipping", aggregator_config={"clip_norm": 0.3}),
    "scaffold": _with("scaffold"),
    "feddyn": _with("feddyn", aggregator_config={"alpha": 0.1}, learner_config={"alpha": 0.1}),
    "ditto": _with(components={"aggregator": "federated.aggregator.fedavg", "learner": "federated.learner.ditto",
                               "model": "model.numpy.linear"}),
    "median": _with("median"),
    "trimmed_mean": _with("trimmed_mean", aggregator_config={"trim_fraction": 0.2}),
    "krum": _with("krum", aggregator_config={"num_byzantine": 2}),
    "multikrum": _with("multikrum", aggregator_config={"num_byzantine": 2}),
    "bulyan": _with("bulyan", aggregator_config={"num_byzantine": 1}),
    "geometric_median": _with("geometric_median"),
    "centred_clipping": _with("centred_clipping", aggregator_config={"clip_norm": 0.3}),
    "fltrust": _with("fltrust", trainer_config={"cohort_size": 9}, aggregator_config={"root_client": "client_4"}),
    "local bias": _with(trainer_config={"local_parameters": ["bias"]}),
    "FedBN": _with(model="tests.system.normalised:NormalisedModel", trainer_config={"local_parameters": ["norm*"]}),
    "momentum kept": _with(learner_config={"momentum": 0.9, "keep_momentum": True}),
    "schedules": _with("fedavgm", aggregator_config={"lr_schedule": "step", "lr_step_rounds": 2, "lr_gamma": 0.5},
                       learner_config={"lr_schedule": "cosine", "lr_rounds": 4, "lr_warmup_rounds": 1, "clip_norm": 1.0}),
    **{codec: _with(trainer_config={"compression": {"codec": codec}}) for codec in ("float16", "bfloat16", "int8")},
    "topk": _with(trainer_config={"compression": {"codec": "topk", "fraction": 0.05}}),
    "scaffold in int8": _with("scaffold", trainer_config={"compression": {"codec": "int8"}}),
    "median of topk": _with("median", trainer_config={"compression": {"codec": "topk", "fraction": 0.3}}),
    "FedBN in topk": _with(model="tests.system.normalised:NormalisedModel", trainer_config={
        "local_parameters": ["norm*"], "compression": {"codec": "topk", "fraction": 0.1}}),
    "weighted cohorts": _with(trainer_config={"sampling": "weighted"}),
    "round robin": _with(trainer_config={"sampling": "round_robin"}),
    "semi-synchronous": _with(trainer_config={"cohort_size": 5, "over_select": 1.4, "deadline": 2.0, **SLOW}),
    "fedasync": _with("fedasync", trainer="async", trainer_config={**IN_FLIGHT, "max_rounds": 12}),
    "fedbuff": _with("fedbuff", trainer="async", trainer_config={**IN_FLIGHT, "max_rounds": 6},
                     aggregator_config={"buffer_size": 3}),
}


def main(mode: str, folder: str, *names: str) -> None:
    """Run the algorithms called `names` (all, unless given) in `mode`."""
    found = {}
    for number, name in enumerate(names or ALGORITHMS):
        result = federation.run({**ALGORITHMS[name], "mode": mode, "output_dir": f"{folder}/{number}"})
        if result.weights is not None:
            rows = [json.loads(line) for line in (Path(folder) / str(number) / "metrics.jsonl").read_text().splitlines()]
            found[name] = [result.weights_sha256, [{key: row[key] for key in row if key != "seconds"} for row in rows]]
    if found:
        print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
