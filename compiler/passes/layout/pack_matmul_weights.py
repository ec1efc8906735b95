"""pack-matmul-weights: constant weights of matrix products are stored in panels, as the inner loop reads them."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import GenericConst, IRModule
from tvm.relax.expr_functor import PyExprMutator, mutator

from compiler.passes.context import PipelineContext
from compiler.passes.layout.packer import pack_all
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.expansion import exact_half
from compiler.passes.rewriting.matching import Array, array_of, as_constant, shape_of
from schedules.instructions.products.operation import DOT_F16, HALVES, Operation
from schedules.instructions.products.table import halves_pay, operation_of, tile_product
from schedules.instructions.rounding import stored_halves
from schedules.ir.tvm_types import Call, Expr
from schedules.machine import Machine
from schedules.matmul.packed_operand import FUSABLE, pack_panels, pack_words, packed_matmul
from schedules.matmul.tiling import panel_width
from schedules.matmul.words import MATRICES, matmul_matrix, matmul_words

# From more rows on, widening weights costs more than reading them.
_FEW_ROWS = 4
# Of data, weights and result.
_DTYPES = (
    ("float32", "float32", "float32"),
    ("uint8", "int8", "int32"),
    ("int8", "int8", "int32"),
    ("float32", "int8", "float32"),
)

_OF_FLOAT16 = (("float16", "float16", "float16"), ("float16", "float16", "float32"))


@graph_pass(
    "pack-matmul-weights",
    summary="Store constant weights of matrix products in panels for the inner loop",
    only="processor",
)
def pack_matmul_weights(mod: IRModule, context: PipelineContext) -> IRModule:
    """Rewrites `matmul(x, constant)` with a 2-D constant of float32, or of int8 where x is 8-bit integers and the
    result int32; does nothing without a machine to pack for.

    Weights that float16 holds exactly are read in it where there are few rows. The option "precision" set to "bf16"
    or "float16" rounds weights and data to that, where the machine multiplies those faster.
    """
    if context.machine is None:
        return mod
    halves = HALVES.get(context.options.precision)
    pays = halves is not None and halves_pay(context.machine, halves)
    return pack_all(_Packer(mod, context.machine, halves if pays else None), mod)


@mutator
class _Packer(PyExprMutator):
    def __init__(self, mod: IRModule, machine: Machine, halves: Operation | None) -> None:
        super().__init__(mod)
        self.halves = halves
        self.machine = machine
        self.count = 0
        self._packed: dict[tuple[Any, ...], Any] = {}

    def visit_call_(self, call: Call) -> Expr:
        call = self.visit_expr_post_order(call)
        if not isinstance(call, relax.Call) or getattr(call.op, "name", "") != "relax.matmul":
            return call
        data, weight = call.args
        width = self._width(data, weight, call)
        if not width:
            return call
        self.count += 1
        columns = int(weight.ty.shape.values[1])
        if str(call.ty.dtype) == "int32":
            return self._integers(data, weight, width, columns)
        if str(data.ty.dtype) == "float16":
            data = self.builder_.emit(relax.op.astype(data, "float32"))
        product = self.builder_.call_te(
            partial(matmul_words, operation=self.halves) if self.halves is not None else packed_matmul,
            data,
            self._panels(weight, width, few=self._few_rows(data)),
            columns,
            primfunc_name_hint="matmul",
            primfunc_attrs={"op_pattern": FUSABLE},
        )
        if str(call.ty.dtype) != "float16":
            return product
        return self.builder_.normalize(relax.op.astype(self.builder_.emit(product), "float16"))

    def _integers(self, data: Expr, weight: Expr, width: int, columns: int) -> Expr:
        key, dtype = (weight, width), str(data.ty.dtype)
        operation = operation_of(self.machine, dtype, "int8")
        if key not in self._packed:
            self._packed[key] = as_constant(self._words(array_of(weight), width, operation))
        product = self.builder_.call_te(
            matmul_matrix if operation in MATRICES else partial(matmul_words, operation=operation),
            data,
            self._packed[key],
            columns,
            primfunc_name_hint="matmul",
            primfunc_attrs={"op_pattern": FUSABLE},
        )
        shift = operation.shift(dtype)
        if not shift:
            return product
        sums = array_of(weight).astype(np.int32).sum(axis=0, dtype=np.int32)
        return self.builder_.normalize(relax.op.add(self.builder_.emit(product), as_constant(sums * -shift)))

    def _words(self, values: Array, width: int, operation: Operation) -> Array:
        """A weight for the products of a machine that compute an operation, which all read it."""
        tiles = tile_product(self.machine, operation)
        return pack_words(values, width, operation.group, tiles.depth if tiles is not None else 0)

    def _width(self, data: Expr, weight: Expr, call: Call) -> int:
        """The columns of a panel, 0 when the call is left alone."""
        if not isinstance(weight, GenericConst) or weight.ty.ndim != 2:
            return 0
        types = tuple(str(each.ty.dtype) for each in (data, weight, call))
        if types not in (_DTYPES if self.halves is not DOT_F16 else (*_DTYPES, *_OF_FLOAT16)):
            return 0
        shape = shape_of(data)
        depth, columns = (int(size) for size in weight.ty.shape.values)
        if shape is None or len(shape) < 2 or 0 in shape or not depth or columns < self.machine.lanes("float32"):
            return 0
        return panel_width(columns, self.machine)

    def _few_rows(self, data: Expr) -> bool:
        """True if reading the weights takes longer than multiplying with them, and the machine widens float16."""
        shape = shape_of(data) or [None]
        known = all(isinstance(size, int) for size in shape)
        loads_half = self.machine.has("f16c") or self.machine.architecture == "aarch64"
        return loads_half and known and int(np.prod(shape[:-1])) <= _FEW_ROWS

    def _panels(self, weight: Expr, width: int, *, few: bool) -> Expr:
        key = (weight, width, few)
        if key not in self._packed:
            values = array_of(weight)
            half = exact_half(values) if few and self.halves is None else None
            read = half if half is not None and half.dtype == np.float16 else values
            self._packed[key] = as_constant(
                pack_panels(read, width)
                if self.halves is None
                else self._words(stored_halves(values, self.halves), width, self.halves)
            )
        return self._packed[key]
