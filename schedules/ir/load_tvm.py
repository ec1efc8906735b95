"""Import this before `tvm`: TVM is then loaded without torch, and passes interrupts on."""

from __future__ import annotations

import gc
import importlib

from schedules.ir.without_torch import torch_hidden

__all__ = ["torch_hidden"]

_collects = gc.isenabled()
gc.disable()  # garbage collection during the import of TVM frees nothing and takes a sixth of the time
try:
    with torch_hidden():
        importlib.import_module("tvm")
        import tvm_ffi
finally:
    if _collects:
        gc.enable()

# TVM re-raises an exception from a callback as the class registered under its name, otherwise as a RuntimeError, which
# would look like a failure of the callback.
for _each in (KeyboardInterrupt, SystemExit):
    tvm_ffi.register_error(_each.__name__, _each)
