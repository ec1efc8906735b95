"""`share-weights` in a recipe."""

from compiler.compression.techniques.registry import register
from compiler.compression.weight_sharing import check_settings, share_weights

register("share-weights", share_weights, check_settings)
