"""Attention and RotaryEmbedding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compiler.errors import InvalidModelError
from tests.compiler.frontends.onnx.operators.node_cases import (
    Generator,
    Maker,
    NodeCase,
    chance,
    check,
    check_random,
    node_model,
    normal,
    over_seeds,
    pick,
)
from tests.coverage.tvm_pipeline import import_and_build


def _expected(case: NodeCase) -> list[np.ndarray]:
    """Attention of inputs of rank 4 in float64, computed from its definition."""
    query, key, value, mask, past_key, past_value, lengths = (
        None if array is None else array if array.dtype == bool else array.astype(np.float64) for array in case.inputs
    )
    assert query is not None
    assert key is not None
    assert value is not None
    present_key = key if past_key is None else np.concatenate([past_key, key], 2)
    present_value = value if past_value is None else np.concatenate([past_value, value], 2)
    group = query.shape[1] // key.shape[1]
    scale = case.attributes.get("scale", 1 / np.sqrt(query.shape[3]))
    scores = query @ np.repeat(present_key, group, 1).transpose(0, 1, 3, 2) * scale
    if "softcap" in case.attributes:
        scores = np.tanh(scores / case.attributes["softcap"]) * case.attributes["softcap"]
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    scores = np.where(_visible(case, scores.shape, lengths), scores, -np.inf)
    with np.errstate(invalid="ignore"):
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights = np.nan_to_num(weights / weights.sum(-1, keepdims=True))
    result = weights @ np.repeat(present_value, group, 1)
    return [array.astype(np.float32) for array in (result, present_key, present_value)][: len(case.outputs)]


def _visible(case: NodeCase, shape: tuple[int, ...], lengths: np.ndarray | None) -> np.ndarray:
    batch, _, queries, keys = shape
    past = case.inputs[4]
    offset = np.zeros(batch) if past is None else np.full(batch, past.shape[2])
    visible = np.ones((batch, 1, queries, keys), bool)
    if lengths is not None:
        offset = lengths - queries
        visible &= np.arange(keys) < lengths[:, None, None, None]
    position = np.arange(queries)[:, None] + offset[:, None, None, None]
    if case.attributes.get("is_causal"):
        visible &= np.arange(keys) <= position
    if case.attributes.get("left_window_size", -1) >= 0:
        visible &= np.arange(keys) >= position - case.attributes["left_window_size"]
    return visible


def attention(random: Generator) -> NodeCase:
    batch, heads, group, size = pick(random, 1, 2), pick(random, 1, 2), pick(random, 1, 1, 3), pick(random, 2, 4)
    queries, keys, past = int(random.integers(1, 5)), int(random.integers(1, 6)), pick(random, 0, 0, 3)
    attributes: dict[str, Any] = {}
    for name, value in (("is_causal", 1), ("softcap", 2.0), ("scale", 0.3), ("left_window_size", 2)):
        if chance(random, 0.35):
            attributes[name] = value
    total, mask = keys + past, None
    if chance(random):
        shape = pick(random, (queries, total), (batch, 1, queries, total), (batch, heads * group, 1, total))
        mask = random.random(shape) < 0.6 if chance(random) else normal(random, *shape)
    lengths = random.integers(1, keys + 1, batch) if not past and chance(random, 0.3) else None
    state = [normal(random, batch, heads, past, size) if past else None for _ in range(2)]
    case = NodeCase(
        "Attention",
        [
            normal(random, batch, heads * group, queries, size),
            normal(random, batch, heads, keys, size),
            normal(random, batch, heads, keys, size),
            mask,
            *state,
            lengths,
        ],
        attributes,
        outputs=("y0", "y1", "y2") if past else ("y0",),
        opset=25,
        dims={
            0: {0: "batch", 2: "queries"},
            1: {0: "batch", 2: "keys"},
            2: {0: "batch", 2: "keys"},
            4: {0: "batch", 2: "past"},
            5: {0: "batch", 2: "past"},
            6: {0: "batch"},
        },
    )
    case.expected = _expected(case)
    return case


def flat_attention(random: Generator) -> NodeCase:
    """Heads side by side on the last axis."""
    batch, heads, queries, keys, size = 2, 3, 4, 5, 8
    separate = [normal(random, batch, heads, length, size) for length in (queries, keys, keys)]
    case = NodeCase("Attention", [*separate, None, None, None, None], {"is_causal": pick(random, 0, 1)}, opset=23)
    (result,) = _expected(case)
    case.expected = [result.transpose(0, 2, 1, 3).reshape(batch, queries, -1)]
    case.inputs = [array.transpose(0, 2, 1, 3).reshape(batch, -1, heads * size) for array in separate]
    case.attributes |= {"q_num_heads": heads, "kv_num_heads": heads}
    case.dims = {index: {1: name} for index, name in ((0, "queries"), (1, "keys"), (2, "keys"))}
    return case


def rotary_embedding(random: Generator) -> NodeCase:
    batch, steps, heads, size = 2, int(random.integers(1, 5)), pick(random, 1, 3), pick(random, 4, 6)
    rotated = pick(random, 0, 4)
    attributes = {"interleaved": pick(random, 0, 1), "rotary_embedding_dim": rotated, "num_heads": heads}
    caches = [normal(random, 10, (rotated or size) // 2) for _ in range(2)]
    return NodeCase(
        "RotaryEmbedding",
        [normal(random, batch, steps, heads * size), *caches, random.integers(0, 10, (batch, steps))],
        attributes,
        opset=23,
        dims={0: {0: "batch", 1: "steps"}, 3: {0: "batch", 1: "steps"}},
    )


@over_seeds(14, attention)
def test_random_attention(maker: Maker, seed: int) -> None:
    check_random(maker, seed)


@over_seeds(3, flat_attention, rotary_embedding)
def test_random_flat_heads(maker: Maker, seed: int) -> None:
    check_random(maker, seed)


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_the_scores_can_be_seen_at_every_stage(mode: int) -> None:
    random = np.random.default_rng(0)
    query, key, value = (normal(random, 1, 1, 2, 4) for _ in range(3))
    mask = normal(random, 2, 2)
    raw = query @ key.transpose(0, 1, 3, 2) / 2
    capped = np.tanh(raw / 3) * 3
    exponentials = np.exp(capped + mask)
    expected = [raw, capped, capped + mask, exponentials / exponentials.sum(-1, keepdims=True)]
    case = NodeCase(
        "Attention",
        [query, key, value, mask],
        {"softcap": 3.0, "qk_matmul_output_mode": mode},
        outputs=("y0", "", "", "y3"),
        opset=23,
        expected=[expected[3] @ value, expected[mode]],
    )
    check(case)


def test_heads_that_do_not_divide_are_named() -> None:
    inputs = [np.zeros((1, heads, 2, 4), np.float32) for heads in (3, 2, 2)]
    with pytest.raises(InvalidModelError, match="3 query heads do not share 2 heads"):
        import_and_build(node_model(NodeCase("Attention", inputs, opset=23), symbolic=False, constant=False)[0])
