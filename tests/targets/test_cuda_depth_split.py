"""Products whose depth is shared among blocks: the same numbers by simulation, and packs that compare them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

import compiler
import targets
from compiler.frontends.source import import_model
from compiler.passes.context import PassOptions
from compiler.tuning.pack.folder import candidates
from compiler.tuning.tasks import extract_tasks
from schedules.config import Config
from schedules.gpu.matmul_form import splits_depth
from schedules.gpu.matmul_rule import ProductWorkload, TiledMatmulRule
from schedules.gpu.simt_matmul import GpuProducts
from schedules.gpu.tensor_cores import GpuTensorCores
from schedules.ir.numbers import ceil_div
from schedules.ir.stages import shape_of

Arrays = Mapping[str, np.ndarray[Any, Any]]


def _model() -> tuple[onnx.ModelProto, Arrays, Arrays]:
    """relu(conv(x, w) + b + residual) of two samples in float32, and a stack of products in float16; the inputs, and
    what they give."""
    random = np.random.default_rng(3)
    shapes = {"x": (2, 5, 3, 4), "residual": (2, 18, 3, 4), "p": (2, 5, 65), "q": (2, 65, 9)}
    types = {name: np.dtype("float32" if name in ("x", "residual") else "float16") for name in shapes}
    feeds = {name: random.standard_normal(shape).astype(types[name]) for name, shape in shapes.items()}
    constants = {"w": random.standard_normal((18, 5, 3, 3)), "b": random.standard_normal((1, 18, 1, 1))}
    weights = {name: value.astype(np.float32) for name, value in constants.items()}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
        helper.make_node("Add", ["c", "b"], ["d"]),
        helper.make_node("Add", ["d", "residual"], ["e"]),
        helper.make_node("Relu", ["e"], ["y"]),
        helper.make_node("MatMul", ["p", "q"], ["z"]),
    ]
    element = {name: helper.np_dtype_to_tensor_dtype(dtype) for name, dtype in types.items()}
    graph = helper.make_graph(
        nodes,
        "split",
        [helper.make_tensor_value_info(name, element[name], shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info(name, element[like], None) for name, like in (("y", "x"), ("z", "p"))],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    given = [*feeds.values(), *weights.values()]
    x, residual, p, q, w, b = (torch.from_numpy(each.astype(np.float64)) for each in given)
    wanted = {"y": torch.relu(torch.conv2d(x, w, padding=1) + b + residual).numpy(), "z": (p @ q).numpy()}
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), feeds, wanted


def test_parts_of_the_depth_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Depths of 45 and 65 in steps of 16: the last part has fewer steps, and the last step fewer elements."""

    def default(self: TiledMatmulRule, workload: ProductWorkload, machine: Any) -> Config:
        return Config.of({"rows": 16, "columns": 32, "depth": 16, "splits": 2 if workload.dtype == "float32" else 3})

    monkeypatch.setattr(TiledMatmulRule, "default", default)
    monkeypatch.setattr("schedules.gpu.matmul_rule._MIN_STEPS", 1)
    model, feeds, wanted = _model()
    module = compiler.compile(model, "cuda-simulated", records=False)
    splits = {each.rule: each.config["splits"] for each in module.manifest.kernels if "splits" in each.config}
    assert splits == {"gpu-products": 2, "gpu-tensor-cores": 3}
    got = module.run(dict(feeds))
    for name, epsilon in (("y", 1e-6), ("z", 1e-3)):
        scale = float(np.abs(wanted[name]).max())
        np.testing.assert_allclose(got[name], wanted[name], rtol=0, atol=epsilon * scale, err_msg=name)


def test_no_part_of_a_depth_is_empty() -> None:
    for steps in range(1, 60):
        for splits in range(2, 33):
            each = ceil_div(steps, splits)
            assert splits_depth(steps, splits) == ((splits - 1) * each < steps)


def test_few_tiles_of_much_depth_are_split_by_default() -> None:
    machine = targets.get("h100").machine
    rule = GpuProducts()
    splits = {
        sizes: rule.default(ProductWorkload(1, *sizes, "float32"), machine).integer("splits")
        for sizes in ((512, 49, 4608), (4096, 4096, 4096), (512, 49, 0), (64, 64, 16))
    }
    assert splits.pop((512, 49, 4608)) > 4
    assert set(splits.values()) == {1}


def test_a_pack_compares_schedules_with_and_without_parts() -> None:
    """All take the largest buffer of parts that one of them hands on."""
    target = targets.get("h100")
    model, _, _ = _model()
    tasks = extract_tasks(import_model(model).mod, target, PassOptions(), alternatives=False).tasks
    (task,) = (each for each in tasks if isinstance(each.rule, GpuTensorCores))
    small = {"rows": 16, "columns": 32, "depth": 16}
    found = candidates(task, target, [Config.of({**small, "splits": splits}) for splits in (1, 2, 4)])
    assert (found.failed, found.workspaces, len(found.chosen)) == ({}, 1, 3)
    own = len(task.kernel.arguments)
    assert {shape_of(each.function.params[own]) for each in found.chosen} == {(4 * 2 * 5 * 9,)}
