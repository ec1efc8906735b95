"""Tuning records: their format, their identity, and the selection of records for a compilation."""
