"""A learner that is told a secret, and says it in its log."""

from __future__ import annotations

import logging

from federation.builtin import DefaultLearner

logger = logging.getLogger("federation.tests.told")


class Told(DefaultLearner):
    """Logs its token each time that it trains."""

    def __init__(self, model=None, data=None, token: str = "") -> None:
        super().__init__(model, data)
        self.token = token

    def fit(self, config=None):
        logger.warning("the %d letters are %s", len(self.token), self.token)
        return super().fit(config)
