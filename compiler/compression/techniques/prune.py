"""`prune` in a recipe."""

from compiler.compression.pruning import prune
from compiler.compression.techniques.registry import technique

technique("prune")(prune)
