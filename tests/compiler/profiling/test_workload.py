from __future__ import annotations

import numpy as np
import pytest

import compiler
from compiler.errors import InputError, OptionError
from compiler.profiling.workload import complete_inputs, made_up_note, symbolic_sizes


def test_the_stored_example_comes_first(module: compiler.Module) -> None:
    assert module.artifact.reference_inputs
    np.testing.assert_array_equal(complete_inputs(module, None)["x"], module.artifact.reference_inputs["x"])
    note = made_up_note(module, {}, None)
    assert note is not None
    assert "stored example" in note


def test_sizes_ask_for_random_values(open_module: compiler.Module) -> None:
    assert complete_inputs(open_module, None, {"batch": 5})["x"].shape == (5, 64)
    note = made_up_note(open_module, {}, {"batch": 5})
    assert note is not None
    assert "random" in note


def test_given_inputs_are_kept(module: compiler.Module) -> None:
    x = np.ones((4, 256), np.float32)
    assert complete_inputs(module, [x])["x"] is x
    assert complete_inputs(module, {"x": x})["x"] is x
    assert made_up_note(module, {"x": x}, None) is None


def test_open_dimensions_follow_given_inputs(open_module: compiler.Module) -> None:
    assert symbolic_sizes(open_module.inputs, {"x": np.zeros((3, 64))}, None) == {"batch": 3}
    assert symbolic_sizes(open_module.inputs, {}, None) == {"batch": 1}


def test_bad_names(module: compiler.Module, open_module: compiler.Module) -> None:
    with pytest.raises(InputError, match="no input is named 'q'"):
        complete_inputs(module, {"q": np.zeros(1)})
    with pytest.raises(InputError, match=r"expected at most . inputs?, got 2"):
        complete_inputs(module, [np.zeros(1), np.zeros(1)])
    with pytest.raises(OptionError, match="no symbolic dimension is named 'length'"):
        complete_inputs(open_module, None, {"length": 2})
