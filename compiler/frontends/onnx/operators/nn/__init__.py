"""Convolution, pooling, normalization, attention, resizing."""
