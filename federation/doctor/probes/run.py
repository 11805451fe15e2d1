"""The configured run, put together as far as a rank puts it together before its first round."""

from __future__ import annotations

from typing import NamedTuple

from federation.assemble import Parts, assemble, setup, versions
from federation.config import Config
from federation.core.weights import Layout
from federation.data.sampling import cohort_size_of
from federation.doctor.facts import RunFacts
from federation.errors import FederationError
from federation.registry.registry import resolve


class Assembled(NamedTuple):
    """The bytes of one model, or why it cannot be made; what must be the same on every rank; the parts, with their data."""

    model: int | None
    problem: str
    setup: dict[str, str]
    parts: Parts | None = None


def put_together(config: Config | None) -> Assembled:
    """Import the components of `config`, load its data, make its model. Without a configuration: versions alone."""
    if config is None:
        return Assembled(None, "", versions())
    try:
        parts = assemble(config)
        return Assembled(Layout.of(parts.make_model().get_weights()).nbytes, "", setup(config), parts)
    except FederationError as error:
        return Assembled(None, str(error), setup(config))
    except Exception as error:  # components are anyone's code, and another rank waits for what this one finds
        return Assembled(None, f"{type(error).__name__}: {error}", setup(config))


def describe(config: Config, mode: str, given: bool) -> RunFacts:
    """What `config` asks for; `given` is False where it is but the default."""
    trainer = config.trainer_config
    cohort = trainer.cohort_size or cohort_size_of(trainer.fraction or 1.0, config.num_clients)
    try:
        needs = getattr(resolve(config.components.aggregator, "aggregator"), "needs", "rows") if given else "mean"
    except FederationError:  # what cannot be imported is reported by `put_together`
        needs = "mean"
    return RunFacts(mode=mode, given=given, needs=needs, cohort=cohort, keep=config.checkpoint.keep,
                    device=str(config.learner_config.get("device", "cpu")))
