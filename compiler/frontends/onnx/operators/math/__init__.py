"""Elementwise functions, reductions, matmuls, transforms."""
