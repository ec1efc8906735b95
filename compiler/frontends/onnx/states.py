"""Pairs of inputs and outputs that are one state: by the names that a caller gives, or by the usual ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import onnx

from compiler.errors import OptionError
from compiler.frontends.imported_model import StateSpec, TensorSpec

# Exporters' names for a state and its next value; "*" is the same text in both.
USUAL_NAMES = (
    ("past_key_values.*", "present.*"),
    ("past_key_values.*", "present_key_values.*"),
    ("past_key_values_*", "present_key_values_*"),
    ("past_*", "present_*"),
    ("past.*", "present.*"),
    ("cache_*", "cache_*_next"),
    ("cache_*", "past_key_values_*"),
    ("*_cache", "r_*_cache"),
    ("*", "new_*"),
    ("in_cache*", "out_cache*"),
    ("input_states_*", "output_states_*"),
    ("state", "stateN"),
    ("state", "state_out"),
    ("h", "hn"),
    ("c", "cn"),
    ("h0", "hn"),
    ("c0", "cn"),
    ("h_in", "h_out"),
    ("c_in", "c_out"),
)


def named_pairs(graph: onnx.GraphProto, state: Mapping[str, str] | None) -> dict[str, str]:
    """The output for each input that is a state, by names alone.

    Raises OptionError where one of the caller's names matches no input, or no output goes with an input.
    """
    given = {each.name for each in graph.initializer}
    inputs = [each.name for each in graph.input if each.name not in given]
    outputs = {each.name for each in graph.output}
    if state is None:
        return _usual(inputs, outputs)
    pairs: dict[str, str] = {}
    for pattern, result in state.items():
        found = {name: _filled(pattern, result, name) for name in inputs}
        matched = {name: output for name, output in found.items() if output is not None}
        if not matched:
            raise OptionError(f"state= names no input by {pattern!r}", f"the inputs are {', '.join(inputs)}")
        for name, output in matched.items():
            if output not in outputs:
                what = f"state= makes {output!r} the next value of {name!r}, and no output has that name"
                raise OptionError(what, f"the outputs are {', '.join(sorted(outputs))}")
            pairs[name] = output
    if len(set(pairs.values())) != len(pairs):
        raise OptionError("state= makes one output the next value of two inputs")
    return pairs


def _usual(inputs: Iterable[str], outputs: set[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for name in inputs:
        for pattern, result in USUAL_NAMES:
            output = _filled(pattern, result, name)
            if output in outputs and output not in pairs.values():
                pairs[name] = str(output)
                break
    return pairs


def _filled(pattern: str, result: str, name: str) -> str | None:
    """The output's name for an input's; None where the pattern is not that of the name."""
    match = re.fullmatch("(.+)".join(map(re.escape, pattern.split("*"))), name)
    if match is None:
        return None
    texts = iter(match.groups())
    return re.sub(r"\*", lambda _: next(texts, ""), result)


def state_specs(
    pairs: Mapping[str, str], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, strict: bool
) -> tuple[StateSpec, ...]:
    """The pairs that are states by their shapes: equal ones, or longer along one symbolic axis.

    Raises OptionError for a pair that is none where `strict`.
    """
    given = {spec.name: spec for spec in inputs}
    results = {spec.name: spec for spec in outputs}
    states = []
    for name, output in pairs.items():
        if name not in given or output not in results:  # fixed when compiling, or not asked for
            continue
        state = _state(given[name], results[output])
        if state is not None:
            states.append(state)
        elif strict:
            raise OptionError(
                f"{given[name]} and {results[output]} are not a state: they differ in more than one symbolic axis",
                "give their sizes in shapes=",
            )
    return tuple(states)


def _state(given: TensorSpec, result: TensorSpec) -> StateSpec | None:
    if given.dtype != result.dtype or len(given.shape) != len(result.shape):
        return None
    different = [axis for axis, (a, b) in enumerate(zip(given.shape, result.shape, strict=True)) if a != b]
    if not different:
        return StateSpec(given.name, given.name, result.name)
    if len(different) > 1 or not isinstance(given.shape[different[0]], str):
        return None
    return StateSpec(given.name, given.name, result.name, axis=different[0], grows=True)
