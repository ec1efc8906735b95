"""Settings of the whole suite."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Compiling takes as long as it takes, and a busy machine is no defect: neither is a reason to fail.
settings.register_profile("tensorwright", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tensorwright")
