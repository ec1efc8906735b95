"""Products with block-quantized weights: their layout, their expressions, and the kernels that run from the blocks."""
