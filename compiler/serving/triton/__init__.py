"""Model repositories for Triton Inference Server, with a backend that runs modules."""

from compiler.serving.triton.repository import TritonOptions, TritonRepository, write_triton_repository

__all__ = ["TritonOptions", "TritonRepository", "write_triton_repository"]
