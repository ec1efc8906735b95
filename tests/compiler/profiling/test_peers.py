"""`bench --compare`: other runtimes on the same file and inputs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compiler.cli import main
from compiler.errors import OptionError
from compiler.profiling.peers import Result, check_peers
from tests.compiler.cli.running import isolated_consoles


@pytest.fixture
def model(tmp_path: Path) -> Path:
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32), "w")
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", s]) for n, s in (("x", 8), ("y", 4)))
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def test_rows_of_all_runtimes(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", str(model), "--compare", "onnxruntime,openvino", "--threads", "1", "--batch", "3"]
    with isolated_consoles():
        assert main([*arguments, "--seconds", "0.05", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["runtime"] for row in rows] == ["tensorwright", "onnxruntime", "openvino"]
    for row in rows:
        assert row["difference"] < 1e-5
        assert row["items_per_second"] == pytest.approx(3 / row["p50"])
        assert row["speedup"] == pytest.approx(row["p50"] / rows[0]["p50"])


def test_what_cannot_be_compared_is_refused(model: Path) -> None:
    with pytest.raises(OptionError, match="'tvm' is not a runtime"):
        check_peers(["tvm"], model)
    with pytest.raises(OptionError, match="read ONNX files"):
        check_peers(["onnxruntime"], Path("net.twm"))


def test_statistics_of_a_race() -> None:
    result = Result("a", "a 1", 0.0, [], [[(3.0, 1.0), (1.0, 2.0), (2.0, 3.0)], [(5.0, 1.0), (4.0, 1.0), (6.0, 1.0)]])
    assert result.medians() == [2.0, 5.0]
    assert (result.seconds("median"), result.seconds("best"), result.seconds("cpu")) == (3.5, 1.0, 1.0)
