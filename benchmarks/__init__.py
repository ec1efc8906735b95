"""Measurements: commands that print tables. Nothing here is part of the product."""

import os

# What compiles is measured, or has just been changed.
os.environ["TENSORWRIGHT_CACHE_MB"] = "0"
