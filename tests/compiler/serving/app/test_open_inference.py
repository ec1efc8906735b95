from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.errors import InputError
from compiler.runtime import load
from compiler.serving.app.tensors import read_inputs
from compiler.serving.configuration import model_options
from compiler.serving.limits import DEFAULT_LIMITS
from tests.compiler.serving.server import Running, dense_file, serving

X = np.random.default_rng(5).standard_normal((3, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path = dense_file(tmp_path_factory.mktemp("models"))
    with serving([model_options({"path": str(path)}, "a model")]) as running:
        yield running


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(dense_file(tmp_path_factory.mktemp("expected"))).run({"x": X})["y"]


def test_infers_with_json(server: Running, expected: Any) -> None:
    answer = server.infer("dense", "x", X.tolist(), X.shape)
    assert answer.status == 200, answer.body
    (output,) = answer.json["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("y", "FP32", [3, 8])
    np.testing.assert_allclose(np.array(output["data"]).reshape(3, 8), expected, rtol=1e-5, atol=1e-6)
    assert answer.json["parameters"]["served_by"] == "dense/1/default"


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_infers(server: Running, expected: Any, binary: bool, compression: str | None) -> None:
    client = pytest.importorskip("tritonclient.http")
    with client.InferenceServerClient(f"127.0.0.1:{server.port}") as triton:
        given = client.InferInput("x", X.shape, "FP32")
        given.set_data_from_numpy(X, binary_data=binary)
        wanted = client.InferRequestedOutput("y", binary_data=binary)
        result = triton.infer(
            "dense", [given], outputs=[wanted], request_id="seven", request_compression_algorithm=compression
        )
        np.testing.assert_allclose(result.as_numpy("y"), expected, rtol=1e-5, atol=1e-6)
        assert result.get_response()["id"] == "seven"


def test_tritonclient_asks_about_the_server_and_its_models(server: Running) -> None:
    client = pytest.importorskip("tritonclient.http")
    with client.InferenceServerClient(f"127.0.0.1:{server.port}") as triton:
        assert triton.is_server_live()
        assert triton.is_server_ready()
        assert triton.is_model_ready("dense")
        assert not triton.is_model_ready("other")
        assert triton.get_server_metadata()["name"] == "tensorwright"
        described = triton.get_model_metadata("dense")
        assert described["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 16]}]
        assert triton.get_model_config("dense")["input"][0]["dims"] == [16]
        triton.unload_model("dense")
        assert not triton.is_model_ready("dense")
        with pytest.raises(client.InferenceServerException, match="it was unloaded"):
            triton.get_model_metadata("dense")
        triton.load_model("dense")
        assert triton.get_model_repository_index() == [
            {"name": "dense", "version": "1", "state": "READY", "reason": ""}
        ]


TENSOR = {"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [0.5] * 16}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "must be an object"),
        ({}, "'inputs' must be a list"),
        ({"inputs": [1]}, "a tensor must be an object"),
        ({"inputs": [{**TENSOR, "name": "z"}]}, "no input is named 'z'"),
        ({"inputs": [{**TENSOR, "name": 7}]}, "name must be a string"),
        ({"inputs": [TENSOR, TENSOR]}, "given twice"),
        ({"inputs": [{**TENSOR, "datatype": "FP31"}]}, "datatype 'FP31'"),
        ({"inputs": [{**TENSOR, "datatype": "FP64"}]}, "element type float64"),
        ({"inputs": [{**TENSOR, "shape": [1, 15]}]}, "is given 16 values"),
        ({"inputs": [{**TENSOR, "shape": [2, 8]}]}, r"shape [2, 8]"),
        ({"inputs": [{**TENSOR, "shape": [1, -16]}]}, "expected a list of sizes"),
        ({"inputs": [{**TENSOR, "shape": [0, 16], "data": []}]}, "no rows"),
        ({"inputs": [{**TENSOR, "data": ["a"] * 16}]}, "is not of datatype FP32"),
        ({"inputs": [{**TENSOR, "data": [[1.0], [1.0, 2.0]]}]}, "ragged"),
        ({"inputs": [{**TENSOR, "data": 1.0}]}, "no list"),
        ({"inputs": [{**TENSOR, "parameters": {"binary_data_size": 64}}]}, "not in the request's body"),
        ({"inputs": [TENSOR], "outputs": [{"name": "q"}]}, "no output 'q'"),
        ({"inputs": [TENSOR], "parameters": {"timeout": -1}}, "timeout must be a number above 0"),
        ({"inputs": [TENSOR], "parameters": {"min_accuracy": 2}}, "min_accuracy"),
        ({"inputs": [TENSOR], "id": 3}, "'id' must be a string"),
    ],
)
def test_what_is_wrong_with_a_request_is_said(server: Running, body: Any, message: str) -> None:
    answer = server.ask("POST", "/v2/models/dense/infer", body)
    assert answer.status == 400
    assert message in answer.json["error"]


@pytest.mark.parametrize(
    ("datatype", "dtype"),
    [("FP16", np.float16), ("FP32", np.float32), ("FP64", np.float64), ("INT8", np.int8), ("UINT64", np.uint64)],
)
def test_lists_are_read_as_numpy_reads_them(datatype: str, dtype: type[np.generic]) -> None:
    def read(data: list[Any]) -> np.ndarray:
        listed = [{"name": "x", "datatype": datatype, "shape": [2, 2], "data": data}]
        return read_inputs(listed, memoryview(b""), DEFAULT_LIMITS)["x"]

    lists: list[list[Any]] = [[1, 0, True, 100], [[1, 2], [3, 4]]]
    lists += [] if np.issubdtype(dtype, np.integer) else [[0.1, 7, 1e300, -5e-324], [1, 2.5, 3, 4], [[0.5, 2], [3, 4]]]
    for data in lists:
        with np.errstate(over="ignore"):
            wanted = np.asarray(data).astype(dtype).reshape(2, 2)
        np.testing.assert_array_equal(read(data), wanted, strict=True)
    for data in ([0.5, "1", 2, 3], [1, None, 2, 3], ["1", 2, 3, 4], [1, [2], 3, 4], [1.0, 2.0, 3.0], [True] * 4):
        with pytest.raises(InputError):
            read(data)


@pytest.mark.parametrize("value", [300, -1, 2**70])
def test_values_outside_of_a_type_are_refused(server: Running, value: int) -> None:
    tensor = {**TENSOR, "datatype": "UINT8", "data": [value] * 16}
    answer = server.ask("POST", "/v2/models/dense/infer", {"inputs": [tensor]})
    assert answer.status == 400
    assert "UINT8" in answer.json["error"]


def test_binary_bodies_that_do_not_fit_are_refused(server: Running) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 16], "parameters": {"binary_data_size": 60}}
    head = json.dumps({"inputs": [tensor]}).encode()
    for tail, length in ((b"\0" * 60, len(head)), (b"\0" * 80, len(head)), (b"", 10**9), (b"", "9" * 5000)):
        headers = {"Inference-Header-Content-Length": str(length)}
        assert server.ask("POST", "/v2/models/dense/infer", head + tail, headers).status == 400


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/dense/versions/2", 404),
        ("GET", "/v2/models/dense/versions/1/ready", 200),
        ("GET", "/v2/models/dense/infer", 405),
        ("POST", "/v2/repository/models/other/load", 404),
        ("GET", "/v2/nothing", 404),
        ("GET", "/nothing", 404),
        ("HEAD", "/v2/health/ready", 200),
        ("HEAD", "/metrics", 200),
        ("POST", "/metrics", 405),
        ("OPTIONS", "/v2/models/dense/infer", 405),
    ],
)
def test_statuses(server: Running, method: str, path: str, status: int) -> None:
    assert server.ask(method, path).status == status


def test_a_request_that_cannot_be_unpacked_is_refused(server: Running) -> None:
    packed = gzip.compress(b"{}")
    broken = [b"{}", packed[:-6], packed + packed]
    for content, encoding, status in (*((each, "gzip", 400) for each in broken), (packed, "br", 415)):
        headers = {"Content-Encoding": encoding}
        assert server.ask("POST", "/v2/models/dense/infer", content, headers).status == status


def test_a_deadline_that_cannot_be_met_is_refused(server: Running) -> None:
    server.infer("dense", "x", X.tolist(), X.shape)  # costs are known then
    body = {"inputs": [TENSOR], "parameters": {"latency_ms": 1e-6}}
    answer = server.ask("POST", "/v2/models/dense/infer", body)
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) >= 1


def test_a_page_of_another_site_is_not_answered(server: Running, tmp_path: Path) -> None:
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
        assert server.ask("GET", "/v2", headers=headers).status == 403
    assert server.ask("GET", "/v2", headers={"Origin": f"http://localhost:{server.port}"}).status == 200
