"""Equal calls give equal modules, independent of the machine's load and of string hashing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from compiler.artifact import Artifact, read_artifact

_CALLS = """
import sys
import compiler
from tests.compiler.compression.quantization.networks import chain_net, residual_net, samples
net, data = residual_net(), samples((2, 8, 6, 6), 4)
made = {
    "compile": lambda: net,
    "quantize": lambda: compiler.quantize(net, data),
    "factorize": lambda: compiler.factorize(chain_net(2, 256), energy=0.3),
    "compress": lambda: compiler.compress(net, "prune -> quantize", calibration=data, max_drop=0.9),
}
folder, *names = sys.argv[1:]
for name in names:
    compiler.compile(made[name]()).export(f"{folder}/{name}.twm")
"""


@pytest.mark.parametrize("names", [("quantize",), ("compile", "factorize", "compress")], ids="-".join)
def test_equal_calls_give_equal_modules(names: tuple[str, ...], tmp_path: Path) -> None:
    """Two concurrent processes with unequal shares of the processors make the same calls."""
    folders = [tmp_path / f"hash-seed-{seed}" for seed in (1, 2)]
    running = []
    for seed, (niceness, folder) in enumerate(zip((0, 19), folders, strict=True), start=1):
        folder.mkdir()
        command = ["nice", "-n", str(niceness), sys.executable, "-c", _CALLS, str(folder), *names]
        running.append(subprocess.Popen(command, env={**os.environ, "PYTHONHASHSEED": str(seed)}))
    assert [process.wait() for process in running] == [0, 0]
    for name in names:
        _check_equal(*(read_artifact((folder / f"{name}.twm").read_bytes()) for folder in folders))


def _check_equal(one: Artifact, other: Artifact) -> None:
    assert bytes(one.library) == bytes(other.library)
    assert list(one.parameters) == list(other.parameters)
    assert all(array.tobytes() == other.parameters[key].tobytes() for key, array in one.parameters.items())
    manifests = [_timeless(json.loads(msgspec.json.encode(each.manifest))) for each in (one, other)]
    assert manifests[0] == manifests[1]


def _timeless(entry: Any) -> Any:
    """A manifest without the times of passes."""
    if isinstance(entry, dict):
        return {key: _timeless(value) for key, value in entry.items() if key != "seconds"}
    return [_timeless(each) for each in entry] if isinstance(entry, list) else entry
