"""Mixtures of experts: rows are routed to the experts with the largest scores and multiplied by their weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tvm import relax, tirx

import compiler
from compiler.frontends.imported_model import ImportedModel, TensorSpec
from compiler.passes.rewriting.block_weights import BlockWeight
from compiler.passes.rewriting.expert_products import combined, expert_product, expert_rows, route

_EXPERTS, _COLUMNS, _PADDED, _DEPTH, _CHOSEN = 6, 40, 64, 64, 2


def _weights(kind: str) -> tuple[BlockWeight, np.ndarray[Any, Any]]:
    """Packed, and as float32 (experts, columns, depth)."""
    random = np.random.default_rng(0)
    shape = (_EXPERTS * _PADDED, _DEPTH)
    if kind == "int8":
        integers = random.integers(-127, 128, shape).astype(np.int8)
        scales = random.uniform(0.005, 0.02, (shape[0], _DEPTH // 32)).astype(np.float16)
        values = integers * np.repeat(scales.astype(np.float32), 32, 1)
        weight = BlockWeight.of_integers(integers, scales, None, 32, 8)
    else:
        values = random.standard_normal(shape).astype(np.float32)
        weight = BlockWeight.of_floats(values, kind)
    return weight, values.reshape(_EXPERTS, _PADDED, _DEPTH)[:, :_COLUMNS]


def _module(weight: BlockWeight, activations: str, target: str = "host") -> compiler.Module:
    builder = relax.BlockBuilder()
    n = tirx.Var("n", "int64")
    data = relax.Var("data", relax.TensorType([n, _DEPTH], "float32"))
    scores = relax.Var("scores", relax.TensorType([n, _EXPERTS], "float32"))
    with builder.function("main", [data, scores]):
        with builder.dataflow():
            routing = route(builder, scores, _CHOSEN)
            rows = expert_rows(builder, data, routing, weight, activations)
            found = expert_product(builder, rows, weight, _COLUMNS, routing.experts, activations)
            output = builder.emit_output(relax.Tuple([combined(builder, found, routing, routing.scores)]))
        builder.emit_func_output(output)
    inputs = [TensorSpec("data", ("n", _DEPTH), "float32"), TensorSpec("scores", ("n", _EXPERTS), "float32")]
    outputs = [TensorSpec("result", ("n", _COLUMNS), "float32")]
    return compiler.compile(ImportedModel(mod=builder.get(), inputs=inputs, outputs=outputs), target=target, threads=2)


@pytest.mark.parametrize(
    ("kind", "activations", "tolerance", "target"),
    [
        ("float32", "float32", 1e-6, "host"),
        ("int8", "float32", 1e-6, "host"),
        ("int8", "int8", 0.02, "host"),
        ("int8", "int8", 0.02, "sapphire-rapids-simulated"),
    ],
)
def test_each_row_gets_the_weighted_sum_of_its_experts(
    kind: str, activations: str, tolerance: float, target: str
) -> None:
    weight, values = _weights(kind)
    module = _module(weight, activations, target)
    for count in (1, 3, 33, 150):  # of 150 rows, runs of one expert reach over blocks of tiles
        random = np.random.default_rng(count)
        data = random.standard_normal((count, _DEPTH)).astype(np.float32)
        scores = random.standard_normal((count, _EXPERTS)).astype(np.float32)
        if count > 1:
            scores[1] = 1.0  # of equal scores the first
        chosen = np.argsort(-scores, 1, kind="stable")[:, :_CHOSEN]
        wanted = np.stack(
            [sum(scores[row, each] * (values[each] @ data[row]) for each in chosen[row]) for row in range(count)]
        )
        found = module.run([data, scores])["result"]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * abs(wanted).max())


def test_scores_that_do_not_compare_stay_within_the_experts() -> None:
    module = _module(_weights("float32")[0], "float32")
    found = module.run([np.ones((2, _DEPTH), np.float32), np.full((2, _EXPERTS), np.nan, np.float32)])["result"]
    assert found.shape == (2, _COLUMNS)
