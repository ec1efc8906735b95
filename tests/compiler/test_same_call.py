"""The same call gives the same module, whatever else the machine does and however strings are hashed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from compiler.artifact import read_artifact

_CALLS = """
import sys
import compiler
from tests.compiler.compression.quantization.networks import chain_net, residual_net, samples
net, data = residual_net(), samples((2, 8, 6, 6), 4)
made = {
    "compile": net,
    "quantize": compiler.quantize(net, data),
    "factorize": compiler.factorize(chain_net(2, 256), energy=0.3),
    "compress": compiler.compress(net, "prune -> quantize", calibration=data, max_drop=0.9),
}
for name, each in made.items():
    compiler.compile(each).export(f"{sys.argv[1]}/{name}.twm")
"""
_NAMES = ("compile", "quantize", "factorize", "compress")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """What two processes made of the same calls, beside each other and with unequal shares of the processors."""
    made = [tmp_path_factory.mktemp(f"hash-seed-{seed}") for seed in (1, 2)]
    running = [
        subprocess.Popen(
            ["nice", "-n", str(niceness), sys.executable, "-c", _CALLS, folder],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
        )
        for seed, (niceness, folder) in enumerate(zip((0, 19), made, strict=True), start=1)
    ]
    assert [process.wait() for process in running] == [0, 0]
    return made


@pytest.mark.parametrize("name", _NAMES)
def test_equal_calls_give_equal_modules(folders: list[Path], name: str) -> None:
    one, other = (read_artifact((folder / f"{name}.twm").read_bytes()) for folder in folders)
    assert bytes(one.library) == bytes(other.library)
    assert list(one.parameters) == list(other.parameters)
    assert all(array.tobytes() == other.parameters[key].tobytes() for key, array in one.parameters.items())
    manifests = [_timeless(json.loads(msgspec.json.encode(each.manifest))) for each in (one, other)]
    assert manifests[0] == manifests[1]


def _timeless(entry: Any) -> Any:
    """A manifest without how long passes took."""
    if isinstance(entry, dict):
        return {key: _timeless(value) for key, value in entry.items() if key != "seconds"}
    return [_timeless(each) for each in entry] if isinstance(entry, list) else entry
