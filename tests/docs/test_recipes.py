"""The recipes of CONTRIBUTING work: their files are put where they say, and their tests pass."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from compiler.cli import app
from compiler.frontends.onnx import registry as operators
from compiler.passes import registry as passes
from tests.docs.pages import ROOT, blocks

PYTHON = [block.text for block in blocks(ROOT / "CONTRIBUTING.md") if block.language == "python"]
# Texts by the paths that their first lines name.
RECIPES = {text.partition("\n")[0].removeprefix("# "): text for text in PYTHON}


@pytest.fixture
def _nothing_stays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Registrations of a recipe, and the modules that it adds, are gone after its test."""
    operators.discover()
    passes.get_pass("fold-constants")
    monkeypatch.setattr(operators, "_CONVERTERS", {key: dict(value) for key, value in operators._CONVERTERS.items()})
    monkeypatch.setattr(passes, "_PASSES", dict(passes._PASSES))
    monkeypatch.setattr(app, "COMMANDS", (*app.COMMANDS, "size"))
    loaded = set(sys.modules)
    yield
    for path in RECIPES:
        name = module_name(path)
        if name not in loaded and sys.modules.pop(name, None) is not None:
            package, _, last = name.rpartition(".")
            vars(sys.modules[package]).pop(last, None)


def module_name(path: str) -> str:
    return path.removesuffix(".py").replace("/", ".")


def load(path: str, folder: Path) -> ModuleType:
    """A file of a recipe as the module that it would be in the project."""
    assert not (ROOT / path).exists(), f"{path} exists: the recipe needs another example"
    written = folder / path
    written.parent.mkdir(parents=True, exist_ok=True)
    written.write_text(RECIPES[path])
    name = module_name(path)
    spec = importlib.util.spec_from_file_location(name, written)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    package, _, last = name.rpartition(".")
    setattr(importlib.import_module(package), last, module)
    return module


def cases(test: Any) -> list[dict[str, Any]]:
    """The arguments of a test's parametrizations; a single empty set where it has none."""
    marks = getattr(test, "pytestmark", [])
    return [{mark.args[0]: value} for mark in marks for value in mark.args[1]] or [{}]


@pytest.mark.usefixtures("_nothing_stays")
@pytest.mark.parametrize("path", [path for path in RECIPES if path.startswith("tests/")])
def test_recipe(path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order = list(RECIPES)
    load(order[order.index(path) - 1], tmp_path)
    module = load(path, tmp_path)
    tests = [value for name, value in vars(module).items() if name.startswith("test_")]
    assert tests
    given = {"tmp_path": tmp_path, "capsys": capsys}
    for test in tests:
        wanted = inspect.signature(test).parameters
        for case in cases(test):
            test(**case, **{name: value for name, value in given.items() if name in wanted})


def test_there_are_five_recipes() -> None:
    files = list(RECIPES)
    assert len(files) == 10
    assert [path.startswith("tests/") for path in files] == [False, True] * 5
