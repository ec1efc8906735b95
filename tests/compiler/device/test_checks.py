"""Inputs and files checked by the C++ runtime; in the sweep under sanitizers, which take long to compile."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compiler.artifact import artifact_bytes, read_artifact
from compiler.artifact.tensors import Blob
from compiler.errors import ArtifactError
from tests.compiler.runtime.building import dense_artifact
from tests.compiler.runtime.requirement_cases import CASES, inputs_of, module_of
from tests.fuzz.artifact_mutations import Parts
from tests.fuzz.artifact_samples import mixed_artifact
from tests.fuzz.device_driver import Driver, build_driver


@pytest.fixture(scope="module", params=["plain", "sanitizers"])
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    running = Driver(build_driver(sanitized=request.param == "sanitizers"))
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


def test_wrong_calls_of_the_c_api_are_errors(driver: Driver, tmp_path: Path) -> None:
    module = tmp_path / "dense.twm"
    module.write_bytes(artifact_bytes(dense_artifact()))
    said = dict(
        line.split(": ", 1) for line in driver.ask(["capi", str(module)]).splitlines() if not line.startswith(" ")
    )
    assert said == {
        "load without a path": "path is NULL",
        "load without a place": "module is NULL",
        "load without keys": "trusted_keys is NULL",
        "describe no module": "module is NULL",
        "describe input -1": "there is no tensor with that index",
        "describe output 9": "there is no tensor with that index",
        "describe to nowhere": "description is NULL",
        "share no module": "module is NULL",
        "share to nowhere": "shared is NULL",
        "threads of no module": "module is NULL",
        "run no module": "module is NULL",
        "run without inputs": "inputs is NULL",
        "run without outputs": "outputs is NULL",
        "no shape": "input 'x': its shape is NULL",
        "no data": "input 'x': its data is NULL",
        "rank -1": "input 'x' has a rank of -1",
        "rank 2^30": "input 'x' has a rank of 1073741824",
        "rank 0": "input 'x' has rank 0, shape []; expected rank 2",
        "negative size": "the shape [-1, 16] has a negative size",
        "size 2^62": "the shape [4611686018427387904, 16] has more than 2^60 elements",
        "other shape": "input 'x' has shape [16, 2]: dimension 1 is 2 and must be 16",
        "too few bytes": "input 'x' has 4 bytes; its shape needs 128",
        "other type": "input 'x' must be float32, not float64",
        "no type": "input 'x' must be float32, not what",
        "right": "ok",
        "unknown type": "0",
    }


def _within_details(added: bytes) -> Callable[[bytes], bytes]:
    return lambda text: text.replace(b'"details": {', b'"details": {"z": ' + added)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "has format version 99; this program reads up to 1"),
        ({"version": 0}, "its header is not valid"),
        ({"flags": 2}, "its header is not valid"),
        ({"flags": 1}, "the data after its content does not match its header"),
        ({"signatures": b"more", "flags": 0}, "the data after its content does not match its header"),
        ({"signatures": b"more"}, "the data after its content is not a signature block"),
        ({"rewrite": _within_details(b"[" * 10**5)}, "nested too deeply"),
        ({"rewrite": _within_details(b"NaN, ")}, "a number that is not valid JSON"),
        ({"rewrite": _within_details(b"[-Infinity], ")}, "a number that is not valid JSON"),
    ],
)
def test_files_of_another_form_are_refused(
    driver: Driver, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    parts = replace(Parts.of(artifact_bytes(dense_artifact())), **change)
    (tmp_path / "it.twm").write_bytes(parts.assemble())
    assert message in driver.ask(["load", str(tmp_path / "it.twm")])


def test_fields_and_relations_of_the_future_are_refused(driver: Driver, tmp_path: Path) -> None:
    path = tmp_path / "it.twm"

    def answer(key: str, value: object) -> str:
        parts = Parts.of(artifact_bytes(dense_artifact()))
        parts.manifest[key] = value
        path.write_bytes(parts.assemble())
        return driver.ask(["load", str(path)])

    relation = {"left": "n", "relation": "at most", "right": "1", "symbols": {"n": "n"}, "where": "w"}
    assert "'at most' is not known" in answer("requirements", [relation])
    assert "this program does not know it" in answer("requirements", [{**relation, "relation": "equal", "unless": "n"}])
    assert "this program does not know it" in answer("value_requirements", [])
    assert "must be a whole number" in answer("threads", 10**9)
    assert answer("threads", 4096) == "ok"


def test_truth_values_are_0_or_1(driver: Driver, tmp_path: Path) -> None:
    parts = Parts.of(artifact_bytes(mixed_artifact()))
    blob = bytearray(parts.sections["parameters"])
    (length,) = struct.unpack("<Q", blob[:8])
    start, _ = json.loads(blob[8 : 8 + length])["mask"]["data_offsets"]
    blob[8 + length + start + 3] = 2
    parts.sections["parameters"] = bytes(blob)
    (tmp_path / "it.twm").write_bytes(parts.assemble())
    assert "has boolean values other than 0 and 1" in driver.ask(["load", str(tmp_path / "it.twm")])
    with pytest.raises(ArtifactError, match="has boolean values other than 0 and 1"):
        read_artifact(tmp_path / "it.twm")
