"""A module that returns the preprocessed image as a net would read it."""

from __future__ import annotations

import tvm
from tvm import relax, tirx

import tensorwright
from compiler.frontends.imported_model import with_rewritten_main
from compiler.frontends.processing.geometry import emit_frame
from compiler.support.processing import Processing, completed
from schedules.ir.tvm_types import BlockBuilder, Function


def frame_module(processing: Processing, size: tuple[int, int], layout: str = "NCHW") -> tensorwright.Module:
    """An image, uint8 (height, width, 3), becomes the frame, float32."""

    def function(builder: BlockBuilder) -> Function:
        sizes = [tirx.Var(name, "int64") for name in ("height", "width")]
        image = relax.Var("image", relax.TensorType([*sizes, tirx.const(3, "int64")], "uint8"))
        builder.begin_scope([image])
        builder._begin_binding_block()
        frame = emit_frame(builder, image, completed(processing), size, layout)
        block = builder._end_block()
        builder.end_scope()
        whole = relax.Var("results", relax.TupleType([frame.ty]))
        bindings = [*block.bindings, relax.VarBinding(whole, relax.Tuple([frame]))]
        body = relax.SeqExpr([relax.BindingBlock(bindings)], whole)
        made = relax.Function([image], builder.normalize(body), is_pure=True)
        return made.with_attr({"global_symbol": "main"})

    return tensorwright.compile(with_rewritten_main(tvm.IRModule(), function, "the frame"), threads=1)
