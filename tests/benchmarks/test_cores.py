"""The model of many cores on calls with round numbers, and the parts of a module that is run in pieces."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compiler
from benchmarks.cores.model import predict
from benchmarks.cores.nets import net_of
from compiler.profiling.attribution import kind_of
from schedules.machine import Machine
from tests.compiler.building import perceptron

US = 1e-6
SERIAL_OPERATIONS = 100e-6 * 40e9
"""Operations in 100 microseconds on one core, at some 40 GFLOP/s: a third of what AVX-512 does."""


def call(serial: float = 0.0, *regions: tuple[float, float, int], **more: Any) -> dict[str, Any]:
    return {
        "kernel": "product",
        "kind": "matmul",
        "rule": "matmul",
        "nodes": [],
        "tasks": None,
        "reason": None,
        "serial": serial,
        "regions": [{"longest": longest, "total": total, "busy": busy} for longest, total, busy in regions],
        "weight_bytes": 0,
        "other_bytes": 0,
        **more,
    }


def test_a_run_takes_the_longest_parts_and_what_starts_them() -> None:
    one = [call(800 * US), call(200 * US)]
    many = [call(0, (110 * US, 800 * US, 8)), call(200 * US)]
    found = predict(many, one, Machine(cores=8))
    assert found.one == pytest.approx(1000 * US)
    starting = found.calls[0].starting
    assert 1 * US < starting < 4 * US
    assert found.calls[1].starting == 0
    assert found.bound == pytest.approx(1000 * US / (125 * US + starting))
    assert found.seconds == pytest.approx(310 * US + starting)
    assert [each.is_serial for each in found.calls] == [False, True]
    assert found.serial_share == pytest.approx(200 * US / found.seconds)
    assert found.calls[0].balance == pytest.approx(800 / (8 * 110))


def test_bytes_from_memory_bound_a_call() -> None:
    machine = Machine(cores=8, l3_bytes=1 << 20, memory_rate=10)  # 30 GB/s at 3 GHz
    calls = [call(0, (10 * US, 80 * US, 8), weight_bytes=1_500_000)]
    assert predict(calls, [call(400 * US)], machine).calls[0].moving == pytest.approx(50 * US)
    # One core alone needed less: no described rate is lower than that.
    assert predict(calls, [call(40 * US)], machine).calls[0].moving == pytest.approx(40 * US)
    near = [call(0, (10 * US, 80 * US, 8), weight_bytes=900_000)]
    assert predict(near, [call(400 * US)], machine).calls[0].moving < 10 * US


def test_other_kernels_on_one_core_share_its_time_by_their_work() -> None:
    many = [call(0, (50 * US, 300 * US, 8)), call(0, (20 * US, 100 * US, 8))]
    assert [each.one for each in predict(many, [call(800 * US)], Machine(cores=8)).calls] == pytest.approx(
        [600 * US, 200 * US]
    )


def test_parts_of_a_module_one_after_the_other(tmp_path: Path) -> None:
    module = compiler.compile(perceptron(batch=64, width=256), target="host:8")
    module.export(tmp_path / "module.twm")
    np.savez(tmp_path / "inputs.npz", x=np.ones((64, 256), np.float32))
    modules = [
        {"path": str(tmp_path / "module.twm"), "cores": cores, "evicted": 4096 * (cores > 1)} for cores in (1, 8)
    ]
    plan = {"arrays": str(tmp_path / "inputs.npz"), "sizes": {}, "runs": 2, "modules": modules}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    command = [sys.executable, "-m", "benchmarks.cores.emulate", str(tmp_path / "plan.json")]
    alone, eight = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    products = [each for each in eight if each["kind"] == "matmul"]
    assert [each["kernel"] for each in alone] == [each["kernel"] for each in eight]
    assert sum(each["weight_bytes"] for each in products) == 3 * 256 * 256 * 4
    for each in products:
        assert each["regions"]
        assert each["tasks"]
        for region in each["regions"]:
            assert 1 <= region["busy"] <= 8
            assert 0 < region["longest"] <= region["total"]
    assert all(region["busy"] == 1 for each in alone for region in each["regions"])


@pytest.mark.parametrize("name", ["nothing-like-it", "nothing-like-it@4", "smollm2:chat"])
def test_nets_that_are_not_there(name: str) -> None:
    with pytest.raises(ValueError, match=r"nothing-like-it|smollm2:decode or smollm2:prompt"):
        net_of(name)


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("silero-vad", 5),
        ("mobilenet_v2", 30),
        ("efficientnet_b0", 40),
        ("yolov8n", 30),
        ("densenet121", 60),
        ("convnext_tiny", 6),
        ("resnet50", 20),
        ("vgg19", 8),
    ],
)
def test_no_large_convolution_is_serial_on_32_cores(name: str, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts loops and operations of the finished kernels, not the estimates used to split them."""
    monkeypatch.setattr("compiler.driver.build.build_library", lambda mod, target: b"")  # their code is not run
    net = net_of(name)
    module = compiler.compile(net.source, target="granite-rapids:32", shapes=net.shapes)
    kernels = [each for each in module.manifest.kernels if kind_of(each.kernel) == "convolution"]
    assert len(kernels) >= least
    for each in kernels:
        assert each.tasks is not None
        if "?" in each.tasks or max((int(tasks) for tasks in each.tasks), default=1) > 1:
            assert each.serial is None
            continue
        assert each.serial
        assert each.operations is not None
        assert float(each.operations) < SERIAL_OPERATIONS, each


def test_why_one_core_computes_a_call() -> None:
    calls = [
        call(0, (500 * US, 500 * US, 1), tasks=(1,)),
        call(500 * US, reason="a scan along one axis"),
        call(50 * US),
        call(50 * US, rule=None, kind="runtime"),
        call(0, (9 * US, 18 * US, 2)),
    ]
    reasons = [each.reason for each in predict(calls, calls, Machine(cores=2)).calls]
    assert reasons == [
        "its parallel loop has 1 task",
        "a scan along one axis",
        "threads do not pay at these sizes",
        "a function of the runtime",
        "",
    ]
