"""Placement of quantize-dequantize pairs: on every operand of an integer kernel, and nowhere between float kernels."""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.ir import IRModule

from compiler.compression.quantization.insertion import place_integer_only
from compiler.compression.quantization.layers import find_layers, place
from compiler.frontends.source import import_model
from compiler.passes.pipeline import run_pipeline
from compiler.passes.rewriting.matching import as_constant
from tests.compiler.compression.quantization.networks import downsampling_net, residual_net


def canonical(source: object) -> IRModule:
    return run_pipeline(import_model(source).mod, until="canonicalize").mod


def test_a_residual_block() -> None:
    graph = find_layers(canonical(residual_net()))
    assert [layer.name.split("_")[0] for layer in graph.layers] == ["conv2d", "conv2d", "matmul"]
    placement = place(graph)
    # The sum reads the first result as integers; the second convolution adds it before it rounds.
    joined = [each for each in placement.opaque_calls if each.call.op.name == "relax.add"]
    assert [len(placement.operands[each.variable]) for each in joined] == [1]
    kinds = [each.call.op.name for each in placement.opaque_calls]
    assert kinds == ["relax.add", "relax.nn.max_pool2d", "relax.mean"]
    # The pooled tensor has the range of the tensor it is the maximum of.
    assert len(placement.ties) == 1


def test_sums_that_only_a_join_reads_are_not_rounded() -> None:
    graph = find_layers(canonical(downsampling_net()))
    placement = place(graph)
    (join,) = placement.opaque_calls
    assert placement.operands[join.variable] == frozenset()
    # The input, the tensor that two convolutions read, and the sum.
    assert len(placement.sites) == 3


def test_what_lies_beside_a_float_layer_stays_float() -> None:
    graph = find_layers(canonical(residual_net()))
    placement = place(graph, in_float=[graph.layers[1].name, graph.layers[2].name])
    assert [layer.name for layer in placement.layers] == [graph.layers[0].name]
    assert placement.opaque_calls == ()
    assert len(placement.sites) == 1


def test_products_that_stay_in_float_have_a_reason() -> None:
    x, y = (relax.Var(name, relax.TensorType(shape, "float32")) for name, shape in (("x", (4, 8)), ("y", (8, 4))))
    builder = relax.BlockBuilder()
    with builder.function("main", [x, y]):
        with builder.dataflow():
            result = builder.emit_output(relax.op.nn.softmax(builder.emit(relax.op.matmul(x, y))))
        builder.emit_func_output(relax.Tuple([result]))
    graph = find_layers(builder.get())
    assert graph.layers == []
    assert [reason for _, reason in graph.refused] == ["both operands are activations"]


def test_everywhere_means_behind_every_operator() -> None:
    mod = canonical(residual_net())
    graph = find_layers(mod)
    placement = place_integer_only(mod, graph)
    rounded = [graph.definitions[site].op.name for site in placement.sites if site in placement.made]
    # What ends in a ReLU is rounded behind that; no product is rounded before its bias.
    assert "relax.nn.conv2d" not in rounded
    assert {"relax.nn.max_pool2d", "relax.mean"} <= set(rounded)
    assert set(placement.sites) - placement.made == set(mod["main"].params)
    # Where a layer stays in float, neither it nor its bias is rounded.
    layer = graph.layers[1]
    fewer = place_integer_only(mod, graph, in_float=[layer.name])
    assert not {layer.variable, layer.bias} & fewer.made


def test_what_an_accelerator_computes_besides_is_rounded_too() -> None:
    """A softmax if the target supports it, and only the end of a chain of functions of one tensor."""
    x = relax.Var("x", relax.TensorType((1, 8, 6), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            half = builder.emit(relax.op.multiply(x, relax.const(0.5, "float32")))
            gate = builder.emit(relax.op.sigmoid(half))
            gated = builder.emit(relax.op.multiply(x, gate))
            result = builder.emit_output(relax.Tuple([builder.emit(relax.op.nn.softmax(gated))]))
        builder.emit_func_output(result)
    mod = builder.get()
    graph = find_layers(mod)
    for operators, wanted in ((set(), {"multiply"}), ({"relax.nn.softmax"}, {"multiply", "nn.softmax"})):
        placement = place_integer_only(mod, graph, operators=operators)
        rounded = [graph.definitions[site].op.name.removeprefix("relax.") for site in placement.made]
        assert sorted(rounded) == sorted(wanted)


def test_products_of_constants_are_no_layers() -> None:
    """A constant too large to be folded, such as a position encoding, is not an activation."""
    data, weight = (as_constant(np.ones(shape, np.float32)) for shape in ((1, 4, 8, 8), (2, 4, 1, 1)))
    x = relax.Var("x", relax.TensorType((1, 2, 8, 8), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            made = builder.emit(relax.op.nn.conv2d(data, weight))
            result = builder.emit_output(relax.op.add(x, made))
        builder.emit_func_output(relax.Tuple([result]))
    graph = find_layers(builder.get())
    assert graph.layers == []
    assert [reason for _, reason in graph.refused] == ["both operands are constants"]
