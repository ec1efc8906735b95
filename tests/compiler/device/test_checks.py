"""What the C++ runtime makes of inputs and files, under sanitizers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from compiler.artifact.manifest import Manifest
from compiler.artifact.tensors import Blob
from compiler.device.programs import SOURCES
from targets import TargetError
from tests.compiler.runtime.requirement_cases import CASES, inputs_of, module_of
from tests.fuzz.device_driver import Driver, build_driver


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    try:
        running = Driver(build_driver())
    except TargetError as error:
        pytest.skip(f"no compiler with sanitizers (libasan, libubsan): {error.message}")
    yield running
    running.close()


def test_inputs_are_checked_as_python_checks_them(driver: Driver, tmp_path: Path) -> None:
    wrong = {}
    for number, case in enumerate(CASES):
        module, inputs = tmp_path / f"{number}.twm", tmp_path / f"{number}.safetensors"
        module.write_bytes(module_of(case))
        inputs.write_bytes(b"".join(Blob(inputs_of(case)).pieces))
        answer = driver.ask(["inputs", str(module), str(inputs)])
        if answer != (case["error"] or "ok"):
            wrong[case["name"]] = answer
    assert wrong == {}


def test_every_field_of_the_manifest_is_known() -> None:
    """What the C++ runtime does not know it refuses: so it must know all that Python writes."""
    text = (SOURCES / "manifest.cc").read_text(encoding="utf-8")
    known = text.partition("manifest.OnlyKeys({")[2].partition("})")[0]
    assert set(json.loads(f"[{known}]")) == set(Manifest.model_fields)
