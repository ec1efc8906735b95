"""Convolution and pooling: direct, Winograd, sparse, depthwise, integer."""
