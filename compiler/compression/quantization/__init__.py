"""Quantization with the accuracy measured: `quantize`."""

from compiler.compression.quantization.driver import quantize
from compiler.compression.quantization.report import LayerReport, QuantizationReport, QuantizedModel
from compiler.compression.quantization.settings import TECHNIQUES

__all__ = ["TECHNIQUES", "LayerReport", "QuantizationReport", "QuantizedModel", "quantize"]
