"""Helpers for passes: matching, rewriting, evaluation, value ranges."""
