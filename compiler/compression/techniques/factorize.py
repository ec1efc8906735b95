"""`factorize` in a recipe."""

from compiler.compression.low_rank.driver import check_settings, factorize
from compiler.compression.techniques.registry import register

register("factorize", factorize, check_settings)
