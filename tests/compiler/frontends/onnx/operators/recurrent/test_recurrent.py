"""RNN, GRU and LSTM."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compiler.errors import InvalidModelError, UnsupportedModelError
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
from tests.compiler.frontends.onnx.support import reference
from tests.coverage.tvm_pipeline import import_and_build

_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_FUNCTIONS = {"RNN": 1, "GRU": 2, "LSTM": 3}
# Each with the numbers of its parameters alpha and beta.
_ACTIVATIONS = {
    "Relu": (0, 0),
    "Tanh": (0, 0),
    "Sigmoid": (0, 0),
    "Affine": (1, 1),
    "LeakyRelu": (1, 0),
    "ThresholdedRelu": (1, 0),
    "ScaledTanh": (1, 1),
    "HardSigmoid": (1, 1),
    "Elu": (1, 0),
    "Softsign": (0, 0),
    "Softplus": (0, 0),
}


def _activations(random: Generator, count: int) -> dict[str, Any]:
    names = [pick(random, *_ACTIVATIONS) for _ in range(count)]
    attributes: dict[str, Any] = {"activations": names}
    alphas = [0.4 + 0.1 * i for i, name in enumerate(names) if _ACTIVATIONS[name][0]]
    betas = [0.3 + 0.1 * i for i, name in enumerate(names) if _ACTIVATIONS[name][1]]
    return {
        **attributes,
        **({"activation_alpha": alphas} if alphas else {}),
        **({"activation_beta": betas} if betas else {}),
    }


def _attributes(random: Generator, operator: str, hidden: int, directions: int) -> dict[str, Any]:
    attributes: dict[str, Any] = {"hidden_size": hidden}
    attributes["direction"] = "bidirectional" if directions == 2 else pick(random, "forward", "reverse")
    if chance(random, 0.3):
        attributes |= _activations(random, _FUNCTIONS[operator] * directions)
    if chance(random, 0.3):
        attributes["clip"] = 0.5
    if operator == "GRU":
        attributes["linear_before_reset"] = pick(random, 0, 1)
    if operator == "LSTM" and chance(random, 0.2):
        attributes["input_forget"] = 1
    return attributes


def _recurrent(random: Generator, operator: str) -> NodeCase:
    gates, directions, hidden = _GATES[operator], pick(random, 1, 1, 2), pick(random, 1, 3, 16, 17, 40)
    steps, batch, features = pick(random, 1, 2, 5), pick(random, 1, 2, 5), pick(random, 1, 7)

    def weights(*shape: int) -> np.ndarray:
        return normal(random, directions, *shape, scale=0.4)

    def optional(array: np.ndarray) -> np.ndarray | None:
        return array if chance(random) else None

    inputs = [
        normal(random, steps, batch, features),
        weights(gates * hidden, features),
        weights(gates * hidden, hidden),
        optional(weights(2 * gates * hidden)),
        optional(random.integers(1, steps + 1, batch).astype(np.int32)),
        optional(weights(batch, hidden)),
    ]
    if operator == "LSTM":
        inputs += [optional(weights(batch, hidden)), optional(weights(3 * hidden))]
    outputs = ("y0", "y1", "y2") if operator == "LSTM" else ("y0", "y1")
    last = {index: {1: "batch"} for index in (5, 6) if index < len(inputs) and inputs[index] is not None}
    return NodeCase(
        operator,
        inputs,
        _attributes(random, operator, hidden, directions),
        outputs=pick(random, outputs, ("", *outputs[1:])),
        opset=pick(random, 7, 14, 22),
        dims={0: {0: "steps", 1: "batch"} if chance(random) else {1: "batch"}, 4: {0: "batch"}, **last},
        constants=frozenset({1, 2, 3, 7}),
        tolerance=1e-4,  # of a sum over several steps of exponentials
    )


def rnn(random: Generator) -> NodeCase:
    return _recurrent(random, "RNN")


def gru(random: Generator) -> NodeCase:
    return _recurrent(random, "GRU")


def lstm(random: Generator) -> NodeCase:
    return _recurrent(random, "LSTM")


@over_seeds(6, rnn, gru, lstm)
def test_random_recurrent_layers(maker: Maker, seed: int) -> None:
    check_random(maker, seed)


@pytest.mark.parametrize("operator", ["RNN", "GRU", "LSTM"])
def test_batch_first_is_the_same_layer_transposed(operator: str) -> None:
    """ONNX Runtime has no kernel for this layout, so the reference uses the other layout."""
    random, gates, hidden = np.random.default_rng(3), _GATES[operator], 4
    data, weights = normal(random, 3, 2, 5), normal(random, 1, gates * hidden, 5)
    recurrent, initial = normal(random, 1, gates * hidden, hidden), normal(random, 1, 2, hidden)
    outputs = ("y0", "y1", "y2")[: 3 if operator == "LSTM" else 2]
    inputs = [data, weights, recurrent, None, None, initial]
    case = NodeCase(operator, inputs, {"hidden_size": hidden}, outputs=outputs, opset=14)
    expected = reference(*node_model(case, symbolic=False, constant=False))
    case.inputs = [data.transpose(1, 0, 2), weights, recurrent, None, None, initial.transpose(1, 0, 2)]
    case.attributes["layout"] = 1
    case.expected = [expected[0].transpose(2, 0, 1, 3), *(state.transpose(1, 0, 2) for state in expected[1:])]
    check(case)


def test_half_precision_is_summed_in_single() -> None:
    random = np.random.default_rng(5)
    single = [normal(random, 4, 2, 8), normal(random, 1, 64, 8), normal(random, 1, 64, 16, scale=0.3)]
    half = [array.astype(np.float16) for array in single]
    case = NodeCase("LSTM", [array.astype(np.float32) for array in half], {"hidden_size": 16}, opset=14)
    expected = reference(*node_model(case, symbolic=False, constant=False))
    check(
        NodeCase("LSTM", half, {"hidden_size": 16}, opset=14, expected=[expected[0].astype(np.float16)], tolerance=1e-3)
    )


def test_double_precision() -> None:
    random = np.random.default_rng(6)
    data, weights = normal(random, 2, 1, 3, dtype="float64"), normal(random, 1, 5, 3, dtype="float64")
    recurrent = normal(random, 1, 5, 5, dtype="float64")
    state, states = np.zeros((1, 5)), []
    for step in data:
        state = np.tanh(step @ weights[0].T + state @ recurrent[0].T)
        states.append(state[None])
    check(NodeCase("RNN", [data, weights, recurrent], {"hidden_size": 5}, opset=14, expected=[np.stack(states)]))


def test_weights_that_do_not_fit_are_named() -> None:
    shapes = ((1, 1, 3), (1, 8, 3), (1, 8, 3))
    case = NodeCase("LSTM", [np.zeros(shape, np.float32) for shape in shapes], {"hidden_size": 2}, opset=14)
    with pytest.raises(InvalidModelError, match="hidden_size is 2, the weights' 3"):
        import_and_build(node_model(case, symbolic=False, constant=False)[0])


def test_an_unknown_activation_is_refused() -> None:
    shapes = ((1, 1, 3), (1, 2, 3), (1, 2, 2))
    attributes = {"hidden_size": 2, "activations": ["Swish"]}
    case = NodeCase("RNN", [np.zeros(shape, np.float32) for shape in shapes], attributes, opset=14)
    with pytest.raises(UnsupportedModelError, match="the activation 'Swish' is unknown"):
        import_and_build(node_model(case, symbolic=False, constant=False)[0])
