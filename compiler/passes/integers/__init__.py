"""Quantized operators in integer arithmetic from end to end."""
