"""`bundle --triton`: the repository that it writes, and Triton itself with the backend."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvm import relax

import targets
import tensorwright
from compiler.artifact import Artifact, write_artifact
from compiler.cli import main
from compiler.errors import OptionError
from compiler.serving.triton import TritonOptions, write_triton_repository
from compiler.serving.triton.repository import configuration_text
from tests.compiler.device.test_c_api import embedding
from tests.compiler.runtime.building import build_artifact
from tests.compiler.serving.triton.client import __file__ as client
from tests.compiler.serving.triton.server import INSTALL, installation, triton_server


def artifact_of(body: Any, rows: Any = "n", dtype: str = "float32") -> Artifact:
    return build_artifact([("x", (rows, 3), dtype)], [("y", (rows, 3), dtype)], body)


def written(artifact: Artifact, folder: Path, **options: Any) -> Any:
    file = folder / "small.twm"
    write_artifact(artifact, file)
    return write_triton_repository(
        artifact, file, targets.get("host", cores=1), folder / "serve", TritonOptions(**options)
    )


def test_a_configuration_says_what_the_manifest_says() -> None:
    artifact = build_artifact(
        [('a "b"', ("n",), "int64"), ("x", ("n", "m", 4), "int8")],
        [("y", ("n", 4), "float32")],
        lambda a, x: [relax.op.astype(relax.op.max(x, axis=[1]), "float32")],
    )
    assert configuration_text("net", artifact.manifest, 8, 3) == "\n".join(
        [
            'name: "net"',
            'backend: "tensorwright"',
            "max_batch_size: 8",
            "input [",
            '  { name: "a \\042b\\042" data_type: TYPE_INT64 dims: [ 1 ] reshape: { shape: [ ] } },',
            '  { name: "x" data_type: TYPE_INT8 dims: [ -1, 4 ] }',
            "]",
            "output [",
            '  { name: "y" data_type: TYPE_FP32 dims: [ 4 ] }',
            "]",
            "instance_group [ { count: 3 kind: KIND_CPU } ]",
            "dynamic_batching { }",
            "",
        ]
    )
    alone = configuration_text("net", artifact.manifest, 0, 1)
    assert "dims: [ -1, -1, 4 ]" in alone
    assert "dynamic_batching" not in alone


def test_rows_are_put_together_where_they_are_independent(tmp_path: Path) -> None:
    found = written(artifact_of(lambda x: [relax.op.exp(x)]), tmp_path, instances=2)
    assert (found.name, found.version, found.max_batch_size, found.instances) == ("small", 1, 32, 2)
    mixed = artifact_of(lambda x: [relax.op.subtract(x, relax.op.mean(x, axis=[0], keepdims=True))])
    again = written(mixed, tmp_path)
    assert (again.version, again.max_batch_size) == (2, 0)
    assert written(artifact_of(lambda x: [relax.op.exp(x)], rows=2), tmp_path).max_batch_size == 0
    assert sorted(each.name for each in (tmp_path / "serve" / "models" / "small").iterdir()) == [
        "1",
        "2",
        "3",
        "config.pbtxt",
    ]


def test_what_triton_cannot_serve_is_refused(tmp_path: Path) -> None:
    fixed = artifact_of(lambda x: [relax.op.exp(x)], rows=2)
    for options, message in (
        ({"name": "a/b"}, "is not a valid Triton model name"),
        ({"max_batch_size": 4}, "is not one symbolic one"),
        ({"max_batch_size": -1}, "max_batch_size of -1"),
        ({"instances": 0}, "at least one run"),
    ):
        with pytest.raises(OptionError, match=message):
            written(fixed, tmp_path, **options)
    small = build_artifact([("x", (2,), "float8_e4m3fn")], [("y", (2,), "float8_e4m3fn")], lambda x: [x])
    with pytest.raises(OptionError, match="Triton has no element type float8_e4m3fn"):
        written(small, tmp_path)
    assert not (tmp_path / "serve").exists()


def test_clients_of_triton_get_what_the_module_gives(tmp_path: Path) -> None:
    installed = installation()
    if installed is None:
        pytest.skip(f"Triton is not installed here: {INSTALL}")
    module = tensorwright.compile(embedding(), threads=1, progress=None)
    module.export(tmp_path / "ids.twm")
    serve = tmp_path / "serve"
    assert (
        main(["bundle", str(tmp_path / "ids.twm"), "--triton", str(serve), "--name", "table", "--instances", "2"]) == 0
    )
    assert "max_batch_size: 32" in (serve / "models" / "table" / "config.pbtxt").read_text()
    backend = serve / "backends" / "tensorwright"
    subprocess.run(["make", "-C", backend, f"TRITON_HEADERS={installed.headers}"], check=True, capture_output=True)
    with triton_server(installed, serve / "models", serve / "backends", ["table"]) as (http, grpc, _, _):
        done = subprocess.run(
            [installed.python, client, "127.0.0.1", str(http), str(grpc), "table"], capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    table = module.run({"ids": np.arange(50)})["y"]
    message = "input 'ids' holds the index 999999, outside of [-50, 50)"
    for protocol in ("http", "grpc"):
        np.testing.assert_allclose(answers[protocol]["right"], table[[3, 0, 7]], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(answers[protocol]["again"], table[[1]], rtol=1e-5, atol=1e-6)
        assert message in answers[protocol]["index"]
        assert "unexpected shape for input 'ids'" in answers[protocol]["shape"]
    for number, each in enumerate(answers["many"]):
        if number % 16 == 9:
            assert message in each
        else:
            np.testing.assert_allclose(each, table[[number % 50]], rtol=1e-5, atol=1e-6)
