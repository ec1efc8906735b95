"""`outputs=`: outputs of ONNX, PyTorch and Relax models selected by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from tvm import relax

import compiler
from compiler.cli import main
from compiler.errors import OptionError
from compiler.frontends.source import import_model
from tests.compiler.building import write
from tests.compiler.cli.running import isolated_consoles

_X = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)


def _two_headed() -> onnx.ModelProto:
    """sum and double of x, and what no importer takes; `inner` is not an output."""
    return onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 18, "unknown" : 1]> heads (float[n, 3] x)'
        "=> (float[n] total, float[n, 3] double, float[n, 3] strange)"
        "{ axis = Constant<value_ints = [1]>() inner = Add(x, x) double = Identity(inner)"
        "  total = ReduceSum<keepdims = 0>(x, axis) strange = unknown.Odd(x) }"
    )


def test_outputs_come_in_the_order_of_their_names_and_nothing_else_is_imported() -> None:
    found = compiler.compile(_two_headed(), outputs=["double", "total"], threads=1).run([_X])
    assert list(found) == ["double", "total"]
    np.testing.assert_array_equal(found["double"], 2 * _X)
    np.testing.assert_allclose(found["total"], _X.sum(1), rtol=1e-6)


def test_an_inner_value_of_an_onnx_graph_and_the_command_line(tmp_path: Path) -> None:
    path = write(_two_headed(), tmp_path / "heads.onnx")
    with isolated_consoles():
        assert main(["compile", str(path), "-o", str(tmp_path / "m.twm"), "--outputs", "inner"]) == 0
    module = compiler.load(tmp_path / "m.twm")
    np.testing.assert_array_equal(module.run([_X])["inner"], 2 * _X)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (["duble"], "did you mean 'double'"),
        (["qqq"], "its outputs are 'total', 'double', 'strange'"),
        ([], "names no output"),
        ("double", "must be a list"),
        (["double", "double"], "named twice"),
    ],
)
def test_names_that_are_none(outputs: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        import_model(_two_headed(), outputs=outputs)


class _Heads(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sine": x.sin(), "cosine": x.cos()}


def test_outputs_of_a_torch_module() -> None:
    x = torch.from_numpy(_X)
    model = import_model(_Heads().eval(), example_inputs=(x,), outputs=["cosine"])
    assert [each.name for each in model.outputs] == ["cosine"]
    assert "sin(" not in model.mod.script().replace("asin", "")
    with pytest.raises(OptionError, match="did you mean 'cosine'"):
        import_model(_Heads().eval(), example_inputs=(x,), outputs=["cosin"])


def test_outputs_of_a_relax_module() -> None:
    data = relax.Var("data", relax.TensorType((5, 3), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [data]):
        with builder.dataflow():
            first, second = builder.emit(relax.op.sin(data)), builder.emit(relax.op.cos(data))
            results = builder.emit_output(relax.Tuple([first, second]))
        builder.emit_func_output(results)
    model = import_model(builder.get(), outputs=["output_1"])
    assert "R.sin(" not in model.mod.script()
    (found,) = compiler.compile(model, threads=1).run([_X]).values()
    np.testing.assert_allclose(found, np.cos(_X), rtol=1e-5, atol=1e-6)
