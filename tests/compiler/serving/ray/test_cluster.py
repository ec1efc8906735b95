"""A Ray cluster of two nodes; skipped where Ray is not installed (extra `ray`)."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.serving.app.create import AppOptions
from compiler.serving.ray import RayOptions, deployment, required_resources
from targets import cpuinfo
from tests.compiler.runtime.building import dense_artifact
from tests.compiler.serving.ray.test_replica import model, requiring
from tests.compiler.serving.server import dense_file
from tests.compiler.tuning.rpc import free_port

ray = pytest.importorskip("ray", reason="Ray is not installed: the extra ray")
serve = pytest.importorskip("ray.serve")
cluster_utils = pytest.importorskip("ray.cluster_utils")

pytestmark = pytest.mark.slow
FEATURE = min(cpuinfo.features())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    """The URL of a cluster's proxy and its second node, which alone declares the features of `modules`."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    needed = required_resources([model(requiring(tmp_path_factory.mktemp("cluster"), FEATURE))])
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        node = made.add_node(num_cpus=2, resources=dict.fromkeys(needed, 1.0))
        ray.init(address=made.address, log_to_driver=False)
        port = free_port()
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        yield f"http://127.0.0.1:{port}", node
        serve.shutdown()
    finally:
        ray.shutdown()
        made.shutdown()


def ask(url: str, content: Any) -> tuple[int, Any]:
    request = urllib.request.Request(url, json.dumps(content).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def inputs(x: Any) -> Any:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.tolist()}]}


def infer(url: str, name: str, x: Any) -> Any:
    status, answer = ask(f"{url}/v2/models/{name}/infer", inputs(x))
    assert status == 200, answer
    (output,) = answer["outputs"]
    return np.array(output["data"]).reshape(output["shape"])


def expected(x: Any) -> Any:
    weights = dense_artifact().parameters
    return x.astype(np.float64) @ weights["weight"] + weights["bias"]


def test_a_request_through_ray_gives_the_numbers_of_the_module(cluster: tuple[str, Any], tmp_path: Path) -> None:
    url, node = cluster
    how = RayOptions(placement=True, min_replicas=1, max_replicas=2)
    serve.run(deployment([model(requiring(tmp_path, FEATURE))], AppOptions(), how), name="placed")
    x = np.random.default_rng(0).standard_normal((5, 16), np.float32)
    np.testing.assert_allclose(infer(url, "dense", x), expected(x), rtol=1e-5, atol=1e-5)
    # The replica runs where the features are declared: it holds a share of them there.
    left = ray._private.state.available_resources_per_node()[node.node_id]
    assert left[f"cpu-{cpuinfo.normalized(FEATURE)}"] < 1
    assert left["CPU"] == 1
    status, answer = ask(f"{url}/v2/repository/models/dense/load", {})
    assert status == 400
    assert "Ray deployment" in answer["error"]
    status, answer = ask(f"{url}/v2/models/dense/infer", {"inputs": []})
    assert status == 400
    serve.delete("placed")


def test_models_are_multiplexed(cluster: tuple[str, Any], tmp_path: Path) -> None:
    url, _ = cluster
    models = [model(dense_file(tmp_path, name), name) for name in ("first", "second")]
    serve.run(deployment(models, None, RayOptions(multiplexed=1)), name="multiplexed")
    x = np.random.default_rng(1).standard_normal((2, 16), np.float32)
    for name in ("first", "second", "first"):
        np.testing.assert_allclose(infer(url, name, x), expected(x), rtol=1e-5, atol=1e-5)
        with urllib.request.urlopen(f"{url}/v2/models/{name}/ready", timeout=60) as answer:
            assert answer.status == 200
    status, _ = ask(f"{url}/v2/models/third/infer", inputs(x))
    assert status == 404
    serve.delete("multiplexed")
