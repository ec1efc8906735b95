"""Policies configured in a server's YAML file, requested over HTTP; and the files that serving them loads."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from compiler.artifact.variants import VariantEntry, VariantIndex, write_index
from compiler.errors import TensorwrightError
from compiler.runtime import Module, load
from compiler.runtime.identity import module_identity
from compiler.serving.configuration import model_options, read_configuration
from compiler.serving.policies.cascade_calibration import CascadeCalibration
from compiler.serving.repository import Repository
from tests.compiler.runtime.building import build_artifact
from tests.compiler.serving.server import Answer, Running, serving

import schedules.ir.load_tvm  # noqa: F401  isort: skip  (loads TVM without torch)
from tvm import relax  # isort: skip


def scaled(scale: float, path: Path) -> str:
    """y = scale * x for rows of two, with an example; returns its identity."""
    artifact = build_artifact(
        [("x", ("n", 2), "float32")],
        [("y", ("n", 2), "float32")],
        lambda x: [relax.op.multiply(x, relax.const(np.float32(scale)))],
    )
    module = Module(artifact, threads=1)
    x = np.ones((1, 2), np.float32)
    module.with_reference({"x": x}, module.run({"x": x})).export(path)
    return module_identity(load(path))


def write_files(folder: Path) -> Path:
    """Modules, a folder of variants, a calibration, and the YAML file that names them."""
    identities = {name: scaled(scale, folder / f"{name}.twm") for name, scale in {"small": 1.1, "large": 1.0}.items()}
    variants = folder / "variants" / "3"
    variants.mkdir(parents=True)
    entries = []
    for name, scale, accuracy, cost in (("float32", 1.0, 1.0, 4.0), ("int8", 1.5, 0.97, 1.0)):
        identity = scaled(scale, variants / f"{name}.twm")
        described = {"file": f"{name}.twm", "identity": identity, "score": accuracy, "accuracy": accuracy}
        entries.append(VariantEntry(name=name, cost_ms=cost, bytes=0, **described))  # type: ignore[arg-type]
    write_index(variants, VariantIndex(model_name="m", reference="float32", measure="", variants=tuple(entries)))
    numbers: dict[str, Any] = dict.fromkeys(CascadeCalibration.__annotations__, 1.0)
    numbers |= {"score": "margin", "output": "y", "rows": 50, "threshold": 0.5, "accuracy": 0.99}
    numbers |= {f"{name}_identity": identity for name, identity in identities.items()}
    CascadeCalibration(**numbers).save(folder / "cascade.json")
    drift = {"limit": 0.1, "share": 1, "measure": "absolute", "least": 2}
    length = {"tensor": "x", "up_to": {"small": 1}}
    cascade = {"small": "small.twm", "calibration": "cascade.json"}
    caches: dict[str, Any] = {"exact_cache": {"max_bytes": 10000}, "embedding_cache": {}}
    models = [
        {"name": "variants", "path": "variants", "drift": drift},
        {"name": "cascade", "path": "large.twm", "cascade": cascade, **caches},
        {"name": "routed", "path": "large.twm", "router": {"routes": {"small": "small.twm"}, "length": length}},
    ]
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump({"models": models}))
    return path


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("policies"))


@pytest.fixture(scope="module")
def server(configuration: Path) -> Iterator[Running]:
    with serving(read_configuration(configuration)) as running:
        yield running


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generation": {"max_sequences": 2}}, "is not a language model"),
        ({"variants": {"degrade_at_ms": 1000}}, "is one module"),
        ({"text": {"tokenizer": "none.json"}}, "none.json cannot be read"),
        ({"exact_cache": {"max_bytes": 0}}, "max_bytes must be above 0, not 0"),
        (
            {"semantic_cache": {"embedder": "small.twm", "calibration": "none.json", "tokenizer": "none.json"}},
            "reads input 'input_ids', which model 'large' does not have",
        ),
        ({"cascade": {"small": "large.twm", "calibration": "cascade.json"}}, "another small module"),
        ({"cascade": {"small": "small.twm", "calibration": "cascade.json", "feeds": {"z": "y"}}}, "does not take"),
        ({"router": {"length": {"tensor": "z", "up_to": {"default": 1}}}}, "no input 'z'"),
        ({"router": {"judge": {"module": "small.twm", "output": "z", "up_to": {}}}}, "judge has no output 'z'"),
    ],
)
def test_options_that_no_request_could_be_answered_with_are_refused_at_start(
    configuration: Path, options: dict[str, Any], message: str
) -> None:
    model = model_options({"path": "large.twm", **options}, "the model", configuration.parent)
    with pytest.raises(TensorwrightError, match=message):
        asyncio.run(Repository([model]).start())


def ask(server: Running, model: str, rows: list[list[float]], **parameters: float) -> Answer:
    tensor = {"name": "x", "datatype": "FP32", "shape": [len(rows), 2], "data": rows}
    return server.ask("POST", f"/v2/models/{model}/infer", {"inputs": [tensor], "parameters": parameters})


def values(answer: Answer) -> list[float]:
    assert answer.status == 200, answer.body
    return [round(value, 4) for value in answer.json["outputs"][0]["data"]]


def test_the_level_of_a_request_chooses_a_variant_and_drift_is_counted(server: Running) -> None:
    best = ask(server, "variants", [[1, 2]])
    assert values(best) == [1, 2]
    assert best.json["parameters"]["served_by"] == "variants/3/float32"
    for _ in range(3):
        cheap = ask(server, "variants", [[1, 2]], max_cost=2)
        assert values(cheap) == [1.5, 3]
        assert (cheap.json["parameters"]["variant"], cheap.json["parameters"]["accuracy"]) == ("int8", 0.97)
    none = ask(server, "variants", [[1, 2]], max_cost=2, min_accuracy=0.99)
    assert none.status == 400
    assert b"no variant of model" in none.body
    text = server.ask("GET", "/metrics").body.decode()
    assert 'tensorwright_variant_rows_total{model="variants",variant="int8"} 3.0' in text
    assert 'tensorwright_drift{model="variants"}' in text


def test_rows_go_through_caches_to_the_cascade_and_the_router(server: Running) -> None:
    rows = [[1.0, 3.0], [2.0, 2.1]]  # margins of the small model: 2.2 and 0.11
    first, again = (ask(server, "cascade", rows) for _ in range(2))
    assert values(first) == [1.1, 3.3, 2.0, 2.1]
    assert values(again) == [1.1, 3.3, 2.0, 2.1]
    assert first.json["parameters"]["served_by"] == "cascade/1/small+cascade/1/default"
    assert first.json["parameters"]["large_rows"] == 1
    assert "cached" not in first.json["parameters"]
    assert again.json["parameters"]["cached"] == "exact"
    part = ask(server, "cascade", [rows[1], [1.0, 9.0]])
    assert part.json["parameters"]["cached_rows"] == 1
    text = server.ask("GET", "/metrics").body.decode()
    assert 'tensorwright_cache_rows_total{cache="embedding",model="cascade",result="hit"} 1.0' in text
    routed = ask(server, "routed", [[1, 0], [1, 2]])
    assert values(routed) == [1.1, 0, 1, 2]
    assert routed.json["parameters"]["route"] == "small+default"


def test_serving_policies_loads_neither_the_compiler_nor_torch(configuration: Path) -> None:
    program = f"""
import asyncio, sys
import numpy as np
from pathlib import Path
from compiler.serving.configuration import read_configuration
from compiler.serving.repository import Repository, running
from compiler.serving.request import Request

async def main():
    async with running(Repository(read_configuration(Path({str(configuration)!r})))) as repository:
        for name in repository.names:
            await repository.service(name).infer(Request({{"x": np.ones((2, 2), np.float32)}}, traced=True))

asyncio.run(main())
heavy = ("torch", "tvm", "onnx", "compiler.passes", "compiler.driver", "compiler.codegen", "compiler.frontends")
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
