"""Matmuls: dense, integer, bfloat16, grouped, sparse."""
