"""Rows written into a tensor: in place, where the tensor is a state that nothing else reads."""

from __future__ import annotations

from tvm import relax

from compiler.frontends.onnx.bounds import require_shape, require_values
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.registry import TORCH_DOMAIN, converter
from compiler.passes.rewriting.state_writes import write_places


@converter("WritePlaces", domain=TORCH_DOMAIN)
def write_rows_at_places(context: NodeContext) -> relax.Expr:
    """Row i of input 2 goes to place `places[i]` (input 1) along `axis` of input 0; a place outside is an error."""
    axis = context.axis(context.attribute("axis", 0), context.rank(0))
    shape, places = context.shape(0), context.shape(1)
    require_shape(context, context.shape(2), [*shape[:axis], places[0], *shape[axis + 1 :]], "the rows")
    require_values(context, 1, 0, shape[axis])
    data, index, rows = (context.input(position) for position in range(3))
    return write_places(context.importer.builder.block_builder, data, rows, index, axis)
