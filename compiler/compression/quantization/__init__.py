"""Quantization with the accuracy measured: `quantize`."""

from compiler.compression.quantization.driver import quantize
from compiler.compression.quantization.model import QuantizedModel
from compiler.compression.quantization.report import LayerReport, QuantizationReport
from compiler.compression.quantization.settings import TECHNIQUES

__all__ = ["TECHNIQUES", "LayerReport", "QuantizationReport", "QuantizedModel", "quantize"]
