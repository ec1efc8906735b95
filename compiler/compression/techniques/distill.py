"""`distill` in a recipe."""

from compiler.compression.distillation import distill
from compiler.compression.distillation_settings import DistillationOptions
from compiler.compression.techniques.registry import register
from compiler.support.options import options_of

register("distill", distill, lambda settings: options_of(DistillationOptions, settings).check())
