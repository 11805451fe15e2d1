"""Settings for the whole suite."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# No test looks at a clock: a machine that is busy must not fail one.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")
