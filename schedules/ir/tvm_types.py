"""Names of TVM's classes for annotations: `from schedules.ir.tvm_types import Expr`.

TVM ships no type information, so type checkers see Any; the names are for readers. Files that load only TVM's runtime
import this under `if TYPE_CHECKING:`.
"""

from __future__ import annotations

from typing import TypeAlias

import schedules.ir.load_tvm  # noqa: F401

# isort: split
import tvm_ffi
from tvm import runtime
from tvm.ir import Attrs as Attrs
from tvm.ir import Call as Call
from tvm.ir import Expr as Expr
from tvm.ir import GlobalVar as GlobalVar
from tvm.ir import IRModule as IRModule
from tvm.ir import Range as Range
from tvm.ir import Type as Type
from tvm.ir import Var as Var
from tvm.relax import Binding as Binding
from tvm.relax import BindingBlock as BindingBlock
from tvm.relax import BlockBuilder as BlockBuilder
from tvm.relax import Function as Function
from tvm.relax import SeqExpr as SeqExpr
from tvm.sym import Analyzer as Analyzer
from tvm.te import Tensor as Tensor
from tvm.tirx import Buffer as Buffer
from tvm.tirx import BufferRegion as BufferRegion
from tvm.tirx import IterVar as IterVar
from tvm.tirx import PrimFunc as PrimFunc
from tvm.tirx import Stmt as Stmt

PackedFunc: TypeAlias = tvm_ffi.Function
RuntimeModule: TypeAlias = runtime.Module
RuntimeTensor: TypeAlias = runtime.Tensor

Index: TypeAlias = Expr | int
"""An index or a size: an int if known, otherwise an expression."""

Node: TypeAlias = Expr | Stmt
"""A part of a kernel: an expression or a statement."""
