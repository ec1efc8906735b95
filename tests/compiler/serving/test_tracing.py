from __future__ import annotations

from pathlib import Path

import pytest

from compiler.errors import OptionError
from compiler.serving.app.create import AppOptions
from compiler.serving.configuration import model_options
from compiler.serving.tracing import Tracer
from tests.compiler.serving.server import dense_file, serving

TENSOR = {"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [0.5] * 16}
PARENT = "4bf92f3577b34da6a3ce929d0e0e4736"


def test_a_request_has_spans_that_hold_its_kernels(tmp_path: Path) -> None:
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter").InMemorySpanExporter()
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(memory))
    models = [model_options({"path": str(dense_file(tmp_path))}, "a model")]
    with serving(models, AppOptions(traces=True, tracer=Tracer(provider=provider))) as server:
        body = {"inputs": [TENSOR], "parameters": {"trace": True}}
        headers = {"traceparent": f"00-{PARENT}-00f067aa0ba902b7-01"}
        answer = server.ask("POST", "/v2/models/dense/infer", body, headers)
        assert "traceEvents" not in answer.json["parameters"]
        assert "matmul" in answer.json["parameters"]["trace"]
    spans = {each.name: each for each in memory.get_finished_spans()}
    whole, run = spans["inference"], spans["run"]
    assert format(whole.context.trace_id, "032x") == PARENT
    assert run.parent.span_id == whole.context.span_id
    kernels = [each for each in spans.values() if each.parent and each.parent.span_id == run.context.span_id]
    assert any("matmul" in each.attributes["kernel"] for each in kernels)
    assert whole.attributes["tensorwright.served_by"] == "dense/1/default"


def test_profiles_have_to_be_allowed(tmp_path: Path) -> None:
    with serving([model_options({"path": str(dense_file(tmp_path))}, "a model")]) as server:
        answer = server.ask("POST", "/v2/models/dense/infer", {"inputs": [TENSOR], "parameters": {"trace": True}})
        assert answer.status == 400
        assert "--traces" in answer.json["error"]


@pytest.mark.parametrize("endpoint", ["nonsense", "localhost:4318", "http://"])
def test_a_collector_is_named_by_a_url(endpoint: str) -> None:
    with pytest.raises(OptionError, match="is not the URL of a collector"):
        Tracer(endpoint)
