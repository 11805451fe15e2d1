"""A learner that takes longer on rank 1 than elsewhere: for runs whose ranks are not what placement takes them for."""

from __future__ import annotations

import multiprocessing
import os
import time

from federation import register
from tests.system.faulty import Faulty

IS_SLOW = multiprocessing.current_process().name == "rank 1" or os.environ.get("OMPI_COMM_WORLD_RANK") == "1"


@register("test.learner.slow")
class Slow(Faulty):
    """Sleeps `delay` seconds for each client, and five times as long on rank 1."""

    def fit(self, config=None):
        time.sleep(4 * self.delay * IS_SLOW)
        return super().fit(config)
