"""Settings of the whole suite."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings

# Compiling takes as long as it takes, and a busy machine is no defect: neither is a reason to fail.
settings.register_profile("tensorwright", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tensorwright")

# What a developer has tuned is no part of what is tested.
os.environ["TENSORWRIGHT_RECORDS"] = str(Path(tempfile.gettempdir()) / "tensorwright-tests-have-no-records")
