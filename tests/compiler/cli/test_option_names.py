"""Errors on the command line name its options, not the arguments of the API."""

from __future__ import annotations

import pytest

from compiler.cli.entry import with_option_names


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("calibration[0] lacks ['x']", "--samples[0] lacks ['x']"),
        ("static-int8 needs calibration=", "static-int8 needs --samples"),
        ("passes= has no pass for 'after:x'", "--pass has no pass for 'after:x'"),
        ("trials=0: there must be at least one", "--trials 0: there must be at least one"),
        ("the limit max_drop=0.01 does not hold", "the limit --max-drop 0.01 does not hold"),
        ("shapes: 'b' is not a size of input 'x'", "--shape: 'b' is not a size of input 'x'"),
        ("sizes['n'] is 'all'", "--sizes['n'] is 'all'"),
        ("name a cut (at=)", "name a cut (--at)"),
        ("give task= (detect or classify)", "give --task (detect or classify)"),
        ("processing: task='x'", "processing: --task 'x'"),
        ("select the one to score: output=", "select the one to score: --scored-output"),
    ],
)
def test_arguments_become_options(text: str, wanted: str) -> None:
    assert with_option_names(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "allow a larger max_drop, give more calibration samples",
        "fix it when compiling: compile(..., constants={'n': 1})",
        "the inputs are x, y; sizes: 3",
        "give evaluate=",
    ],
)
def test_other_texts_stay(text: str) -> None:
    assert with_option_names(text) == text
