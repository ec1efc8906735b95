"""Output in notebooks and at prompts: a line or two, tables, a bar on terminals; and modules as functions."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx.parser
import pytest

import tensorwright
from compiler.errors import InputError
from compiler.support import progress_bar
from compiler.support.progress_bar import automatic, is_silent, shows_progress


def model(outputs: str = "float[n,3] s") -> onnx.ModelProto:
    body = "s = Add(x, y) d = Sub(x, y)" if "d" in outputs.split() else "s = Add(x, y)"
    graph = f"(float[n,3] x, float[n,3] y) => ({outputs}) {{ {body} }}"
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> agraph {graph}')


@pytest.fixture(scope="module")
def module() -> tensorwright.Module:
    return tensorwright.compile(model(), threads=1)


def test_a_module_is_called_in_order_and_by_name(module: tensorwright.Module) -> None:
    x, y = np.ones((2, 3), np.float32), np.full((2, 3), 4, np.float32)
    for result in (module(x, y), module(x, y=y), module(y=y, x=x)):
        np.testing.assert_array_equal(result, x + y)
    with pytest.raises(InputError, match="'x' is given twice"):
        module(x, x=y)
    with pytest.raises(InputError, match="3 inputs were given"):
        module(x, x, x)
    two = tensorwright.compile(model("float[n,3] s, float[n,3] d"), threads=1)(x, y)
    assert sorted(two) == ["d", "s"]


def test_reprs_are_a_line_or_two_and_tables(module: tensorwright.Module) -> None:
    shown: dict[str, Any] = {
        "module": module,
        "bench": tensorwright.bench(module, runs=400),
        "profile": tensorwright.profile(module, runs=3),
    }
    for name, value in shown.items():
        assert len(repr(value)) < 400, name
        assert "\n" not in repr(value)
        page = value._repr_html_()
        assert page.startswith("<div>")
        assert "<table>" in page
        assert page.count("<tr>") < 30
    assert "latency p99" in shown["bench"]._repr_html_()


def test_compressed_models_show_their_reports_and_not_their_graphs() -> None:
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64)).eval()
    shared = tensorwright.share_weights(net, 8, example_inputs=(torch.zeros(4, 64),), threads=1)
    assert len(repr(shared)) < 400
    assert "share weights" in repr(shared)
    assert "2 of 2 layers changed" in shared._repr_html_()


@shows_progress
def _work(progress: Any = automatic) -> object:
    if progress is not None:
        progress("step one")
        progress("note: of interest")
    return progress


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _stderr(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> io.StringIO:
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_progress_is_shown_on_a_terminal_and_silenced_by_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    pipe = _stderr(monkeypatch, io.StringIO())
    assert is_silent(_work())
    assert pipe.getvalue() == ""
    terminal = _stderr(monkeypatch, _Terminal())
    assert not is_silent(_work())
    assert "note: of interest" in terminal.getvalue()
    terminal = _stderr(monkeypatch, _Terminal())
    assert _work(progress=None) is None
    steps: list[str] = []
    _work(progress=steps.append)
    assert steps == ["step one", "note: of interest"]
    assert terminal.getvalue() == ""


def test_progress_in_a_notebook_is_one_line_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    shell = type("ZMQInteractiveShell", (), {})()
    handle = SimpleNamespace(update=shown.append)

    def display(html: str, display_id: bool) -> SimpleNamespace:
        shown.append(html)
        return handle

    ipython = SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(HTML=str, display=display))
    assert isinstance(_work(), progress_bar._NotebookLine)
    assert "step one" in shown[1]
    assert "note: of interest" in shown[-1]
    assert "done" in shown[-1]


def test_inner_calls_show_no_bar_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", _Terminal())

    @shows_progress
    def outer(progress: Any = automatic) -> tuple[object, object]:
        return progress, _work()

    bar, inner = outer()
    assert not is_silent(bar)
    assert inner is automatic
