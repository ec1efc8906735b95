"""Targets of other packages: found, and when they are broken, named without stopping anything else."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any

import pytest

import compiler
import targets
from compiler.cli import main
from compiler.errors import ToolchainError
from tests.compiler.cli.running import isolated_consoles


class Complete(targets.AcceleratedTarget):
    name = "stranger"
    description = "a complete one"

    def __init__(self) -> None:
        super().__init__(targets.get("raspberry-pi-5"))


class Abstract(targets.Target):
    name = "stranger"


class Nameless(targets.AcceleratedTarget):
    def __init__(self) -> None:
        super().__init__(targets.get("host"))


class Misnamed(Complete):
    name = "another"


class Bare(Complete):
    def __init__(self) -> None:
        """Without what the base class does."""


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that has a package offer something as the target "stranger"."""

    def offer(value: Any) -> None:
        module = ModuleType("strangers_package")
        module.__dict__["offered"] = value
        monkeypatch.setitem(sys.modules, "strangers_package", module)
        entry = EntryPoint("stranger", "strangers_package:offered", "tensorwright.targets")
        monkeypatch.setattr("targets.registry.entry_points", lambda group: [entry])

    return offer


def test_an_accelerator_takes_its_processor_from_another_target(register: Any) -> None:
    register(Complete)
    target, processor = targets.get("stranger"), targets.get("raspberry-pi-5")
    assert target.machine == processor.machine
    assert target.required_features == processor.required_features
    assert target.linker() == processor.linker()
    assert target.compiler() == processor.compiler()
    assert target.describe() == {**processor.describe(), "name": "stranger"}


@pytest.mark.parametrize(
    ("offered", "reason"),
    [
        (Abstract, "required_features"),
        (Nameless, r"has no name \(a string: what --target takes\), no description"),
        (Bare, r"has no machine \(a schedules.machine.Machine\)"),
        (Misnamed, "calls itself 'another'"),
        (lambda: 3, "is of type int, not a Target"),
    ],
)
def test_a_broken_package_is_named_and_stops_nothing_else(
    register: Any, offered: Any, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    register(offered)
    with pytest.raises(targets.RegistrationError, match=reason):
        targets.get("stranger")
    with pytest.raises(ToolchainError, match=r"target 'stranger' \(strangers_package:offered\)"):
        compiler.compile("model.onnx", "stranger")
    with isolated_consoles():
        assert main(["targets"]) == 0
    said = capsys.readouterr()
    assert "note: target 'stranger' (strangers_package:offered)" in said.err
    assert "raspberry-pi-5" in said.out
