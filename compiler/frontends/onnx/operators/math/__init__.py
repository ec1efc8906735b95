"""Elementwise functions, reductions, matrix products, transforms."""
