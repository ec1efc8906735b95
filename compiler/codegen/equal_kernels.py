"""Kernels that differ only in names or constants are compiled once; each name becomes a symbol that calls the shared
code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import tvm
import tvm_ffi
from tvm import te

from compiler.codegen.shared_kernels import SharedCall
from schedules.ir.named_sizes import name_sizes

if TYPE_CHECKING:
    from schedules.ir.tvm_types import GlobalVar, PrimFunc

Kernel: TypeAlias = "tuple[GlobalVar, PrimFunc]"  # its global variable and the PrimFunc

# In the calling convention of a packed function (TVMFFISafeCallType).
_ALIAS = """
declare i32 @__tvm_ffi_{kernel}(ptr, ptr, i32, ptr)
define i32 @__tvm_ffi_{name}(ptr %0, ptr %1, i32 %2, ptr %3) {{
  %5 = tail call i32 @__tvm_ffi_{kernel}(ptr %0, ptr %1, i32 %2, ptr %3)
  ret i32 %5
}}
"""

# An argument is a type and a value of 64 bits (TVMFFIAny).
_SHARED = """
declare i32 @__tvm_ffi_{kernel}(ptr, ptr, i32, ptr)
define i32 @__tvm_ffi_{name}(ptr %0, ptr %1, i32 %2, ptr %3) {{
  %arguments = alloca [{count} x {{ i64, i64 }}], align 16
{passed}
  %result = call i32 @__tvm_ffi_{kernel}(ptr %0, ptr %arguments, i32 {count}, ptr %3)
  ret i32 %result
}}
"""
_GIVEN = """
  %from{to} = getelementptr {{ i64, i64 }}, ptr %1, i64 {at}
  %to{to} = getelementptr {{ i64, i64 }}, ptr %arguments, i64 {to}
  call void @llvm.memcpy.p0.p0.i64(ptr align 8 %to{to}, ptr align 8 %from{to}, i64 16, i1 false)"""
_CONSTANT = """
  %type{to} = getelementptr {{ i64, i64 }}, ptr %arguments, i64 {to}, i32 0
  %to{to} = getelementptr {{ i64, i64 }}, ptr %arguments, i64 {to}, i32 1
  store {{ i32, i32 }} {{ i32 {type_index}, i32 0 }}, ptr %type{to}, align 8
  store i64 {value}, ptr %to{to}, align 8"""
_COPY = "declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)"
_INTEGER = 1  # kTVMFFIInt


def distinct_kernels(kernels: Sequence[Kernel]) -> tuple[list[Kernel], dict[str, str]]:
    """One kernel of each set of equal ones, and for each other one's name that kernel's.

    Sizes that are computed from others count as sizes of their own, so that layers of images of different sizes share
    their code.
    """
    distinct: list[Kernel] = []
    aliases: dict[str, str] = {}
    by_hash: dict[int, list[Kernel]] = {}
    for variable, kernel in kernels:
        named = name_sizes(kernel)
        plain = named.without_attr("global_symbol")
        alike = by_hash.setdefault(tvm_ffi.structural_hash(plain, map_free_vars=True), [])
        known = next((each for each, other in alike if _are_equal(other, plain)), None)
        if known is None:
            alike.append((variable, plain))
            distinct.append((variable, named))
        else:
            aliases[variable.name_hint] = known.name_hint
    return distinct, aliases


def _are_equal(left: PrimFunc, right: PrimFunc) -> bool:
    return bool(tvm_ffi.structural_equal(left, right, map_free_vars=True))


def alias_object(
    aliases: Mapping[str, str], calls: Mapping[str, SharedCall], target: tvm.target.Target, pipeline: str, path: Path
) -> Path:
    """Write an object in which each name jumps to its kernel, or calls it with constants, for TVM's target."""
    x = te.placeholder((1,), name="x")
    empty = te.create_prim_func([x, te.compute((1,), lambda i: x[i])]).with_attr("global_symbol", "empty")
    with target:
        source = tvm.tirx.build(tvm.IRModule({"empty": empty}), target, pipeline).inspect_source("ll")
    lines = source.splitlines()
    layout = [line for line in lines if line.startswith("target ")]
    # By this flag TVM knows for what it generates code when it loads the text.
    flag = next(line.partition(" = ")[2] for line in lines if '!"tvm_target"' in line)
    shared = {**calls, **{name: calls[kernel] for name, kernel in aliases.items() if kernel in calls}}
    functions = [_ALIAS.format(name=name, kernel=each) for name, each in aliases.items() if name not in shared]
    functions += [_calling(name, call) for name, call in shared.items()]
    declared: set[str] = set()
    text = path.with_suffix(".ll")
    body = [line for function in functions for line in function.splitlines() if _is_first(line, declared)]
    text.write_text("\n".join([*layout, *body, "!llvm.module.flags = !{!0}", f"!0 = {flag}", ""]))
    tvm.runtime.load_module(str(text)).write_to_file(str(path), "o")
    return path


def _calling(name: str, call: SharedCall) -> str:
    """The text of a function that calls the code it shares with some of its arguments and with constants."""
    passed = [_GIVEN.format(at=at, to=to) for to, at in enumerate(call.given)]
    passed += [
        _CONSTANT.format(to=to, type_index=_INTEGER, value=value)
        for to, value in enumerate(call.constants, start=len(call.given))
    ]
    function = _SHARED.format(name=name, kernel=call.kernel, count=len(passed), passed="".join(passed))
    return f"{_COPY}\n{function}"


def _is_first(line: str, declared: set[str]) -> bool:
    """True if the line is not a declaration, or is one that was not seen before."""
    if not line.startswith("declare "):
        return True
    seen = line in declared
    declared.add(line)
    return not seen
