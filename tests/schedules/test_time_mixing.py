"""The kernel of RWKV 7's time mixing equals float64 numpy, of odd sizes, and in parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tvm import relax

from compiler.passes.rewriting.matching import as_constant
from schedules.sequence_mixers import Columns
from schedules.time_mixing import TimeMix, time_mix
from tests.schedules.harness import assembly, evaluate, normal, runnable, scheduled

_COLUMNS = ("query", "key", "value", "decay", "rate", "gate")
_CONSTANTS = ("removal", "rate_share", "bonus", "scale", "bias")


def _operands(rows: int, width: int, *, plain: bool) -> dict[str, np.ndarray[Any, Any]]:
    """Operands by name; `plain` ones have no norm and no gates."""
    left_out = ("gate", "scale", "bias") if plain else ()
    shapes = {**dict.fromkeys(_COLUMNS, (rows, width)), **dict.fromkeys(_CONSTANTS, (width,))}
    return {name: normal(shape, seed) for seed, (name, shape) in enumerate(shapes.items()) if name not in left_out}


def _given(operands: dict[str, Any], state: relax.Expr) -> TimeMix:
    columns = {name: Columns(operands[name]) if name in operands else None for name in _COLUMNS}
    others = {name: operands.get(name) for name in _CONSTANTS}
    return TimeMix(**columns, **others, state=state, epsilon=64e-5, key_epsilon=1e-24)  # type: ignore[arg-type]


def _reference(given: dict[str, np.ndarray[Any, Any]], state: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The results and, behind them, the state."""
    heads, size, _ = state.shape
    wide = {name: values.astype(np.float64) for name, values in given.items()}
    state, found = state.astype(np.float64), []
    for row in range(len(wide["query"])):
        r, k, v, w, a = (wide[name][row].reshape(heads, size) for name in _COLUMNS[:5])
        removal, share, bonus = (wide[name].reshape(heads, size) for name in _CONSTANTS[:3])
        rate = 1 / (1 + np.exp(-a))
        removed = k * removal / np.linalg.norm(k * removal, axis=1, keepdims=True)
        key = k + k * (rate - 1) * share
        kept = np.exp(-np.exp(-0.5) / (1 + np.exp(-w)))
        change = np.einsum("hi,hij,hl->hlj", removed, state, removed * rate)
        state = kept[:, :, None] * state - change + key[:, :, None] * v[:, None]
        result = np.einsum("hi,hij->hj", r, state)
        if "scale" in wide:
            result = (result - result.mean(1, keepdims=True)) / np.sqrt(result.var(1, keepdims=True) + 64e-5)
            result = result * wide["scale"].reshape(heads, size) + wide["bias"].reshape(heads, size)
        result = (result + (r * key * bonus).sum(1, keepdims=True) * v).reshape(-1)
        found.append(result * wide["gate"][row] if "gate" in wide else result)
    return np.concatenate([np.stack(found).reshape(-1), state.reshape(-1)])


@pytest.mark.parametrize(("heads", "size"), [(2, 64), (1, 80), (3, 12), (5, 7), (2, 1)])
@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("plain", [False, True])
def test_results_and_states_equal_numpy(heads: int, size: int, rows: int, *, plain: bool) -> None:
    operands, state = _operands(rows, heads * size, plain=plain), normal((heads, size, size), 50)
    names = list(operands)

    def build(builder: relax.BlockBuilder, *inputs: relax.Var) -> relax.Expr:
        found = time_mix(builder, _given(dict(zip(names, inputs, strict=False)), inputs[-1]))
        flat = [builder.emit(relax.op.reshape(each, (-1,))) for each in found]
        return builder.emit(relax.op.concat(flat))

    wanted = _reference(operands, state)
    found = evaluate(build, [*operands.values(), state], runnable()[0])
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * abs(wanted).max())


def test_functions_of_vectors_call_no_library() -> None:
    operands = _operands(1, 128, plain=False)

    def build(builder: relax.BlockBuilder, state: relax.Var) -> relax.Expr:
        constants = {name: as_constant(values) for name, values in operands.items()}
        return time_mix(builder, _given(constants, state))[0]

    mod, _ = scheduled(build, [((2, 64, 64), "float32")], runnable()[0])
    code = assembly(mod, runnable()[0])
    assert "expf" not in code
    assert "tanhf" not in code
