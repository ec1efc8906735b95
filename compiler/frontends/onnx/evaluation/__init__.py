"""Evaluation of nodes with known inputs during import, which removes exported shape computations."""
