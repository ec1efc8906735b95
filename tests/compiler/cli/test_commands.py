from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compiler
from tests.compiler.building import perceptron, write
from tests.compiler.cli.running import Run


def test_compile_says_what_came_of_it(tensorwright: Run, model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.twm"
    result = tensorwright("compile", model_path, "-o", path)
    assert result.code == 0, result.err
    assert "6 operators: 6 supported" in result.err
    for step in ("import", "canonicalize", "schedule", "build"):
        assert f"] {step}" in result.err
    assert f"wrote {path}" in result.out
    assert "12.3 k in 3 tensors" in result.out
    assert compiler.load(path).inputs[0].shape == ("batch", 64)


def test_compile_as_json(tensorwright: Run, model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.twm"
    summary = tensorwright("compile", model_path, "-o", path, "--shape", "x=2,64", "--json").json
    assert summary["path"] == str(path)
    assert summary["file_bytes"] == path.stat().st_size
    assert summary["parameter_values"] == 3 * 64 * 64
    assert summary["coverage"]["nodes"] == {"supported": 6, "rewritten": 0, "refused": 0}
    assert sum(summary["kernels_by_rule"].values()) >= 1
    assert {"import", "canonicalize", "schedule", "build"} <= set(summary["seconds"])
    assert compiler.load(path).inputs[0].shape == (2, 64)


def test_compile_writes_next_to_nothing_by_default(
    tensorwright: Run, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert tensorwright("compile", model_path).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["perceptron.twm"]


def test_constants_dumps_and_passes(tensorwright: Run, sum_path: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import pathlib\ndef note(mod):\n    '''Note that it ran.'''\n"
        f"    pathlib.Path({str(tmp_path / 'ran')!r}).touch()\n    return mod\n"
    )
    path = tmp_path / "out.twm"
    arguments = [
        "--constant",
        "a=2",
        "--dump",
        tmp_path / "dump",
        "--pass",
        f"after:fold-constants={tmp_path}/mine.py:note",
    ]
    result = tensorwright("compile", sum_path, "-o", path, *arguments)
    assert result.code == 0, result.err
    assert (tmp_path / "ran").exists()
    assert list((tmp_path / "dump").iterdir())
    module = compiler.load(path)
    assert [spec.name for spec in module.inputs] == ["x", "b"]
    outputs = module.run({"x": np.array([1, 2, 3], np.float32), "b": np.array(0.5, np.float32)})
    np.testing.assert_array_equal(outputs["y"], [2.5, 4.5, 6.5])


def test_signed_modules(tensorwright: Run, sum_path: Path, tmp_path: Path) -> None:
    secret, path = tmp_path / "key.pem", tmp_path / "out.twm"
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("secret\n")
    made = tensorwright("key", "new", secret, "--passphrase-file", passphrase, "--json").json
    key = f"{secret}.pub"
    assert tensorwright("key", "show", key, "--json").json[0]["key"] == made["key"]
    assert tensorwright("compile", sum_path, "-o", path).code == 0
    refused = tensorwright("run", path, "--trusted-key", key)
    assert refused.code == 2
    assert "is not signed" in refused.err
    assert tensorwright("verify", path, "--trusted-key", key).code == 2
    assert tensorwright("sign", path, "--key", secret, "--passphrase-file", passphrase).code == 0
    assert tensorwright("verify", path, "--trusted-key", key, "--json").json["keys"] == [made["key"]]
    assert tensorwright("run", path, "--trusted-key", key).code == 0
    assert tensorwright("bench", path, "--runs", 1, "--trusted-key", key).code == 0
    arguments = ["compile", sum_path, "-o", path, "--sign", secret, "--passphrase-file", passphrase]
    assert tensorwright(*arguments).code == 0
    assert compiler.load(path, trusted_keys=[key]).outputs[0].name == "y"


def test_run_prints_and_saves_outputs(tensorwright: Run, module_path: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((2, 64)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    saved = tmp_path / "out.npz"
    result = tensorwright("run", module_path, "--input", f"x={tmp_path}/x.npy", "--output", saved, "--verify")
    assert result.code == 0, result.err
    assert "verified" in result.out
    expected = compiler.load(module_path).run({"x": x})["y"]
    with np.load(saved) as archive:
        np.testing.assert_array_equal(archive["y"], expected)
    described = tensorwright("run", module_path, "--input", f"x={tmp_path}/x.npy", "--json").json["outputs"][0]
    assert described["shape"] == [2, 64]
    assert described["max"] == pytest.approx(float(expected.max()))
    assert described["nan"] == 0


def test_run_counts_nans(tensorwright: Run, module_path: Path, tmp_path: Path) -> None:
    x = np.zeros((1, 64), np.float32)
    x[0, 0] = np.nan
    np.save(tmp_path / "x.npy", x)
    described = tensorwright("run", module_path, "--input", f"x={tmp_path}/x.npy", "--json").json
    assert described["inputs"][0]["nan"] == 1


def test_run_makes_up_what_is_not_given(tensorwright: Run, module_path: Path) -> None:
    result = tensorwright("run", module_path, "--shape", "batch=5", "--json")
    assert "random values for x" in result.err
    assert result.json["outputs"][0]["shape"] == [5, 64]


def test_inspect_a_model(tensorwright: Run, model_path: Path) -> None:
    found = tensorwright("inspect", model_path, "--shape", "x=4,64", "--json").json
    assert found["inputs"] == [{"name": "x", "dtype": "float32", "shape": [4, 64]}]
    assert found["parameter_values"] == 3 * 64 * 64
    assert {item["operator"]: item["count"] for item in found["operators"]} == {"MatMul": 3, "Relu": 3}
    assert found["details"]["opsets"]["ai.onnx"] >= 13
    assert found["details"]["estimated_for"]["peak"] > 0
    exact = 3 * 2 * 4 * 64 * 64 + 3 * 4 * 64
    assert sum(kernel["operations"] for kernel in found["kernels"]) == exact
    assert sum(kernel["share"] for kernel in found["kernels"]) == pytest.approx(1)
    text = tensorwright("inspect", model_path).out
    assert "where time will go" in text
    assert "batch = 1" in text


def test_inspect_a_model_that_can_not_be_compiled(tensorwright: Run, tmp_path: Path) -> None:
    model = perceptron()
    model.graph.node[0].op_type = "NoSuchOperator"
    model.graph.node[0].domain = "example.com"
    model.opset_import.add(domain="example.com", version=1)
    path = write(model, tmp_path / "odd.onnx")
    found = tensorwright("inspect", path, "--json")
    assert found.code == 0
    assert [item["support"] for item in found.json["operators"]].count("refused") == 1
    assert "NoSuchOperator" in found.json["problem"]
    assert tensorwright("compile", path, "-o", tmp_path / "odd.twm").code == 2


def test_inspect_a_module(tensorwright: Run, module_path: Path) -> None:
    found = tensorwright("inspect", module_path, "--json").json
    assert found["kind"] == "module"
    assert found["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["batch", 64]}]
    assert found["parameter_bytes"] == 3 * 64 * 64 * 4
    assert found["kernels"]
    assert found["details"]["target"]["name"] == "host"
    assert found["details"]["memory_plan"]["peak_bytes"] >= 0
    assert found["details"]["signatures"] == []
    assert all(kernel["tasks"] is not None or kernel["balance"] is None for kernel in found["kernels"])
    text = tensorwright("inspect", module_path).out
    assert all(word in text for word in ("parameters", "scheduled for", "tasks", "balance"))


def test_bench_a_module(tensorwright: Run, module_path: Path) -> None:
    result = tensorwright("bench", module_path, "--runs", 5, "--shape", "batch=3", "--json").json
    assert result["latency"]["runs"] == 5
    assert result["inputs"] == {"x": {"dtype": "float32", "shape": [3, 64]}}
    assert result["threads"] == 1


def test_profile_a_model(tensorwright: Run, model_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "profile"
    result = tensorwright(
        "profile", model_path, "--shape", "x=2,64", "--runs", 3, "--threads", 1, "-o", folder, "--json"
    )
    assert result.code == 0, result.err
    assert result.json["latency"]["runs"] == 3
    assert set(result.json["files"]) == {"profile", "trace", "page"}
    assert json.loads((folder / "trace.json").read_text())["traceEvents"]
    assert "<svg" not in result.out


def test_bench_and_profile_as_text(tensorwright: Run, module_path: Path) -> None:
    bench = tensorwright("bench", module_path, "--runs", 3)
    for word in ("latency p50", "p90", "p99", "throughput", "load", "first run", "memory peak"):
        assert word in bench.out
    profile = tensorwright("profile", module_path, "--runs", 2, "--all")
    for word in ("kernel", "share", "GFLOP/s", "untracked", "by kind"):
        assert word in profile.out


def test_targets(tensorwright: Run) -> None:
    listed: list[dict[str, Any]] = tensorwright("targets", "--json").json
    assert listed[0]["name"] == "host"
    assert listed[0]["missing"] == []
    assert {"x86-64-v2", "x86-64-v3", "x86-64-v4"} <= {each["name"] for each in listed}
    text = tensorwright("targets").out
    assert all(each["name"] in text for each in listed)
    assert "conformance" not in text.splitlines()[0]
    assert "conformance" in tensorwright("targets", "--details").out.splitlines()[0]
    assert {each["name"]: each["device"] for each in listed}["t4"] == "sm_75, 40 multiprocessors"
    assert listed[0]["device"] == ""
    assert all(bool(each["toolchain"]) != bool(each["install"]) for each in listed)


def test_passes(tensorwright: Run) -> None:
    listed: list[dict[str, Any]] = tensorwright("passes", "--json").json
    positions = [each["position"] for each in listed if each["position"] is not None]
    assert positions == list(range(1, len(positions) + 1))
    names = [each["name"] for each in listed]
    assert names.index("fold-constants") < names.index("apply-schedules") < names.index("plan-memory")
    assert all(each["summary"] for each in listed)
    text = tensorwright("passes").out
    assert all(name in text for name in names)
