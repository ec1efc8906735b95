"""Products and convolutions on tensor cores, by simulation: sizes that fill no tile, quantized nets in integers."""

from __future__ import annotations

import re
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper

import compiler
from schedules.gpu.machine import GpuMachine
from schedules.gpu.matmul_rule import ProductWorkload, TiledMatmulRule
from schedules.gpu.simt_matmul import GpuProducts, GpuVectorProducts, VectorWorkload
from schedules.gpu.tensor_cores import GpuTensorCores
from targets.cuda.image import check_shared_memory, source_of
from targets.errors import TargetError
from tests.targets.cuda_models import (
    CONVOLUTIONS,
    GATES,
    PRODUCTS,
    VECTORS,
    many_products,
    quantized_image_net,
    vector_products,
)


def kernels_with(source: str, text: str) -> int:
    """Number of kernels of CUDA source that contain a text."""
    return sum(text in body for body in re.split(r'^extern "C" __global__ .*\{$', source, flags=re.MULTILINE)[1:])


def run_and_source(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], str]:
    module = compiler.compile(model, "cuda-simulated", records=False)
    return module.run(inputs), source_of(bytes(module.artifact.library)).text


def wide(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float64))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_products_and_convolutions_of_odd_sizes(dtype: str) -> None:
    kind: Any = np.dtype(getattr(ml_dtypes, dtype, dtype))
    model, inputs = many_products(kind)
    found, source = run_and_source(model, inputs)
    count = len(PRODUCTS) + 1 + len(CONVOLUTIONS)
    assert kernels_with(source, "a_slabs" if dtype == "float32" else "mma_sync(") == count
    expected = {f"y{i}": wide(inputs[f"a{i}"]) @ wide(inputs[f"b{i}"]) for i in range(len(PRODUCTS))}
    expected["scores"] = wide(inputs["q"]) @ wide(inputs["k"]).transpose(1, 2)
    weights = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    for index, (data, _, strides, pads, dilations) in enumerate(CONVOLUTIONS):
        rank = len(data) - 2
        around = [side for axis in reversed(range(rank)) for side in (pads[axis], pads[axis + rank])]
        image = torch.nn.functional.pad(wide(inputs[f"x{index}"]), around)
        convolve = (torch.conv1d, torch.conv2d, torch.conv3d)[rank - 1]
        filters = wide(weights[f"w{index}"])
        expected[f"c{index}"] = convolve(image, filters, stride=strides, dilation=dilations)
    for name, value in expected.items():
        # One rounding of the result, relative to the largest, and float32 sums of up to 1025 products.
        scale = float(value.abs().max())
        tolerance = scale * max(float(ml_dtypes.finfo(kind).eps), 1e-6)
        np.testing.assert_allclose(found[name].astype(np.float64), value.numpy(), rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_a_quantized_net_computes_in_integers_on_tensor_cores(dtype: str) -> None:
    """Equal to the processor's module bit for bit, and to ONNX Runtime to one step."""
    model = quantized_image_net(dtype)
    inputs = {"x": np.random.default_rng(5).standard_normal((2, 3, 15, 15)).astype(np.float32)}
    found, source = run_and_source(model, inputs)
    assert kernels_with(source, "mma_sync(") == 3  # both dense convolutions and the classifier
    assert "unsigned char*" not in source
    host = compiler.compile(model, "host", records=False)
    (name,) = found
    np.testing.assert_array_equal(found[name], host.run(inputs)[name])
    options = onnxruntime.SessionOptions()
    # Beyond this level it fails on int8 pooling; here it computes in float32, and may round a last bit the other way.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session: Any = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    steps = np.abs(found[name] - session.run(None, inputs)[0]) / 0.9
    assert steps.max() < 1.01
    assert np.mean(steps < 0.01) > 0.9
    assert np.unique(found[name]).size > 10


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_sizes_that_are_known_when_it_runs(dtype: str) -> None:
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    shapes = {"x": ["b", "n", "k"], "w": ["b", "k", "m"]}
    given = [helper.make_tensor_value_info(name, element, shape) for name, shape in shapes.items()]
    made = helper.make_tensor_value_info("y", element, ["b", "n", "m"])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "open", given, [made])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    module = compiler.compile(model, "cuda-simulated", records=False)
    assert kernels_with(source_of(bytes(module.artifact.library)).text, "a_slabs") == 1
    for batch, rows, depth, columns in ((1, 5, 3, 70), (3, 33, 40, 2)):
        random = np.random.default_rng(rows)
        x = random.standard_normal((batch, rows, depth)).astype(dtype)
        w = random.standard_normal((batch, depth, columns)).astype(dtype)
        tolerance = {"float32": 1e-5, "float16": 1e-2}[dtype]
        expected = wide(x) @ wide(w)
        np.testing.assert_allclose(module.run({"x": x, "w": w})["y"], expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_matrices_by_vectors(dtype: str) -> None:
    kind: Any = np.dtype(getattr(ml_dtypes, dtype, dtype))
    model, inputs = vector_products(kind)
    found, source = run_and_source(model, inputs)
    # No two of these kernels are the same, and no other kernel joins sums.
    assert kernels_with(source, "sums_ptr[") == len(VECTORS) + len(GATES)
    expected = {}
    for index, (_, _, transposed) in enumerate(VECTORS):
        right = wide(inputs[f"b{index}"])
        right = right.transpose(-1, -2) if transposed else right
        expected[f"y{index}"] = torch.sigmoid(wide(inputs[f"a{index}"]) @ right)
    weights = {each.name: wide(onnx.numpy_helper.to_array(each)) for each in model.graph.initializer}
    for index in range(len(GATES)):
        image = torch.conv2d(wide(inputs[f"x{index}"]), weights[f"w{index}"], weights[f"v{index}"])
        expected[f"g{index}"] = torch.sigmoid(image)
    # Sums of up to 1152 products; a narrow type rounds the product, the biased sum and the sigmoid.
    tolerance = max(4 * float(ml_dtypes.finfo(kind).eps), 2e-6)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name].astype(np.float64), value.numpy(), atol=tolerance, err_msg=name)


@pytest.mark.parametrize("rows", [1, 17])
def test_what_follows_a_product_is_joined_up_to_where_it_spreads_over_more(rows: int) -> None:
    """y[s] = image[s] * sigmoid(a w): the sigmoid is the product's, once for each element."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((60, 20)).astype(np.float32)
    shapes = {"a": [rows, 60], "image": [3, rows, 20]}
    inputs = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    given = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    made = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [3, rows, 20])
    nodes = [
        helper.make_node("MatMul", ["a", "w"], ["p"]),
        helper.make_node("Sigmoid", ["p"], ["s"]),
        helper.make_node("Mul", ["s", "image"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "gate", given, [made], [onnx.numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    found, source = run_and_source(model, inputs)
    gate = torch.sigmoid(wide(inputs["a"]) @ wide(weight))
    np.testing.assert_allclose(found["y"], wide(inputs["image"]) * gate, rtol=1e-5, atol=1e-6)
    assert kernels_with(source, "expf(") == 1
    assert kernels_with(source, "_ptr[") == 2


@pytest.mark.parametrize(("rows", "columns"), [(1, "m"), ("m", 1)])
def test_a_matrix_by_a_vector_of_sizes_known_when_it_runs(rows: int | str, columns: int | str) -> None:
    shapes = {"x": ["b", rows, "k"], "w": ["b", "k", columns]}
    given = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    made = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["b", rows, columns])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "open", given, [made])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    module = compiler.compile(model, "cuda-simulated", records=False)
    assert kernels_with(source_of(bytes(module.artifact.library)).text, "sums_ptr[") == 1
    for batch, depth, size in ((1, 3, 70), (3, 40, 1), (2, 513, 33)):
        random = np.random.default_rng(depth)
        x = random.standard_normal((batch, 1 if rows == 1 else size, depth)).astype(np.float32)
        w = random.standard_normal((batch, depth, 1 if columns == 1 else size)).astype(np.float32)
        np.testing.assert_allclose(module.run({"x": x, "w": w})["y"], wide(x) @ wide(w), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("along_depth", [True, False])
def test_threads_of_a_vector_product_read_side_by_side_and_fill_the_device(along_depth: bool) -> None:
    machine = GpuMachine(compute_capability=75, multiprocessors=40)
    rule = GpuVectorProducts()
    for columns, depth in ((1000, 2048), (48, 1152), (1152, 48), (40000, 4096), (3, 9)):
        workload = VectorWorkload(1, 1, columns, depth, "float32", along_depth)
        config = rule.default(workload, machine)
        assert config in rule.space(workload, machine)
        neighbours, size = (config.integer("shares"), depth) if along_depth else (config.integer("results"), columns)
        assert neighbours >= min(32, size)
    few, many = (
        rule.default(VectorWorkload(1, 1, each, 4096, "float32", along_depth), machine).integer("shares")
        for each in (64, 100_000)
    )
    assert few > many


def test_an_integer_vector_product_is_exact() -> None:
    random = np.random.default_rng(0)
    weight = random.integers(-128, 128, (300, 77)).astype(np.int8)
    given = helper.make_tensor_value_info("x", onnx.TensorProto.INT8, [1, 300])
    made = helper.make_tensor_value_info("y", onnx.TensorProto.INT32, [1, 77])
    nodes = [helper.make_node("MatMulInteger", ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "integers", [given], [made], [onnx.numpy_helper.from_array(weight, "w")])
    x = random.integers(-128, 128, (1, 300)).astype(np.int8)
    found, source = run_and_source(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), {"x": x})
    assert kernels_with(source, "sums_ptr[") == 1
    np.testing.assert_array_equal(found["y"], x.astype(np.int32) @ weight.astype(np.int32))


def test_a_kernel_that_takes_more_memory_than_a_block_has_is_refused() -> None:
    kernel = 'extern "C" __global__ void __launch_bounds__(32) big_kernel(float* x_ptr) {{\n  {}\n}}\n'
    half, whole = (f"__shared__ alignas(64) {each};" for each in ("half a_ptr[12288]", "float b_ptr[6144]"))
    check_shared_memory(kernel.format(half) + kernel.format(whole) + kernel.format(half + "\n  " + whole), 49152)
    with pytest.raises(TargetError, match="'big_kernel' takes 49153 bytes of shared memory"):
        check_shared_memory(kernel.format(half + whole + "__shared__ bool c_ptr[1];"), 49152)


MACHINES = [
    GpuMachine(compute_capability=capability, multiprocessors=count) for capability, count in ((75, 40), (90, 132))
]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("rule", "dtype"), [(GpuTensorCores(), "float16"), (GpuProducts(), "float32")])
def test_the_default_tile_follows_the_size_of_the_product(
    rule: TiledMatmulRule, dtype: str, machine: GpuMachine
) -> None:
    def chosen(rows: int, columns: int, depth: int = 512) -> tuple[int, int, int]:
        workload = ProductWorkload(1, rows, columns, depth, dtype)
        config = rule.default(workload, machine)
        assert config in rule.space(workload, machine)
        return config.integer("rows"), config.integer("columns"), config.integer("splits")

    assert chosen(4096, 4096) == (128, 128, 1)
    assert chosen(16, 8)[:2] == (16, min(rule.knobs["columns"]))
    rows, columns, splits = chosen(256, 256)
    assert (256 // rows) * (256 // columns) * splits >= machine.multiprocessors // 3
