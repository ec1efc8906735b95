"""Matmuls with block-quantized weights: weight layout, tensor expressions, and kernels that dequantize on the fly."""
