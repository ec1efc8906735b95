"""Sides of a comparison: a model as it is compiled, and as another runtime computes it."""
