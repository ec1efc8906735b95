"""Quantized transformers folders: the storage layouts, one file per package that writes them."""
