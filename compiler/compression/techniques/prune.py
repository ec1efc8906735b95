"""`prune` in a recipe."""

from compiler.compression.pruning import prune
from compiler.compression.pruning.settings import check_settings
from compiler.compression.techniques.registry import register

register("prune", prune, check_settings)
