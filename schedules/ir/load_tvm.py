"""Import this before `tvm`, which then loads without torch, and hands interrupts on."""

from __future__ import annotations

import gc
import importlib

from schedules.ir.without_torch import torch_hidden

__all__ = ["torch_hidden"]

_collects = gc.isenabled()
gc.disable()  # collections, which find nothing, take a sixth of the time to import TVM
try:
    with torch_hidden():
        importlib.import_module("tvm")
        import tvm_ffi
finally:
    if _collects:
        gc.enable()

# What a callback raises comes out of TVM as the class that is registered by its name, and else as a RuntimeError, which
# would be taken for a failure of the callback.
for _each in (KeyboardInterrupt, SystemExit):
    tvm_ffi.register_error(_each.__name__, _each)
