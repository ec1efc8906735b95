"""Tuning records: their format, their identity, and which of them a compilation uses."""
