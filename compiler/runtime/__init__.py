"""What runs on a device: compiled modules, with TVM's runtime library alone.

Importing this loads neither TVM's compiler nor its Python package, nor torch.
"""

from compiler.runtime.module import Module, load

__all__ = ["Module", "load"]
