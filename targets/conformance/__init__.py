"""Conformance checks that every target must pass."""
