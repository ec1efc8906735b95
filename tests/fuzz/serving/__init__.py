"""A real server under hostile requests: `python -m tests.fuzz serve`."""
