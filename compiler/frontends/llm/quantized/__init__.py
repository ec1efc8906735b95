"""Quantized folders of transformers: the layouts of the packages that write them, one file per package."""
