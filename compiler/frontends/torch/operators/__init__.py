"""Decompositions of PyTorch operators, one file per family; every module here is discovered. They import torch."""
