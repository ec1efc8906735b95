"""Tests, mirroring the packages."""

import os

# Tests and sweeps compile; those of the cache of modules turn it on.
os.environ["TENSORWRIGHT_CACHE_MB"] = "0"
