"""Modules in a model repository of Triton Inference Server, with the backend that runs them there."""

from compiler.serving.triton.repository import TritonOptions, TritonRepository, write_triton_repository

__all__ = ["TritonOptions", "TritonRepository", "write_triton_repository"]
