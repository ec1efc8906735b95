"""Failures of schedule rules end the compilation, on a machine short of memory too."""

from __future__ import annotations

import pytest

import compiler
import schedules.selection.apply
from compiler.errors import CompilationError
from tests.compiler.building import perceptron


@pytest.mark.parametrize(("error", "hint"), [(MemoryError(), "free memory"), (ValueError("of its own"), "report it")])
def test_the_error_names_rule_and_kernel(error: Exception, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise error

    monkeypatch.setenv("TENSORWRIGHT_CACHE_MB", "0")
    monkeypatch.setattr(schedules.selection.apply, "apply_rule", failing)
    with pytest.raises(
        CompilationError, match=rf"rule '[\w-]+' failed on kernel '\w+': {type(error).__name__}"
    ) as caught:
        compiler.compile(perceptron(width=32, layers=1), threads=1)
    assert hint in (caught.value.hint or "")
