"""Strings and n-grams."""
