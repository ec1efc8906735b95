"""`factorize` in a recipe."""

from compiler.compression.low_rank import factorize
from compiler.compression.techniques.registry import technique

technique("factorize")(factorize)
