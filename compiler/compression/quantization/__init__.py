"""Quantization with the accuracy measured: `quantize`."""

from compiler.compression.quantization.driver import TECHNIQUES, quantize
from compiler.compression.quantization.model import QuantizedModel
from compiler.compression.quantization.report import LayerReport, QuantizationReport

__all__ = ["TECHNIQUES", "LayerReport", "QuantizationReport", "QuantizedModel", "quantize"]
