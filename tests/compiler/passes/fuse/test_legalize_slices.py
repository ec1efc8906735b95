"""Slices of dynamic sizes have the numbers that their sizes are proved to be, and what broadcasts them sees a 1."""

from __future__ import annotations

import numpy as np
import torch
import tvm
from torch import nn
from torch.export import Dim
from tvm import relax, tirx
from tvm.relax import op

import compiler
from compiler.passes.context import PipelineContext
from compiler.passes.fuse.legalizations import legalize_operators
from tests.unoptimized import unoptimized_machine


class Readout(nn.Module):
    """A class token before the patches of an image, expanded to them and added to them, as in DPT."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 4, 4, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([torch.ones(1, 1, 4).expand(x.shape[0], -1, -1), patches], 1)
        return tokens[:, :1].expand_as(tokens[:, 1:]), tokens[:, :1] + tokens[:, 1:], tokens[:, 1:3] * 2


def test_the_first_of_a_dynamic_number_of_rows_is_broadcast() -> None:
    net = Readout().eval().requires_grad_(False)
    sizes = dict.fromkeys((0, 2, 3), Dim.DYNAMIC)
    module = compiler.compile(net, example_inputs=(torch.randn(2, 3, 8, 12),), dynamic_shapes=(sizes,), threads=1)
    for shape in ((2, 3, 8, 12), (1, 3, 17, 9), (3, 3, 12, 4)):
        x = torch.randn(*shape)
        for ours, theirs in zip(module.run([x]).values(), net(x), strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-5)


def test_a_size_that_may_be_one_is_broadcast_at_run_time() -> None:
    builder, rows, wanted = relax.BlockBuilder(), tirx.Var("n", "int64"), tirx.Var("m", "int64")
    x = relax.Var("x", relax.TensorType([rows, 3], "float32"))
    shape = relax.Var("shape", relax.ShapeType([wanted]))
    with builder.function("main", [x, shape]):
        builder.emit_func_output(builder.emit(op.broadcast_to(x, [wanted, 3])))
    mod = legalize_operators(builder.get(), PipelineContext())
    machine = unoptimized_machine(mod)
    for count in (1, 5):
        values = np.random.default_rng(count).standard_normal((count, 3)).astype("float32")
        found = machine["main"](tvm.runtime.tensor(values), tvm.runtime.ShapeTuple([5]))
        np.testing.assert_array_equal(found.numpy(), np.broadcast_to(values, (5, 3)))
