"""Arbitrary spaces, budgets and options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compiler.errors import OptionError, StorageError
from compiler.searching.settings import SearchOptions, Space, check_budget, parse_space


def test_a_space_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("space:\n  channels: [0.5]\n  layers: false\n  precision: [int8, float32]\n")
    assert parse_space(path) == Space(channels=(0.5,), layers=False, precision=("int8", "float32"))
    assert parse_space(None) == Space()
    assert Space(precision=("float32", "int8")).precision == Space(precision=("int8",)).precision == ("int8", "float32")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds nothing"),
        ("- channels\n", "holds list"),
        ("space:\n", "has an empty space"),
        ("space: {channels: [0.5]}\nbudget: {ms: 3}\n", "has the key 'budget' beside 'space'"),
        ("space: {chanels: [0.5]}\n", "has the unknown key 'chanels'"),
        ("channels: [1.5]\n", r"has channels: \[1.5\]: give shares above 0"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(OptionError, match=rf"space\.yaml {message}"):
        parse_space(path)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"chanels": [0.5]}, "'chanels'"),
        ({"channels": [0.0]}, "shares above 0"),
        ({"kernels": [2]}, "must be odd"),
        ({"precision": ["int3"]}, "int3: use some of"),
        ({"channels": "half"}, "channels: 'half'"),
        ([0.5], "is a list"),
    ],
)
def test_spaces_that_are_refused(space: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse_space(space)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"none\.yaml"):
        parse_space(tmp_path / "none.yaml")


@pytest.mark.parametrize("budget", [{}, {"seconds": 1}, {"ms": 0}, {"ms": float("nan")}, {"ms": True}, {"ms": "5"}, 5])
def test_budgets_that_are_refused(budget: Any) -> None:
    with pytest.raises(OptionError, match="budget="):
        check_budget(budget)


@pytest.mark.parametrize(
    "options",
    [
        {"trials": 0},
        {"finalists": 1.5},
        {"finish_epochs": 0},
        {"sampler": "random"},
        {"train": 3},
        {"learning_rate": 0.0},
        {"recipe": ["quantise"]},
    ],
)
def test_options_that_are_refused(options: Any) -> None:
    with pytest.raises(OptionError, match="quantise" if "recipe" in options else next(iter(options))):
        SearchOptions(budget={"ms": 1.0}, space=Space(), **options).check()
