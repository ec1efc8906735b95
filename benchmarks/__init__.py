"""Measurements: commands that print tables. Nothing here is part of the product."""
