"""TVM names used in schedules, imported in the right order (without torch)."""

from __future__ import annotations

import schedules.ir.load_tvm  # noqa: F401

# isort: split
import tvm as tvm
from tvm import relax as relax
from tvm import s_tir as s_tir
from tvm import te as te
from tvm import tirx as tirx
from tvm_ffi import StructuralKey as StructuralKey
from tvm_ffi import structural_equal as structural_equal
from tvm_ffi import structural_hash as structural_hash

from schedules.ir.structural import structural_map as structural_map
from schedules.ir.structural import structural_walk as structural_walk
from schedules.ir.tvm_types import *  # noqa: F403

VECTORIZED = tirx.ForKind.VECTORIZED
