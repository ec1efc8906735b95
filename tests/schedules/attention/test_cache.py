"""Attention over a cache against float64, in the plain form and as rules write it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from schedules.attention.cache.call import AttentionOptions, cached_attention
from schedules.ir.stages import shape_of
from schedules.ir.tir import structural_walk, tirx, tvm
from tests.schedules.attention.cached import Case
from tests.schedules.harness import AVX2, lowered, runnable, scheduled, target_of, virtual_machine

TILES = "sapphire-rapids-simulated"

CASES = {
    "first token": Case(),
    "decode": Case(position=37, heads=9, key_heads=3, size=64, value_size=64, capacity=100),
    "prompt": Case(queries=21, position=3, heads=6, key_heads=2, size=24, value_size=40, capacity=60),
    "window": Case(queries=19, position=5, capacity=33, options={"window": 4}),
    "window of one token": Case(position=30, options={"window": 7}),
    "softcap, sinks": Case(queries=5, position=11, sinks=True, options={"softcap": 2.5, "scale": 1.5}),
    "batch": Case(batch=3, queries=3, position=(0, 5, 17), size=7, value_size=5, heads=3, key_heads=1),
    "no position": Case(queries=6, position=None),
    "more queries than rows": Case(queries=9, capacity=6, position=None),
    "behind the capacity": Case(queries=4, position=38),
    "before the first row": Case(queries=4, position=-2),
    "far outside": Case(queries=2, position=2**62),
    "cross": Case(queries=5, capacity=23, position=None, options={"causal": False}),
    "cross, lengths": Case(batch=2, queries=5, position=(9, 0), options={"causal": False}, bias=(1, 4, 5, 40)),
    "mask": Case(batch=2, queries=17, position=None, options={"causal": False}, bias=(2, 1, 17, 40), mask=True),
    "short bias": Case(queries=3, position=20, bias=(1, 1, 1, 15)),
    "float16": Case(position=20, dtype="float16", cache="float16", size=20, heads=8, key_heads=1),
    "bfloat16": Case(queries=18, position=9, cache="bfloat16", size=32),
    "bfloat16 everywhere": Case(position=33, dtype="bfloat16", cache="bfloat16", size=32),
    "int8": Case(position=33, cache="int8", size=24, value_size=32),
    "int8, rounded queries": Case(
        queries=2, position=99, capacity=120, heads=6, cache="int8", size=64, options={"rounds": True}
    ),
    "int8 prompt": Case(queries=20, position=12, cache="int8", size=24, value_size=32),
}
TOLERANCE = {"float32": 2e-5, "float16": 2e-3, "bfloat16": 2e-2}


def close(result: Any, case: Case, arrays: Any) -> None:
    # Queries over an int8 cache may be rounded to 8 bits.
    tolerance = 2e-2 if case.cache == "int8" and case.options.get("rounds") else TOLERANCE[case.dtype]
    np.testing.assert_allclose(result.astype("float64"), case.exact(arrays), rtol=tolerance, atol=tolerance)


def run(mod: Any, target: str, arrays: Any) -> Any:
    machine = virtual_machine(mod, target)
    return machine["main"](*[tvm.runtime.tensor(each) for each in arrays.values()]).numpy()


BEST = runnable()[-1]


@pytest.mark.parametrize("name", ["softcap, sinks", "batch", "int8"])
def test_plain(name: str) -> None:
    """The lowering that targets without a rule run."""
    case = CASES[name]
    arrays = case.arrays()
    inputs = [(each.shape, str(each.dtype)) for each in arrays.values()]
    close(run(lowered(case.build(), inputs, BEST), BEST, arrays), case, arrays)


@pytest.mark.parametrize(
    ("name", "target"),
    [*((name, BEST) for name in CASES), *((name, AVX2) for name in ("prompt", "bfloat16") if BEST != AVX2)],
)
def test_scheduled(name: str, target: str) -> None:
    case = CASES[name]
    arrays = case.arrays()
    mod, report = scheduled(case.build(), [(each.shape, str(each.dtype)) for each in arrays.values()], target)
    assert [each.rule for each in report.kernels] == ["attention-over-cache"]
    close(run(mod, target, arrays), case, arrays)


ROUNDS = {"rounds": True}
TILED = {
    "prompt": Case(queries=21, position=3, heads=6, key_heads=2, size=24, value_size=40, capacity=60, options=ROUNDS),
    "past": Case(queries=70, position=190, heads=6, key_heads=2, size=64, value_size=64, capacity=300, options=ROUNDS),
    "window": Case(queries=40, position=150, capacity=200, size=7, value_size=5, options={**ROUNDS, "window": 20}),
    "softcap, sinks": Case(queries=33, position=11, sinks=True, options={**ROUNDS, "softcap": 2.5, "scale": 1.5}),
    "batch": Case(batch=3, queries=18, position=(0, 5, 17), value_size=80, heads=3, key_heads=1, options=ROUNDS),
    "mask": Case(
        batch=2, queries=17, position=None, options={**ROUNDS, "causal": False}, bias=(2, 1, 17, 40), mask=True
    ),
    "bfloat16": Case(queries=18, position=9, cache="bfloat16", size=32),
    "int8": Case(queries=20, position=12, cache="int8", size=24, value_size=32, options=ROUNDS),
}


@pytest.mark.parametrize("name", TILED)
@pytest.mark.skipif(not target_of(TILES).fits_this_machine(), reason="this machine has no AVX2")
def test_prompts_in_tiles(name: str) -> None:
    case = TILED[name]
    arrays = case.arrays()
    mod, _ = scheduled(case.build(), [(each.shape, str(each.dtype)) for each in arrays.values()], TILES)
    assert "tensorwright_tiles_" in str(mod)
    # Operands keep 8 bits: scores are off by some 2^-8 of the sum of their terms' sizes.
    np.testing.assert_allclose(run(mod, TILES, arrays), case.exact(arrays), rtol=3e-2, atol=3e-2)


def test_any_number_of_queries() -> None:
    """One kernel for a prompt, a few queries and a single one, with symbolic batch and capacity."""
    options = {"window": 150, "softcap": 20.0}
    shape = Case(heads=6, key_heads=2, size=20, value_size=24, sinks=True, options=options)
    batch, queries, capacity = (tirx.Var(name, "int64") for name in ("batch", "queries", "capacity"))
    inputs = [
        ((batch, queries, 6, 20), "float32"),
        ((batch, 2, capacity, 20), "float32"),
        ((batch, 2, capacity, 24), "float32"),
        ((batch,), "int64"),
        ((6,), "float32"),
    ]
    mod, _ = scheduled(shape.build(), inputs, BEST)
    machine = virtual_machine(mod, BEST)
    for count, room, position in ((1, 9, (0,)), (1, 600, (599,)), (4, 300, (3, 290)), (70, 400, (0, 300, 17))):
        case = replace(shape, queries=count, capacity=room, position=position, batch=len(position))
        arrays = case.arrays()
        close(machine["main"](*[tvm.runtime.tensor(each) for each in arrays.values()]).numpy(), case, arrays)


def test_no_scores_of_the_whole_capacity() -> None:
    """The largest buffer of a prompt holds packed keys."""
    case = Case(queries=64, capacity=4096, position=0, heads=8, key_heads=2)
    mod, _ = scheduled(case.build(), [(each.shape, str(each.dtype)) for each in case.arrays().values()], BEST)
    [kernel] = [each for each in mod.functions.values() if isinstance(each, tirx.PrimFunc)]
    sizes: list[int] = []
    structural_walk(kernel.body, (tirx.AllocBuffer, lambda each: sizes.append(math.prod(shape_of(each.buffer)))))
    assert max(sizes) <= case.key_heads * case.capacity * case.size


def test_refuses_what_does_not_fit() -> None:
    def call(case: Case) -> None:
        arrays = case.arrays()
        lowered(case.build(), [(each.shape, str(each.dtype)) for each in arrays.values()], BEST)

    with pytest.raises(ValueError, match="4 query heads do not share 3"):
        call(Case(key_heads=3))
    with pytest.raises(ValueError, match="a window of 0 rows"):
        call(Case(options={"window": 0}))


def test_sequences_of_one_call_are_those_of_calls_of_their_own() -> None:
    """A prompt, single tokens and several of them, in slots of a cache in any order."""
    sequences = np.array([[2, 5, 0, 3, 0], [0, 0, 3, 21, 1], [3, 30, 24, 1, 0], [1, 9, 25, 2, 1]], "int64")
    tokens, slots = 27, 4
    case = Case(queries=tokens, heads=6, key_heads=2, size=24, value_size=16, capacity=40, batch=slots, position=39)
    arrays = {**case.arrays(), "sequences": sequences}
    del arrays["position"]
    arrays["query"] = arrays["query"][:1]

    def make(builder: Any, *given: Any) -> Any:
        operands = dict(zip(arrays, given, strict=True))
        query, key, value = (operands.pop(role) for role in ("query", "key", "value"))
        return builder.emit(cached_attention(builder, query, key, value, AttentionOptions(**operands)))

    inputs = [(each.shape, str(each.dtype)) for each in arrays.values()]
    found = [run(mod, BEST, arrays) for mod in (lowered(make, inputs, BEST), scheduled(make, inputs, BEST)[0])]
    for slot, row, first, count, _ in sequences.tolist():
        alone = replace(case, queries=count, batch=1, position=row)
        own = {role: arrays[role][slot : slot + 1] for role in ("key", "value")}
        own["query"] = arrays["query"][:, first : first + count]
        for result in found:
            close(result[:, first : first + count], alone, own)


def test_parts_of_rows_are_joined_alike_by_one_task_and_by_several() -> None:
    """A sequence alone shares its parts among tasks, many sequences do not: the bits are the same."""
    case = Case(heads=6, key_heads=3, size=16, capacity=400, batch=4, position=399, sinks=True)
    arrays = case.arrays()
    del arrays["position"]
    sequences = np.array([[2, 299, 0, 1, 0], [0, 5, 1, 2, 0], [3, 398, 3, 2, 0], [1, 127, 5, 1, 0]], "int64")
    arrays |= {"query": np.random.default_rng(1).standard_normal((1, 6, 6, 16)).astype("float32")}
    tokens, number = tirx.Var("tokens", "int64"), tirx.Var("number", "int64")
    shapes = {role: each.shape for role, each in arrays.items()} | {"query": (1, tokens, 6, 16)}
    inputs = [(shape, "float32") for shape in shapes.values()] + [((number, 5), "int64")]

    def make(builder: Any, query: Any, key: Any, value: Any, sinks: Any, sequences: Any) -> Any:
        options = AttentionOptions(sinks=sinks, sequences=sequences)
        return builder.emit(cached_attention(builder, query, key, value, options))

    machine = virtual_machine(scheduled(make, inputs, BEST)[0], BEST)

    def attended(query: Any, sequences: Any) -> Any:
        given = [np.ascontiguousarray(query), arrays["key"], arrays["value"], arrays["sinks"], sequences]
        return machine["main"](*[tvm.runtime.tensor(each) for each in given]).numpy()

    together = attended(arrays["query"], sequences)
    for slot, row, first, count, _ in sequences.tolist():
        query = arrays["query"][:, first : first + count]
        alone = attended(query, np.array([[slot, row, 0, count, 0]], "int64"))
        np.testing.assert_array_equal(alone, together[:, first : first + count])
        own = {role: arrays[role][slot : slot + 1] for role in ("key", "value")}
        close(alone, replace(case, queries=count, batch=1, position=row), {**arrays, **own, "query": query})
