"""PyTorch models, through `torch.export` and its ONNX exporter: one importer serves both ecosystems.

Needs the extra `tensorwright[torch]`.
"""

from compiler.frontends.torch.exported_program import import_torch, import_torch_file

__all__ = ["import_torch", "import_torch_file"]
