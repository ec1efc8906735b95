"""Transformed filters are stored untransformed and expanded when a module is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import compiler
import schedules.ir.load_tvm  # noqa: F401  (loads TVM without torch)
from compiler.artifact.entries import EXPAND_ENTRY
from compiler.errors import ArtifactError
from compiler.passes.context import PipelineContext
from compiler.passes.layout.values import pack_winograd
from compiler.passes.pipeline import run_pipeline
from compiler.runtime import Module
from schedules import Machine
from schedules.conv.winograd_transforms import TILES, spread_weight, transforms

import tvm  # isort: skip
from tvm import relax  # isort: skip
from tests.unoptimized import unoptimized_machine

MACHINE = Machine(architecture="x86_64", vector_bits=256, vector_registers=16, cores=2)
CHANNELS, SIDE = 32, 20


def _filters(count: int) -> list[np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    return [random.standard_normal((CHANNELS, CHANNELS, 3, 3)).astype(np.float32) for _ in range(count)]


def _chain(filters: list[np.ndarray[Any, Any]]) -> tvm.IRModule:
    """A chain of convolutions."""
    x = relax.Var("x", relax.TensorType((1, CHANNELS, SIDE, SIDE), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            value = x
            for weight in filters:
                value = builder.emit(relax.op.nn.conv2d(value, relax.const(weight), padding=1))
            output = builder.emit_output(relax.Tuple([value]))
        builder.emit_func_output(output)
    return builder.get()


def _reference(x: np.ndarray[Any, Any], filters: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """In float64, tap by tap."""
    value = x.astype(np.float64)
    for weight in filters:
        padded = np.pad(value, ((0, 0), (0, 0), (1, 1), (1, 1)))
        value = sum(
            np.einsum("oi,nihw->nohw", weight[:, :, p, q], padded[:, :, p : p + SIDE, q : q + SIDE])
            for p in range(3)
            for q in range(3)
        )
    return value


def test_the_module_gains_a_function_that_returns_the_transformed_filters() -> None:
    filters = _filters(2)
    context = PipelineContext(machine=MACHINE)
    before = run_pipeline(_chain(filters), PipelineContext(machine=MACHINE), until="fuse").mod
    assert EXPAND_ENTRY not in [var.name_hint for var in before.get_global_vars()]
    mod = run_pipeline(_chain(filters), context, until="schedule").mod
    function = mod[EXPAND_ENTRY]
    assert [str(each.ty.dtype) for each in function.params] == ["float32", "float64", "float32"]
    assert len(function.ret_ty.fields) == len(context.expansions.chosen) == 2
    stored = list(context.expansions.stored.values())
    np.testing.assert_array_equal(stored[0], pack_winograd(filters[0], MACHINE.lanes("float32")))


@pytest.mark.parametrize("count", [1, 3])
def test_numbers_and_size(tmp_path: Path, count: int) -> None:
    filters = _filters(count)
    module = compiler.compile(_chain(filters))
    module.export(tmp_path / "chain.twm")
    loaded = compiler.load(tmp_path / "chain.twm")
    x = np.random.default_rng(1).standard_normal((1, CHANNELS, SIDE, SIDE)).astype(np.float32)
    (output,) = loaded.run([x]).values()
    expected = _reference(x, filters)
    assert np.abs(output - expected).max() <= 1e-5 * np.abs(expected).max()
    matrices = 16 << 10
    assert loaded.artifact.parameter_bytes <= sum(each.nbytes for each in filters) + matrices


def test_equal_filters_are_stored_and_held_once() -> None:
    (weight,) = _filters(1)
    module = compiler.compile(_chain([weight, weight.copy()]))
    assert module.artifact.parameter_bytes <= weight.nbytes + (8 << 10)
    assert module.artifact.manifest.compact_parameters == 2  # the filter and the matrix
    x = np.random.default_rng(2).standard_normal((1, CHANNELS, SIDE, SIDE)).astype(np.float32)
    (output,) = module.run([x]).values()
    expected = _reference(x, [weight, weight])
    assert np.abs(output - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("tile", TILES)
def test_expanding_gives_what_transforming_gives(tile: int) -> None:
    """The stored and the kernel's way agree to the last place but one: both sum in double precision."""
    from compiler.passes.layout.values import expand_winograd, transform_winograd
    from schedules.conv.winograd_transforms import weight_matrix

    weight = np.random.default_rng(tile).standard_normal((5, 3, 3, 3)).astype(np.float32)
    builder = relax.BlockBuilder()
    stored, matrix = pack_winograd(weight, 8), weight_matrix(tile)
    params = [
        relax.Var(name, relax.TensorType(each.shape, str(each.dtype)))
        for name, each in (("stored", stored), ("matrix", matrix))
    ]
    with builder.function("main", params):
        builder.emit_func_output(builder.emit(builder.call_te(expand_winograd, *params)))
    machine = unoptimized_machine(builder.get())
    got = machine["main"](tvm.runtime.tensor(stored), tvm.runtime.tensor(matrix)).numpy()
    expected = pack_winograd(spread_weight(weight, np.array(transforms(tile).weight)), 8)
    np.testing.assert_allclose(got, expected, rtol=2e-7, atol=1e-7)
    np.testing.assert_allclose(transform_winograd(stored, matrix), expected, rtol=2e-7, atol=1e-7)


@pytest.mark.parametrize("compact", [0, 1])
def test_a_manifest_that_says_otherwise_is_refused(compact: int) -> None:
    artifact = compiler.compile(_chain(_filters(2))).artifact
    assert artifact.manifest.compact_parameters == 3
    wrong = msgspec.structs.replace(artifact.manifest, compact_parameters=compact)
    with pytest.raises(ArtifactError):
        Module(replace(artifact, manifest=wrong))


def test_filters_of_different_widths_are_expanded_by_one_kernel() -> None:
    random = np.random.default_rng(0)
    filters = [random.standard_normal(shape).astype(np.float32) for shape in ((48, CHANNELS, 3, 3), (64, 48, 3, 3))]
    mod = run_pipeline(_chain(filters), PipelineContext(machine=MACHINE), until="schedule").mod
    assert sum("expand_filter" in var.name_hint for var in mod.get_global_vars()) == 1
