"""`factorize` in a recipe."""

from compiler.compression.low_rank.driver import factorize
from compiler.compression.low_rank.settings import FactorizationOptions
from compiler.compression.techniques.registry import register
from compiler.support.options import options_of

register("factorize", factorize, lambda settings: options_of(FactorizationOptions, settings).check())
