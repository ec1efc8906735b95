"""The sessions suite: damaged session state files in the C API, which runs under sanitizers.

Python's sessions read the same file: one that either takes and the other refuses is wrong.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from compiler.errors import TensorwrightError
from compiler.runtime import Module, load
from tests.fuzz.artifact_mutations import edit_json, pick
from tests.fuzz.byte_mutations import BYTE_MUTATIONS
from tests.fuzz.device_driver import Driver, SanitizerReport, build_driver
from tests.fuzz.outcome import Outcome

MEMORY_BYTES = -1
"""Address space of a worker: no limit, since AddressSanitizer reserves terabytes."""

_CAPACITY = 8  # the driver's session numbers
_DIGEST_BYTES = 32
_HEAD = struct.Struct("<8sQ")  # magic, and bytes of the header
_NUMBERS = (0, 1, 3, 7, 8, 9, -1, 2**31, 2**62, 2**63, 2**64 - 1)
Random = np.random.Generator


@dataclass(frozen=True)
class Samples:
    """The driver, a module with states, and a valid state file."""

    program: Path
    module: Path
    states: bytes
    folder: Path


def prepare(folder: Path) -> Samples:
    """Build the driver and the module, and save a session."""
    import compiler
    from tests.compiler.runtime.test_session import model, rows

    module = compiler.compile(model(), threads=1)
    module.export(folder / "module.twm")
    session = module.session(capacity=_CAPACITY)
    session.run({"rows": rows(3)})
    session.save(folder / "states")
    return Samples(build_driver(), folder / "module.twm", (folder / "states").read_bytes(), folder)


@cache
def _driver(program: Path) -> Driver:
    return Driver(program)


@cache
def _module(path: Path) -> Module:
    return load(path)


def case(samples: Samples, seed: int) -> Outcome:
    """Damage the file and load it in C++ and Python."""
    random = np.random.default_rng(seed)
    label, content = _damaged(samples.states, random)
    path = samples.folder / f"case-{os.getpid()}"
    path.write_bytes(content)
    try:
        answer = _driver(samples.program).ask(["states", str(samples.module), str(path)])
    except SanitizerReport as report:
        return Outcome("crash", label, str(report))
    refusal = _refusal(samples, path)
    if (answer == "ok") != (refusal is None):
        return Outcome("wrong", label, f"Python: {refusal or 'right'}; C++: {answer}")
    return Outcome("right" if refusal is None else "refused", label, answer.replace(str(path), "FILE"))


def _refusal(samples: Samples, path: Path) -> str | None:
    """The reason why Python refuses a file, or the step on its states."""
    try:
        session = _module(samples.module).session(capacity=_CAPACITY)
        session.load(path)
        session.run({"rows": np.zeros((2, 1, 6), np.float32)})
    except TensorwrightError as error:
        return str(error)
    return None


def _damaged(content: bytes, random: Random) -> tuple[str, bytes]:
    if random.random() < 0.2:
        mutation = pick(BYTE_MUTATIONS, random)
        return mutation.__name__, mutation(content, random)
    magic, length = _HEAD.unpack_from(content)
    header = json.loads(content[_HEAD.size : _HEAD.size + length])
    body = content[_HEAD.size + length : -_DIGEST_BYTES]
    if random.random() < 0.3:
        mutation = pick(BYTE_MUTATIONS, random)
        return f"tensors: {mutation.__name__}", _whole(magic, header, mutation(body, random))
    if random.random() < 0.4:
        number = int(pick(_NUMBERS, random))
        if random.random() < 0.5:
            header["length"] = number
        else:
            header["sizes"] = dict.fromkeys(header["sizes"], number)
        return "numbers", _whole(magic, header, body)
    edit_json(header, random)
    return "header", _whole(magic, header, body)


def _whole(magic: bytes, header: object, body: bytes) -> bytes:
    """The file with a right checksum."""
    text = json.dumps(header).encode()
    content = _HEAD.pack(magic, len(text)) + text + body
    return content + hashlib.sha256(content).digest()
