"""`share-weights` in a recipe."""

from compiler.compression.techniques.registry import technique
from compiler.compression.weight_sharing import share_weights

technique("share-weights")(share_weights)
