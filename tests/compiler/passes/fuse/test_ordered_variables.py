"""The order of a kernel's size arguments that no dimension defines."""

from __future__ import annotations

import schedules.ir.load_tvm  # noqa: F401  (first, so that TVM loads without torch)

# isort: split
from tvm import relax, te, tirx

import compiler.passes.fuse.ordered_variables  # noqa: F401  (what is tested)


def test_sizes_are_taken_in_the_order_of_their_use() -> None:
    """A set would give nine variables in this order with a probability of 1 in 362,880."""
    sizes = [tirx.Var(f"size{number}", "int64") for number in range(9)]
    x = relax.Var("x", relax.TensorType([size * 2 for size in sizes], "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        builder.emit_func_output(builder.call_te(lambda data: te.compute(data.shape, lambda *i: data(*i)), x))
    kernel = next(each for _, each in builder.get().functions_items() if isinstance(each, tirx.PrimFunc))
    given = [each for each in kernel.params if not tirx.is_buffer_var(each)]
    assert [str(each.name) for each in given] == [str(size.name) for size in sizes]
