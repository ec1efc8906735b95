"""The engine's names that schedules are written with, imported in the right order (without torch)."""

from __future__ import annotations

import schedules.ir.load_tvm  # noqa: F401

# isort: split
import tvm
from tvm import s_tir, tirx
from tvm_ffi import StructuralKey, structural_equal, structural_hash, structural_map, structural_walk

__all__ = [
    "StructuralKey",
    "s_tir",
    "structural_equal",
    "structural_hash",
    "structural_map",
    "structural_walk",
    "tirx",
    "tvm",
]
