"""Benchmark commands that print tables; not part of the package."""

import os

# The compiler is being measured, or has just changed: no cached modules.
os.environ["TENSORWRIGHT_CACHE_MB"] = "0"
