"""`share-weights` in a recipe."""

from compiler.compression.techniques.registry import register
from compiler.compression.weight_sharing import check_bits, share_weights

register("share-weights", share_weights, lambda settings: check_bits(settings["bits"]))
