"""Hostile requests to a real server: `python -m tests.fuzz serve`."""
