"""Pruning: `prune`."""

from compiler.compression.pruning.driver import prune

__all__ = ["prune"]
