"""`distill` in a recipe."""

from compiler.compression.distillation import check_settings, distill
from compiler.compression.techniques.registry import register

register("distill", distill, check_settings)
