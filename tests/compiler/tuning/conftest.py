"""Fixtures of the tests of tuning."""

from __future__ import annotations

from tests.compiler.tuning.comparisons import few_turns

__all__ = ["few_turns"]
