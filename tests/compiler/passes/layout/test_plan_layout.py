"""plan-layout: the planned graphs, and that their results stay equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from numpy.typing import NDArray
from tvm import relax

from compiler.passes.context import PipelineContext
from compiler.passes.layout.plan_layout import plan_layout
from schedules import Machine
from tests.compiler.passes.building import run_scheduled

Array = NDArray[Any]
Build = Callable[[Any, Any], Any]

MACHINE = Machine(architecture="x86_64", vector_bits=256, vector_registers=16, cores=2)
CONTEXT = PipelineContext(machine=MACHINE)


def module(shapes: list[tuple[Any, ...]], build: Callable[..., Any]) -> Any:
    """`main` over float32 inputs; `build(builder, *inputs)` returns the output."""
    builder = relax.BlockBuilder()
    inputs = [relax.Var(f"x{i}", relax.TensorType(shape, "float32")) for i, shape in enumerate(shapes)]
    with builder.function("main", inputs):
        with builder.dataflow():
            output = builder.emit_output(relax.Tuple([build(builder, *inputs)]))
        builder.emit_func_output(output)
    return builder.get()


def constant(*shape: int, seed: int = 0) -> Any:
    return relax.const(np.random.default_rng(seed).standard_normal(shape).astype("float32"))


def conv(builder: Any, data: Any, filters: int, channels: int, kernel: int = 3, **attributes: Any) -> Any:
    weight = constant(filters, channels, kernel, kernel, seed=filters + kernel)
    attributes.setdefault("padding", kernel // 2)
    return builder.emit(relax.op.nn.conv2d(data, weight, **attributes))


def kernels(mod: Any) -> list[str]:
    """Names of kernels and operators `main` calls, in order."""
    names = []
    for block in mod["main"].body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.Call):
                tir = value.op.name == "relax.call_tir"
                names.append(value.args[0].name_hint.rstrip("0123456789") if tir else value.op.name)
    return names


def check_numbers(mod: Any, shapes: list[tuple[int, ...]]) -> None:
    """The planned module against TVM's own build of the same graph."""
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal(shape).astype("float32") for shape in shapes]
    expected = run_scheduled(mod, PipelineContext(), arrays)
    got = run_scheduled(mod, PipelineContext(machine=MACHINE), arrays)
    # Two orders of summation of the same products in float32: where large terms cancel, their rounding errors remain.
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=max(2e-4, 2e-6 * np.abs(expected).max()))


def residual(builder: Any, x: Any) -> Any:
    first = builder.emit(relax.op.nn.relu(conv(builder, x, 24, 3)))
    second = builder.emit(relax.op.add(conv(builder, first, 24, 24), constant(1, 24, 1, 1)))
    return builder.emit(relax.op.nn.relu(builder.emit(relax.op.add(second, first))))


def test_a_region_stays_in_blocks() -> None:
    planned = plan_layout(module([(1, 3, 10, 9)], residual), CONTEXT)
    assert kernels(planned) == [
        "conv2d",
        "relax.nn.relu",
        "conv2d",
        "relax.add",
        "relax.add",
        "relax.nn.relu",
        "unpack",
    ]


def test_a_graph_without_convolution_is_left_alone() -> None:
    mod = module([(1, 3, 8, 8)], lambda builder, x: builder.emit(relax.op.nn.relu(x)))
    assert plan_layout(mod, CONTEXT) is mod


def test_without_a_machine_nothing_happens() -> None:
    mod = module([(1, 3, 10, 9)], residual)
    assert plan_layout(mod, PipelineContext()) is mod


def test_a_second_consumer_in_plain_layout_gets_its_own_copy_once() -> None:
    def build(builder: Any, x: Any) -> Any:
        first = conv(builder, x, 16, 16)
        rows = builder.emit(relax.op.nn.softmax(first, axis=-1))
        columns = builder.emit(relax.op.nn.softmax(first, axis=-2))
        other = builder.emit(relax.op.add(rows, columns))
        return builder.emit(relax.op.add(other, builder.emit(relax.op.nn.relu(first))))

    mod = module([(1, 16, 6, 7)], build)
    assert kernels(plan_layout(mod, CONTEXT)).count("unpack") <= 2
    check_numbers(mod, [(1, 16, 6, 7)])


def depthwise_block(builder: Any, x: Any) -> Any:
    wide = builder.emit(relax.op.clip(conv(builder, x, 40, 3, 1), 0, 6))
    middle = conv(builder, wide, 40, 1, groups=40, strides=2)
    pooled = builder.emit(relax.op.mean(middle, axis=[2, 3], keepdims=True))
    squeezed = builder.emit(relax.op.sigmoid(conv(builder, pooled, 40, 40, 1)))
    return conv(builder, builder.emit(relax.op.multiply(middle, squeezed)), 20, 40, 1)


def channels_last(builder: Any, x: Any) -> Any:
    weight = constant(3, 3, 5, 24)
    first = builder.emit(relax.op.nn.conv2d(x, weight, padding=1, data_layout="NHWC", kernel_layout="HWIO"))
    biased = builder.emit(relax.op.add(first, constant(24)))
    second = builder.emit(relax.op.nn.conv2d(biased, constant(1, 1, 24, 9), data_layout="NHWC", kernel_layout="HWIO"))
    return builder.emit(relax.op.nn.avg_pool2d(second, (2, 2), (2, 2), layout="NHWC"))


def transposed_between(builder: Any, x: Any) -> Any:
    first = conv(builder, x, 24, 3)
    last = builder.emit(relax.op.permute_dims(first, [0, 2, 3, 1]))
    scaled = builder.emit(relax.op.multiply(last, constant(24)))
    return conv(builder, builder.emit(relax.op.permute_dims(scaled, [0, 3, 1, 2])), 8, 24)


def joined(builder: Any, x: Any) -> Any:
    first = conv(builder, x, 16, 3)
    second = builder.emit(relax.op.nn.max_pool2d(conv(builder, first, 13, 16), (3, 3), (1, 1), (1, 1)))
    return conv(builder, builder.emit(relax.op.concat([first, second], 1)), 8, 29)


def joined_odd(builder: Any, x: Any) -> Any:
    first, second = conv(builder, x, 13, 3), conv(builder, x, 6, 3)
    both = builder.emit(relax.op.concat([first, second], 1))
    return conv(builder, builder.emit(relax.op.nn.relu(both)), 8, 19)


def cut(builder: Any, x: Any) -> Any:
    parts = builder.emit(relax.op.split(conv(builder, x, 32, 3), [16], 1))
    left, right = builder.emit(relax.TupleGetItem(parts, 0)), builder.emit(relax.TupleGetItem(parts, 1))
    return builder.emit(relax.op.subtract(conv(builder, left, 16, 16), right))


def grouped(builder: Any, x: Any) -> Any:
    first = conv(builder, x, 24, 3)
    second = conv(builder, first, 36, 6, groups=4)
    return conv(builder, second, 12, 3, groups=12)


def uneven_groups(builder: Any, x: Any) -> Any:
    """Seven groups of 4 and 12 channels: pairs of groups fill blocks, and one group is left over."""
    first = conv(builder, x, 28, 3)
    second = builder.emit(relax.op.nn.relu(conv(builder, first, 84, 4, groups=7)))
    return conv(builder, second, 28, 12, 1, groups=7, strides=2)


def spatial_attention(builder: Any, x: Any) -> Any:
    first = conv(builder, x, 20, 3)
    gate = builder.emit(relax.op.sigmoid(conv(builder, first, 1, 20)))
    return builder.emit(relax.op.multiply(first, gate))


def unknown_weight(builder: Any, x: Any, weight: Any) -> Any:
    return builder.emit(relax.op.nn.conv2d(conv(builder, x, 10, 3), weight, padding=1))


def upsampled(builder: Any, x: Any) -> Any:
    first = builder.emit(
        relax.op.nn.conv2d_transpose(conv(builder, x, 12, 3), constant(12, 10, 4, 4), strides=2, padding=1)
    )
    wide = builder.emit(
        relax.op.nn.conv2d_transpose(
            builder.emit(relax.op.nn.relu(first)),
            constant(10, 3, 3, 2),
            strides=(3, 2),
            padding=(1, 0, 2, 1),
            output_padding=(1, 1),
            dilation=(1, 2),
            groups=2,
        )
    )
    return builder.emit(relax.op.tanh(wide))


def upsampled_line(builder: Any, x: Any) -> Any:
    return builder.emit(relax.op.nn.conv1d_transpose(x, constant(3, 6, 7), strides=3, padding=2))


def kernel_of_a_frontend(builder: Any, x: Any) -> Any:
    """Clipping written as a kernel with bounds as operands, and a gate of one value per channel."""

    def clip(values: Any, low: Any, high: Any, gate: Any) -> Any:
        def point(n: Any, c: Any, h: Any, w: Any) -> Any:
            bounded = tvm.te.max(low(), tvm.te.min(high(), values[n, c, h, w]))
            return bounded * gate[c, 0, 0]

        return tvm.te.compute(values.shape, point, name="clip")

    first = conv(builder, x, 11, 3)
    low, high = relax.const(0.5, "float32"), relax.const(2.0, "float32")
    gated = builder.emit_te(clip, first, low, high, constant(11, 1, 1))
    return conv(builder, gated, 5, 11)


GRAPHS: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]]]] = {
    "residual": (residual, [(2, 3, 10, 9)]),
    "depthwise and squeeze": (depthwise_block, [(1, 3, 11, 13)]),
    "channels last": (channels_last, [(1, 8, 10, 5)]),
    "transposed between": (transposed_between, [(1, 3, 7, 9)]),
    "joined": (joined, [(1, 3, 8, 9)]),
    "joined odd": (joined_odd, [(1, 3, 8, 9)]),
    "cut": (cut, [(1, 3, 8, 9)]),
    "grouped": (grouped, [(1, 3, 8, 9)]),
    "uneven groups": (uneven_groups, [(2, 3, 8, 9)]),
    "spatial attention": (spatial_attention, [(1, 3, 8, 9)]),
    "upsampled": (upsampled, [(2, 3, 5, 6)]),
    "upsampled line": (upsampled_line, [(1, 3, 9)]),
    "kernel of a frontend": (kernel_of_a_frontend, [(1, 3, 8, 9)]),
    "unknown weight": (unknown_weight, [(1, 3, 8, 9), (7, 10, 3, 3)]),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_numbers(name: str) -> None:
    build, shapes = GRAPHS[name]
    check_numbers(module(list(shapes), build), shapes)


def test_transposes_between_convolutions_are_free() -> None:
    names = kernels(plan_layout(module([(1, 3, 7, 9)], transposed_between), CONTEXT))
    assert names[:3] == ["conv2d", "relax.multiply", "conv2d"]
    assert names[3:] in ([], ["unpack"])  # some algorithms write the plain layout themselves


def test_a_symbolic_batch() -> None:
    batch = tvm.tirx.Var("batch", "int64")
    mod = module([(batch, 3, 10, 9)], residual)
    rng = np.random.default_rng(1)
    for size in (1, 3):
        arrays = [rng.standard_normal((size, 3, 10, 9)).astype("float32")]
        expected = run_scheduled(module([(size, 3, 10, 9)], residual), PipelineContext(), arrays)
        np.testing.assert_allclose(
            run_scheduled(mod, PipelineContext(machine=MACHINE), arrays), expected, rtol=2e-4, atol=2e-4
        )


def test_a_kernel_of_a_frontend_stays_in_blocks() -> None:
    names = kernels(plan_layout(module([(1, 3, 8, 9)], kernel_of_a_frontend), CONTEXT))
    assert names[:3] == ["conv2d", "clip", "conv2d"]
    assert names[3:] in ([], ["unpack"])  # some algorithms write the plain layout themselves


@pytest.mark.parametrize(
    ("channels", "filters", "length", "kernel", "stride", "window"),
    [(1, 5, 67, 9, 4, 2), (8, 24, 31, 3, 1, 3), (24, 7, 13, 5, 2, 1), (3, 8, 5, 5, 1, 1)],
)
def test_a_column_is_tiled_along_its_length(
    channels: int, filters: int, length: int, kernel: int, stride: int, window: int
) -> None:
    def build(builder: Any, x: Any) -> Any:
        weight = constant(filters, channels, kernel, 1)
        padding = [kernel // 2, 0, kernel // 3, 0]
        first = builder.emit(relax.op.nn.conv2d(x, weight, strides=[stride, 1], padding=padding))
        first = builder.emit(relax.op.add(first, constant(1, filters, 1, 1, seed=3)))
        pooled = builder.emit(relax.op.nn.max_pool2d(first, [window, 1], [2, 1], [0, 0, window // 2, 0]))
        return conv(builder, pooled, 9, filters, kernel=1)

    mod = module([(2, channels, length, 1)], build)
    planned = plan_layout(mod, CONTEXT)
    assert kernels(planned).count("unpack") == 1
    convolutions = [function for var, function in planned.functions_items() if "conv2d" in var.name_hint]
    assert all(int(function.params[-1].ty.shape[2]) == 1 for function in convolutions)
    check_numbers(mod, [(2, channels, length, 1)])


def test_a_column_of_integers_is_tiled_along_its_length() -> None:
    random = np.random.default_rng(3)
    weight = random.integers(-127, 128, (24, 16, 5, 1), np.int8)
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 16, 37, 1), "uint8"))
    with builder.function("main", [x]):
        with builder.dataflow():
            total = relax.op.nn.conv2d(x, relax.const(weight), padding=[2, 0, 2, 0], out_dtype="int32")
            output = builder.emit_output(relax.Tuple([builder.emit(total)]))
        builder.emit_func_output(output)
    (convolution,) = [
        function for var, function in plan_layout(builder.get(), CONTEXT).functions_items() if "conv" in var.name_hint
    ]
    assert int(convolution.params[-1].ty.shape[2]) == 1
    data = random.integers(0, 256, (1, 16, 37, 1), np.uint8)
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(data).double(), torch.from_numpy(weight).double(), padding=(2, 0)
    )
    np.testing.assert_array_equal(run_scheduled(builder.get(), CONTEXT, [data]), expected.numpy().astype(np.int32))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_few_filters_are_folded_into_a_plain_result(layout: str) -> None:
    shape = (1, 12, 20, 37) if layout == "NCHW" else (1, 20, 37, 12)

    def build(builder: Any, x: Any) -> Any:
        first = conv(builder, x, 2, 12, kernel=5, data_layout=layout)
        bias = constant(*(2 if letter == "C" else 1 for letter in layout))
        second = builder.emit(relax.op.nn.relu(builder.emit(relax.op.add(first, bias))))
        return conv(builder, second, 16, 2, data_layout=layout)

    mod = module([shape], build)
    names = kernels(plan_layout(mod, CONTEXT))
    assert "unpack" not in names[: names.index("relax.nn.relu") + 1]
    check_numbers(mod, [shape])
