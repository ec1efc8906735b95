"""ONNX models to Relax."""

from compiler.frontends.onnx.frontend import import_onnx

__all__ = ["import_onnx"]
