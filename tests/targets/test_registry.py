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


@pytest.mark.parametrize(
    ("name", "plain", "cores"),
    [
        ("granite-rapids:32", "granite-rapids", 32),
        ("graniterapids:128", "granite-rapids", 128),
        ("zen4 : 16", "znver4", 16),
        ("raspberry-pi-5:2", "raspberry-pi-5", 2),
        ("graviton3:64", "graviton3", 64),
        ("host:24", "host", 24),
        ("h100:8", "h100", 8),
    ],
)
def test_a_name_may_say_the_cores(name: str, plain: str, cores: int) -> None:
    for asked in (None, 3):  # what stands in the name is nearer to the user
        target = targets.get(name, cores=asked)
        assert (target.name, target.machine.cores) == (plain, cores)


@pytest.mark.parametrize("count", ["", "0", "-4", "1.5", "many", "193", "32:4", "100000000000", "\u0663"])
def test_cores_that_no_machine_has(count: str) -> None:
    with pytest.raises(targets.TargetError, match="znver4 has 1 to 192 cores") as raised:
        targets.get(f"znver4:{count}")
    assert raised.value.hint == "write znver4:16, or znver4 alone"
    with pytest.raises(ToolchainError, match="znver4 has 1 to 192 cores"):
        compiler.compile("missing.onnx", target=f"znver4:{count}")


def test_a_board_has_no_more_cores_than_it_has() -> None:
    with pytest.raises(targets.TargetError, match="raspberry-pi-5 has 1 to 4 cores"):
        targets.get("raspberry-pi-5:8")


def test_an_unknown_name_with_cores_is_an_unknown_name() -> None:
    with pytest.raises(targets.UnknownTarget, match="'zenver4'"):
        targets.get("zenver4:16")


def test_targets_of_other_packages_have_their_own_cores(register: Any) -> None:
    register(Complete)
    assert targets.get("stranger:4").machine.cores == 4
    with pytest.raises(targets.TargetError, match="describes a machine with 4 cores"):
        targets.get("stranger:16")


def test_memory_serves_more_cores_faster_up_to_what_its_channels_give() -> None:
    rates = [targets.get(f"znver4:{cores}").machine.memory_rate for cores in (1, 2, 8, 32, 96, 192)]
    assert rates == [7.0, 13.0, 13.0, 52.0, 107.0, 214.0]
    assert targets.get("raspberry-pi-5").machine.memory_rate == 5.0
