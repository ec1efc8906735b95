"""TVM's lowering of kernels with seven changes: unnecessary argument checks are removed, register tiles are on the
stack, vectors keep the lengths that rules chose, ends of rows are masked vectors, indices contain no Let, boolean
scratch buffers hold bytes, and kernels call others by symbol.

A kernel is only called by its own module, with tensors that the virtual machine has created or checked. TVM still
checks the type, rank, element type, device and strides of each argument, each with a message that contains the whole
signature. This is often more code than the kernel itself. Checks of symbolic sizes and any checks that are not
recognized here are kept.

Buffers with scope "local" are tiles that should be held in registers. TVM would allocate them on the heap, where LLVM
promotes only some of them, and late.

Lets in indices come from divisions by sizes in TVM's last steps (see `schedules.ir.lets`).

Boolean scratch buffers hold bytes, because TVM's pass StorageRewrite turns an allocated buffer into a buffer of vectors
if every access is a vector of the same length. It turns boolean buffers into buffers of int8 vectors, but adds no
comparison to the loads. Code generation then fails on int8 vectors that are used as conditions, or inverts them as
integers.

The extent of the next parallel loop is passed to the thread pool, so that the pool does not start more threads than
that. TVM's generated code launches a parallel region without its loop's extent. Here, the code first calls the barrier
of parallel regions, for a region of one part whose counter holds the extent. TVM's own barrier has nothing to wait for
in this case; the thread pool's barrier reads the extent (`device/cpp/thread_pool.c`).

Kernels whose blocks only hold statements, which most schedules produce, have a shorter lowering on processors. About a
third of the processor time of TVM's full lowering was spent in passes that look for blocks, GPU threads and shared
memory, mainly in `CompactBufferAllocation`, which bounds each access to each buffer. Rules that emit loops allocate
only what they need, so there is nothing to compact. That pass also shrinks a buffer whose last index runs over several
dimensions, as in loops over all of a tensor of dynamic shape, to the size of its last dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from schedules.codegen.nest import CHUNKED
from schedules.instructions.finish import with_import
from schedules.instructions.masks import with_masked_accesses
from schedules.ir.expression import DIVISIONS, buffers_loaded, constant_int, substitute
from schedules.ir.inline import call_name
from schedules.ir.lets import inlined_divisions, kept_differences, opaque_floats
from schedules.ir.size_proofs import with_shape
from schedules.ir.stages import dtype_of, product, shape_of
from schedules.ir.tir import s_tir, structural_map, structural_walk, tirx, tvm
from schedules.ir.tvm_types import Expr, GlobalVar, Node, PrimFunc, Stmt, Var
from schedules.machine import dtype_bits

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
        # Schedules copy loops together with the variables bound in them; TVM's simplifier needs one value for each
        # variable. Its vectorizer needs one occurrence, and BF16ComputeLegalize copies the values that it rounds.
        legal = tirx.transform.BF16ComputeLegalize()(mod)
        unique = _rewritten(tirx.transform.ConvertSSA()(legal), lambda body: bytes_for_booleans(kept_differences(body)))
        return _rewritten(
            fixed(unique), lambda body: with_masked_accesses(_on_stack(_divisible(_unchecked(_without_scopes(body)))))
        )

    @tvm.transform.module_pass(opt_level=0, name="FinishKernels")
    def finished(mod: tvm.IRModule, _context: object) -> tvm.IRModule:
        rewritten = _rewritten(mod, lambda body: opaque_floats(inlined_divisions(_linked(body))))
        return with_extents(with_chunk_functions(rewritten))

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
    """Remove attributes of TVM's operators that its code generator does not know and warns about."""

    def visit(mark: Stmt) -> Stmt:
        return mark.body if str(mark.attr_key) == "pragma_scope" else mark

    return structural_map(body, (tirx.AttrStmt, visit))


def _divisible(body: Stmt) -> Stmt:
    """Divide by 1 instead of 0 in sizes of allocations and bound values.

    In a loop over a size, the simplifier knows that it is not 0 and drops limits of divisors; StorageRewrite and
    CommonSubexprElim then move such divisions out of the loop.
    """

    def divided(division: Expr) -> Expr:
        a, b = division.a, division.b
        dtype = str(b.ty)
        if isinstance(b, tirx.IntImm) or not dtype.startswith("int"):
            return division
        return type(division)(a, tirx.Select(tirx.EQ(b, tirx.const(0, dtype)), tirx.const(1, dtype), b))

    fresh: dict[Var, Expr] = {}

    def allocated(allocation: Stmt) -> None:
        sizes = list(allocation.buffer.ty.shape)
        safe = [structural_map(size, (DIVISIONS, divided)) for size in sizes]
        if not all(a.same_as(b) for a, b in zip(sizes, safe, strict=True)):
            fresh[allocation.buffer] = with_shape(allocation.buffer, safe)

    def bound(binding: Stmt) -> Stmt:
        value = structural_map(binding.value, (DIVISIONS, divided))
        return binding if value.same_as(binding.value) else tirx.Bind(binding.var, value)

    structural_walk(body, (tirx.AllocBuffer, allocated))
    return structural_map(substitute(body, fresh), (tirx.Bind, bound))


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
    """The first parts of a check's message, which say what is checked."""
    return [str(part.value) for part in check.message_parts[:3]]


def _is_needless(check: Stmt, symbolic: bool) -> bool:
    parts = _parts(check)
    if parts[0].startswith(_OF_A_CALL):
        return True
    about_argument = any(part.endswith(" on argument #") for part in parts)
    if not about_argument:
        return False
    subject = "".join(parts)
    return any(each in subject for each in _OF_A_TENSOR) or (".shape[" in subject and not symbolic)


def _has_symbolic_sizes(body: Stmt) -> bool:
    """True if the size of an argument is a variable, which is then compared with others or read as a value."""
    found = False

    def visit(check: Stmt) -> None:
        nonlocal found
        condition = check.condition
        if ".shape[" in "".join(_parts(check)) and isinstance(condition, tirx.EQ):
            found = found or not any(isinstance(side, tirx.IntImm) for side in (condition.a, condition.b))

    structural_walk(body, (tirx.AssertStmt, visit))
    return found


tirx.compilation_pipeline.register_tir_pipeline(PIPELINE, _pipeline)


def _linked(body: Stmt) -> Stmt:
    """Call kernels in the same library by symbol. In its own lowering of calls, TVM declares the function for each
    call, under a different name if the name is taken."""
    call_kernel = tvm.ir.Op.get("tirx.tvm_call_cpacked_lowered")

    def visit(statement: Stmt) -> Stmt:
        call = statement.value
        if not isinstance(call, tvm.ir.Call) or not call.op.same_as(call_kernel):
            return statement
        symbol, arguments, begin, end = list(call.args)[:4]

        def argument(index: Expr) -> Expr:
            return tvm.tirx.call_intrin("handle", "tirx.handle_add_byte_offset", arguments, index * _ARGUMENT_BYTES)

        module = tirx.reinterpret("handle", tirx.const(0, "uint64"))
        called = tirx.call_extern("int32", symbol.value, module, argument(begin), end - begin, argument(end))
        failed = tirx.Evaluate(tvm.tirx.call_intrin("int32", "tirx.tvm_throw_last_error"))
        return tirx.IfThenElse(tirx.NE(called, tirx.IntImm("int32", 0)), failed, None)

    return structural_map(body, (tirx.Evaluate, visit))


_ARGUMENT_BYTES = 16  # TVMFFIAny
_SCOPE = "compute_scope"  # TVM's code generator turns its body into a function


def with_chunk_functions(mod: tvm.IRModule) -> tvm.IRModule:
    """Lowered kernels in which the bodies of loops marked `CHUNKED` are separate functions."""
    changed = {
        var: _with_functions(function)
        for var, function in mod.functions_items()
        if isinstance(function, tirx.PrimFunc) and function.attrs and "global_symbol" in function.attrs
    }
    return tvm.IRModule({**dict(mod.functions_items()), **changed}, attrs=mod.attrs)


def _with_functions(function: PrimFunc) -> PrimFunc:
    symbol = str(function.attrs["global_symbol"])
    count = 0

    def visit(loop: Stmt) -> Stmt:
        nonlocal count
        if CHUNKED not in loop.annotations:
            return loop
        name = f"{symbol}_chunk{count}_"
        count += 1
        return _called_or_launched(loop, name)

    return function.with_body(structural_map(function.body, (tirx.For, visit)))


def _called_or_launched(loop: Stmt, name: str) -> Stmt:
    """TVM passes to the function the variables that its body reads, in order, so the call can pass the same ones."""
    scope = tirx.AttrStmt(tirx.IntImm("int32", 0), _SCOPE, tvm.ir.StringImm(name), loop.body)
    launch = tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.PARALLEL, _then_nothing(scope))
    arguments = [
        loop.min if each.same_as(loop.loop_var) else each for each in tirx.analysis.undefined_vars(loop.body, [])
    ]
    called = tirx.call_extern("int32", name, *arguments)
    failed = tirx.Evaluate(tvm.tirx.call_intrin("int32", "tirx.tvm_throw_last_error"))
    call = tirx.IfThenElse(tirx.NE(called, tirx.IntImm("int32", 0)), failed, None)
    # The function is generated at the launch, so the launch comes first.
    one = tirx.IntImm(str(loop.extent.ty), 1)
    return tirx.IfThenElse(tirx.NE(loop.extent, one), _then_nothing(launch), call)


def _then_nothing(statement: Stmt) -> Stmt:
    """A statement followed by one that sets its own debug location. Otherwise TVM gives the code after a function the
    debug location of the function's last statement, which LLVM rejects."""
    return tirx.SeqStmt([statement, tirx.Evaluate(tirx.IntImm("int32", 0))])


_SCALABLE = ("+v", "+zv")


def with_fixed_vectors(lower: Callable[[tvm.IRModule], tvm.IRModule]) -> Callable[[tvm.IRModule], tvm.IRModule]:
    """`lower` without information about scalable vectors."""

    def lowered(mod: tvm.IRModule) -> tvm.IRModule:
        hidden = {feature for target in _targets(mod) for feature in _scalable(target)}
        if not hidden:
            return lower(mod)
        fixed = _retargeted(mod, lambda names: [name for name in names if name not in hidden])
        with next(_targets(fixed)):
            result = lower(fixed)
        return _retargeted(result, lambda names: [*names, *sorted(hidden)])

    return lowered


def _targets(mod: tvm.IRModule) -> Iterator[tvm.target.Target]:
    functions = (function for _, function in mod.functions_items() if isinstance(function, tirx.PrimFunc))
    return (function.attrs["target"] for function in functions if function.attrs and "target" in function.attrs)


def _scalable(target: tvm.target.Target) -> list[str]:
    return [str(name) for name in target.attrs.get("mattr", ()) if str(name).startswith(_SCALABLE)]


def _retargeted(mod: tvm.IRModule, change: Callable[[list[str]], list[str]]) -> tvm.IRModule:
    """`mod` with changed processor features in its functions' targets."""

    def changed(options: Mapping[str, Any]) -> dict[str, Any]:
        result = {**options, "mattr": change([str(name) for name in options.get("mattr", ())])}
        if "host" in options:
            result["host"] = changed(options["host"])
        return result

    functions = {
        var: function.with_attr("target", tvm.target.Target(changed(function.attrs["target"].export())))
        if isinstance(function, tirx.PrimFunc) and function.attrs and "target" in function.attrs
        else function
        for var, function in mod.functions_items()
    }
    return tvm.IRModule(functions, attrs=mod.attrs)


def bytes_for_booleans(body: Stmt) -> Stmt:
    """Replace a statement's allocated boolean buffers by int8 buffers: stores write 1 or 0, loads compare with 0.

    Buffers whose address is taken, or that are aliased by others, are left unchanged.
    """
    bytes_of = {buffer: _of_bytes(buffer) for buffer in _allocated(body) if dtype_of(buffer) == "bool"}
    for buffer in _aliased(body):
        bytes_of.pop(buffer, None)
    if not bytes_of:
        return body
    byte_buffers = set(bytes_of.values())

    def renamed(variable: Var) -> Expr:
        return bytes_of.get(variable, variable)

    def load(node: Expr) -> Expr:
        if node.source not in byte_buffers:
            return node
        value = tirx.BufferLoad(node.source, list(node.indices))
        return tirx.NE(value, tirx.const(0, str(value.ty)))

    def store(node: Stmt) -> Stmt:
        if node.buffer not in byte_buffers:
            return node
        return tirx.BufferStore(node.buffer, _number(node.value), list(node.indices))

    return structural_map(body, [(tvm.ir.Var, renamed), (tvm.ir.TensorLoad, load), (tirx.BufferStore, store)])


def _allocated(body: Stmt) -> list[Expr]:
    buffers: list[Stmt] = []
    structural_walk(
        body,
        [
            (s_tir.SBlock, lambda block: buffers.extend(block.alloc_buffers)),
            (tirx.AllocBuffer, lambda allocation: buffers.append(allocation.buffer)),
        ],
    )
    return buffers


def _aliased(body: Stmt) -> list[Expr]:
    """Buffers whose address is taken, or that others match; loads as call arguments are values."""
    aliased: list[Node] = []

    def call(node: Expr) -> None:
        by_address = call_name(node) == "tirx.address_of"
        aliased.extend(arg.source if by_address and isinstance(arg, tvm.ir.TensorLoad) else arg for arg in node.args)

    def block(node: Stmt) -> None:
        aliased.extend(matched.source.source for matched in node.match_buffers)

    structural_walk(body, [(tvm.ir.Call, call), (s_tir.SBlock, block)])
    return [each for each in aliased if isinstance(each, tvm.ir.Var)]


def _of_bytes(buffer: Expr) -> Expr:
    kind = buffer.ty
    return tirx.decl_buffer(
        list(kind.shape),
        "int8",
        str(buffer.name),
        strides=list(kind.strides),
        elem_offset=kind.elem_offset,
        scope=str(kind.storage_scope),
        data_alignment=int(kind.data_alignment),
        offset_factor=int(kind.offset_factor),
        layout=kind.layout,
    )


def _number(condition: Expr) -> Expr:
    return tirx.Cast("int8" + str(condition.ty).removeprefix("bool"), condition)


_EXTENT_FUNCTION = "tensorwright_extent"
_MAX_THREADS = 4096  # threads: for larger extents, all threads are used
_TEXT = f"""
@__TVMBackendParallelBarrier = external global ptr

define i32 @{_EXTENT_FUNCTION}(i32 %extent) {{
  %counter = alloca i32
  %group = alloca {{ ptr, i32 }}
  %barrier = load ptr, ptr @__TVMBackendParallelBarrier
  %none = icmp eq ptr %barrier, null
  br i1 %none, label %end, label %tell
tell:
  %count = getelementptr {{ ptr, i32 }}, ptr %group, i64 0, i32 1
  store i32 %extent, ptr %counter
  store ptr %counter, ptr %group
  store i32 1, ptr %count
  %status = call i32 %barrier(i32 0, ptr %group)
  br label %end
end:
  ret i32 0
}}
"""


def with_extents(mod: tvm.IRModule) -> tvm.IRModule:
    """Lowered kernels that announce the extents of their parallel loops to the thread pool."""
    changed = {
        var: _with_extents(function) for var, function in mod.functions_items() if isinstance(function, tirx.PrimFunc)
    }
    return tvm.IRModule({**dict(mod.functions_items()), **changed}, attrs=mod.attrs)


def _with_extents(function: PrimFunc) -> PrimFunc:
    used = False

    def visit(loop: Stmt) -> Stmt:
        nonlocal used
        extent = loop.extent
        if loop.kind != tirx.ForKind.PARALLEL or (isinstance(extent, tirx.IntImm) and int(extent) >= _MAX_THREADS):
            return loop
        used = True
        bounded = (
            extent if isinstance(extent, tirx.IntImm) else tirx.min(extent, tirx.IntImm(str(extent.ty), _MAX_THREADS))
        )
        call = tirx.call_extern("int32", _EXTENT_FUNCTION, tirx.Cast("int32", bounded))
        # An empty statement with its own debug location: otherwise the following code has one from the loop's function.
        return tirx.SeqStmt([tirx.Evaluate(call), loop, tirx.Evaluate(tirx.IntImm("int32", 0))])

    body = structural_map(function.body, (tirx.For, visit))
    return function.with_body(with_import(body, _TEXT)) if used else function


Lowering = Callable[[tvm.IRModule], tvm.IRModule]


def with_plain_kernels(lower: Lowering) -> Lowering:
    """`lower`, except that kernels of plain loops only go through the passes relevant to them."""
    lower_plain = _plain_passes()

    def lowered(mod: tvm.IRModule) -> tvm.IRModule:
        functions = list(mod.functions_items())
        plain = {var for var, function in functions if is_plain(function)}
        if not plain:
            return lower(mod)
        results: dict[GlobalVar, PrimFunc] = {}
        for pick, lowering in ((True, lower_plain), (False, lower)):
            part = {var: function for var, function in functions if (var in plain) == pick}
            if part:
                results.update(lowering(tvm.IRModule(part, attrs=mod.attrs)).functions_items())
        return tvm.IRModule(results, attrs=mod.attrs)

    return lowered


def is_plain(function: PrimFunc) -> bool:
    """True for a PrimFunc for a processor whose blocks only hold statements."""
    if not isinstance(function, tirx.PrimFunc) or function.attrs is None or "target" not in function.attrs:
        return False
    return str(function.attrs["target"].kind.name) == "llvm" and holds_statements(function)


def holds_statements(function: PrimFunc) -> bool:
    """True if the blocks of a PrimFunc hold statements and allocations: none has variables, a predicate or a start."""
    blocks: list[Stmt] = []
    structural_walk(function.body, (s_tir.SBlockRealize, blocks.append))
    return all(constant_int(each.predicate) == 1 and _is_bare(each.block) for each in blocks)


def _is_bare(block: Stmt) -> bool:
    holds = (block.iter_vars, block.match_buffers, block.annotations)
    return block.init is None and not any(map(len, holds))


def _plain_passes() -> tvm.transform.Pass:
    """TVM's pipeline "s_tir" in its order, without the passes for blocks and GPUs, and without those that LLVM makes
    redundant.

    LLVM hoists conditions and removes empty loops: its code was the same without `HoistIfThenElse` and `RemoveNoOp`. It
    also finds common subexpressions better itself: those that `CommonSubexprElim` creates outside of loops occupy
    registers, and code with them was 12 % larger and took 13 % longer to generate.
    """
    return tvm.transform.Sequential(
        [
            s_tir.transform.CanonicalizeLoop(),
            s_tir.transform.StmtSimplify(),
            s_tir.transform.AnnotateIrregularLoop(),
            s_tir.transform.LowerOpaqueBlock(),
            tirx.transform.FlattenBuffer(),
            tirx.transform.BF16ComputeLegalize(),
            tirx.transform.NarrowDataType(32),
            s_tir.transform.LoopPartition(),
            tirx.transform.VectorizeLoop(True),
            tirx.transform.StorageRewrite(),
            tirx.transform.UnrollLoop(),
            s_tir.transform.RenormalizeSplitPattern(),
            tirx.transform.StmtSimplify(),
            s_tir.transform.RewriteUnsafeSelect(),
            _guard_vector_loads(),
            tirx.transform.FP8ComputeLegalize(),
            tirx.transform.AnnotateEntryFunc(),
            tirx.transform.SplitHostDevice(),
            tirx.transform.MakePackedAPI(),
            tirx.transform.FP8StorageLegalize(),
            tirx.transform.BF16StorageLegalize(),
        ]
    )


def _guard_vector_loads() -> tvm.transform.Pass:
    @tirx.transform.prim_func_pass(opt_level=0, name="GuardVectorLoads")
    def guarded(function: PrimFunc, _mod: tvm.IRModule, _context: object) -> PrimFunc:
        return function.with_body(structural_map(function.body, (tirx.Select, _guarded)))

    return guarded


def _guarded(select: Expr) -> Expr:
    """Replace a Select that loads vectors under one condition for all lanes with a branch.

    TVM's simplifier drops the limits of an index that hold under the condition, so the side that is not chosen may read
    outside of its buffer. `RewriteUnsafeSelect` handles only scalars.
    """
    condition, sides = select.condition, (select.true_value, select.false_value)
    if not isinstance(condition, tirx.Broadcast) or not any(map(buffers_loaded, sides)):
        return select
    return tirx.if_then_else(condition.value, *sides)
