"""Import this before `tvm`, which then loads without torch."""

from __future__ import annotations

import importlib

from schedules.ir.without_torch import torch_hidden

__all__ = ["torch_hidden"]

with torch_hidden():
    importlib.import_module("tvm")
