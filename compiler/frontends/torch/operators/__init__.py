"""Decompositions of PyTorch operators, one file a family; every module here is discovered. They import torch."""
