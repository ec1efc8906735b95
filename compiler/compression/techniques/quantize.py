"""`quantize` in a recipe."""

from compiler.compression.quantization import quantize
from compiler.compression.quantization.settings import check_settings
from compiler.compression.techniques.registry import register

register("quantize", quantize, check_settings)
