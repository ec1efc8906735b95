"""The device suite: damaged and hostile files in the C++ runtime, which runs under sanitizers.

Of six cases, four are a module file, one is a file of inputs, and one a picture. A case must end in one error of the
runtime, or load and run; whatever the sanitizers report is a crash. A module file that one of the readers, C++ and
Python, takes and the other refuses is wrong.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from compiler.artifact import read_artifact
from compiler.artifact.tensors import Blob
from compiler.errors import TensorwrightError
from compiler.runtime.inputs import RequirementChecker
from tests.compiler.runtime.requirement_cases import Case, inputs_of, module_of
from tests.fuzz.artifact_mutations import STRUCTURE_MUTATIONS, Parts, pick
from tests.fuzz.artifacts import prepare as prepare_artifacts
from tests.fuzz.byte_mutations import BYTE_MUTATIONS
from tests.fuzz.device_driver import Driver, SanitizerReport, build_driver
from tests.fuzz.device_mutations import FORMAT_MUTATIONS, damage_code, edit_inputs
from tests.fuzz.media import changed, pictures
from tests.fuzz.outcome import Outcome

MEMORY_BYTES = -1
"""Address space of a worker: no limit, since AddressSanitizer reserves terabytes."""

_SHOWN = 70
_MODULES_OF = 6  # two of this many cases are not modules
# Inputs with relations, indices and lengths: every second input case uses it.
_REQUIRED: Case = {
    "shapes": {"a": ["n", 4], "b": ["m", 4]},
    "requirements": [
        {"left": "n", "relation": "broadcast", "right": "m", "symbols": {"n": "n", "m": "m"}, "where": "here"},
        {
            "left": "n*n*n*n",
            "relation": "at least",
            "right": "m // n",
            "symbols": {"n": "n", "m": "m"},
            "where": "there",
        },
    ],
    "indices": [
        {"input": "i", "size": "n", "symbols": {"n": "n"}, "where": "here"},
        {"input": "u", "size": "100*n", "least": "-n", "symbols": {"n": "n"}, "where": "there"},
    ],
}
Random = np.random.Generator


@dataclass(frozen=True)
class Samples:
    """The driver, valid modules, and inputs of modules with an example."""

    program: Path
    modules: tuple[bytes, ...]
    inputs: tuple[tuple[Path, bytes], ...]
    folder: Path


def prepare(folder: Path) -> Samples:
    """Build the driver, and the artifact suite's samples with inputs for some of them."""
    modules = prepare_artifacts(folder).files
    inputs = []
    for number, content in enumerate(modules):
        artifact = read_artifact(content)
        path = folder / f"sample-{number}.twm"
        path.write_bytes(content)
        arrays = {
            each.name: np.ones([3 if isinstance(size, str) else size for size in each.shape], np.float32)
            for each in artifact.manifest.inputs
            if each.dtype == "float32"
        }
        if len(arrays) == len(artifact.manifest.inputs):
            inputs.append((path, b"".join(Blob(arrays).pieces)))
    path = folder / "sample-required.twm"
    path.write_bytes(module_of(_REQUIRED))
    required = b"".join(Blob(inputs_of(_REQUIRED)).pieces)
    return Samples(build_driver(), modules, (*inputs, *[(path, required)] * len(inputs)), folder)


@cache
def _driver(program: Path) -> Driver:
    """One driver per worker process."""
    return Driver(program)


def case(samples: Samples, seed: int) -> Outcome:
    """Mutate one sample, then let the driver read and run it."""
    random = np.random.default_rng(seed)
    path = samples.folder / f"case-{os.getpid()}"
    if seed % _MODULES_OF == _MODULES_OF - 1:
        module, sound = pick(samples.inputs, random)
        label, content = edit_inputs(sound, random)
        outcome = _answer(samples, ["inputs", str(module), str(path)], path, content)
        return Outcome(outcome.kind, label, outcome.detail)
    if seed % _MODULES_OF == _MODULES_OF - 2:
        outcome = _answer(samples, ["image", str(path)], path, changed(pick(pictures(), random), random))
        return Outcome(outcome.kind, "image", outcome.detail)
    label, content = _mutated_module(samples, random)
    checked = _answer(samples, ["check", str(path)], path, content)
    refusal = _refusal(content)
    if checked.kind in ("right", "refused") and (checked.kind == "right") != (refusal is None):
        return Outcome("wrong", label, f"Python: {refusal or 'right'}; C++: {checked.detail or 'right'}")
    if checked.kind != "right":
        return Outcome(checked.kind, label, checked.detail)
    # A library with damaged tables is not run: the system's loader trusts libraries.
    outcome = _answer(samples, ["read" if label == damage_code.__name__ else "load", str(path)], path, content)
    return Outcome(outcome.kind, label, outcome.detail)


def _mutated_module(samples: Samples, random: Random) -> tuple[str, bytes]:
    content = pick(samples.modules, random)
    if random.random() < 0.3:
        mutation = pick(BYTE_MUTATIONS, random)
        return mutation.__name__, mutation(content, random)
    change = pick((*STRUCTURE_MUTATIONS, *FORMAT_MUTATIONS, *FORMAT_MUTATIONS, damage_code, damage_code), random)
    parts = Parts.of(content)
    change(parts, random)
    try:
        return change.__name__, parts.assemble()
    except (UnicodeEncodeError, ValueError):  # the mutation wrote an invalid section name
        return "none", content


def _answer(samples: Samples, command: list[str], path: Path, content: bytes) -> Outcome:
    path.write_bytes(content)
    try:
        answer = _driver(samples.program).ask(command)
    except SanitizerReport as report:
        return Outcome("crash", "", str(report))
    if answer == "ok":
        return Outcome("right", "")
    answer = answer.replace(str(path), "FILE")
    return Outcome("refused", "", f"{_kind(answer)}: {answer}")


def _kind(answer: str) -> str:
    """An error without the details that differ between cases."""
    first = answer.partition("\n")[0].partition(" (")[0]
    first = re.sub(r"'.*'|\[.*\]|-?\d[\d.e+]*", "...", first)
    return first.replace(": ", ", ")[:_SHOWN]


def _refusal(content: bytes) -> str | None:
    """The reason why Python refuses a module."""
    try:
        manifest = read_artifact(content).manifest
        RequirementChecker(manifest.inputs, manifest.requirements, manifest.indices)
    except TensorwrightError as error:
        return str(error)
    return None
