"""Runs compiled modules on a device; needs only TVM's runtime library.

Importing this loads neither TVM's compiler nor its Python package, nor torch.
"""

from compiler.runtime.module import Module, load

__all__ = ["Module", "load"]
