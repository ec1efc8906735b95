"""Quantization, integer products, narrow floating-point types."""
