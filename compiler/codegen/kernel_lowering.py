"""TVM's lowering of kernels with five changes: needless checks of arguments are left out, tiles of registers
lie on the stack, vectors have the lengths that rules gave them, indices hold no Let, and scratch buffers of booleans
hold bytes (see `compiler.codegen.boolean_scratch`).

A kernel is only called by the module it belongs to, on tensors that the virtual machine made or has checked. TVM
still has each kernel look at each argument's type, rank, element type, device and strides, with a message that holds
the whole signature for each: often more code than the kernel itself. Symbolic sizes stay checked, and so does anything
that is not recognized here.

Buffers of the scope "local" are tiles that are to be held in registers. TVM would take them from the heap, where
LLVM promotes what it can late and not all of it.

Lets in indices come from divisions by sizes, in TVM's last steps (see `schedules.ir.lets`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import tvm
from tvm import tirx

from compiler.codegen.boolean_scratch import bytes_for_booleans
from compiler.codegen.chunked_loops import with_chunk_functions
from compiler.codegen.fixed_vectors import with_fixed_vectors
from compiler.codegen.plain_kernels import with_plain_kernels
from schedules.ir.lets import inlined_divisions, kept_differences, opaque_floats
from schedules.ir.stages import dtype_of, product, shape_of
from schedules.ir.tir import structural_map, structural_walk
from schedules.machine import dtype_bits

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Node, Stmt

PIPELINE = "tensorwright"
_STACK_BITS = 8 * (16 << 10)  # far larger than any tile held in registers

# Messages of TVM's argument checks, after the name of the argument.
_OF_A_TENSOR = (".ndim", ".dtype", ".device_type", ".device_id", ".strides", " data pointer is NULL")
_OF_A_CALL = ("Expected ", "args pointer is NULL", "Mismatched type on argument #")


def _pipeline() -> tuple[tvm.transform.Pass, tvm.transform.Pass, Callable[[], tvm.transform.Pass]]:
    lower, finalize_host, finalize_device = tvm.tirx.get_tir_pipeline("s_tir")

    @tvm.transform.module_pass(opt_level=0, name="LowerKernels")
    def lowered(mod: tvm.IRModule, _context: object) -> tvm.IRModule:
        fixed = with_fixed_vectors(with_plain_kernels(lower))
        # Schedules copy loops with the variables bound in them; TVM's simplifier wants one value for each variable.
        unique = _rewritten(tirx.transform.ConvertSSA()(mod), lambda body: bytes_for_booleans(kept_differences(body)))
        return _rewritten(fixed(unique), lambda body: _on_stack(_unchecked(_without_scopes(body))))

    @tvm.transform.module_pass(opt_level=0, name="FinishKernels")
    def finished(mod: tvm.IRModule, _context: object) -> tvm.IRModule:
        return with_chunk_functions(_rewritten(mod, lambda body: opaque_floats(inlined_divisions(body))))

    def finalize() -> tvm.transform.Pass:
        return tvm.transform.Sequential([finalize_host(), finished])

    return lowered, finalize, finalize_device


def _rewritten(mod: tvm.IRModule, rewrite: Callable[[Node], Node]) -> tvm.IRModule:
    changed = {
        var: function.with_body(rewrite(function.body))
        for var, function in mod.functions_items()
        if isinstance(function, tirx.PrimFunc)
    }
    return tvm.IRModule({**dict(mod.functions_items()), **changed}, attrs=mod.attrs)


def _without_scopes(body: Stmt) -> Stmt:
    """Attributes of TVM's operators that its code generator does not know and warns about."""

    def visit(mark: Stmt) -> Stmt:
        return mark.body if str(mark.attr_key) == "pragma_scope" else mark

    return structural_map(body, (tirx.AttrStmt, visit))


def _on_stack(body: Stmt) -> Stmt:
    def visit(allocation: Stmt) -> Stmt:
        buffer = allocation.buffer
        size = product(shape_of(buffer))
        if str(buffer.ty.storage_scope) != "local" or size is None or size * dtype_bits(dtype_of(buffer)) > _STACK_BITS:
            return allocation
        return tirx.AllocBuffer(buffer, annotations={"disable_lower_builtin": tirx.IntImm("bool", 1)})

    return structural_map(body, (tirx.AllocBuffer, visit))


def _unchecked(body: Stmt) -> Stmt:
    symbolic = _has_symbolic_sizes(body)

    def visit(check: Stmt) -> Stmt:
        return tirx.Evaluate(tirx.IntImm("int32", 0)) if _is_needless(check, symbolic) else check

    return structural_map(body, (tirx.AssertStmt, visit))


def _parts(check: Stmt) -> list[str]:
    return [str(part.value) for part in check.message_parts]


def _is_needless(check: Stmt, symbolic: bool) -> bool:
    parts = _parts(check)
    if parts[0].startswith(_OF_A_CALL):
        return True
    about_argument = any(part.endswith(" on argument #") for part in parts[:3])
    if not about_argument:
        return False
    subject = "".join(parts[:3])
    return any(each in subject for each in _OF_A_TENSOR) or (".shape[" in subject and not symbolic)


def _has_symbolic_sizes(body: Stmt) -> bool:
    """True if some argument's size is a variable: it is then compared with others or read as a value."""
    found = False

    def visit(check: Stmt) -> None:
        nonlocal found
        condition = check.condition
        if ".shape[" in "".join(_parts(check)[:3]) and isinstance(condition, tirx.EQ):
            found = found or not any(isinstance(side, tirx.IntImm) for side in (condition.a, condition.b))

    structural_walk(body, (tirx.AssertStmt, visit))
    return found


tirx.compilation_pipeline.register_tir_pipeline(PIPELINE, _pipeline)
