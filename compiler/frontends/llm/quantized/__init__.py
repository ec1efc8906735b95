"""Quantized folders of transformers: the layouts of the packages that write them, a file a package."""
