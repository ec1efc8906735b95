"""The cache of compiled modules: equal calls build once, any difference builds again, and damaged files are not
used."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import compiler
from compiler.cli import main
from compiler.driver import build, module_cache
from compiler.errors import InternalError, InvalidModelError, OptionError
from tests.compiler.cli.running import isolated_consoles

X = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TENSORWRIGHT_CACHE_MB")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """y = x + bias, with weights in a separate file."""
    bias = numpy_helper.from_array(np.arange(4, dtype=np.float32), "bias")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "bias"], ["y"])], "g", [x], [y], [bias])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    onnx.save(proto, tmp_path / "add.onnx", save_as_external_data=True, location="add.weights", size_threshold=0)
    return tmp_path / "add.onnx"


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The sources that were built instead of loaded."""
    found: list[object] = []
    original: Callable[..., Any] = build.build_module

    def counted(source: object, *rest: Any) -> module_cache.Built:
        found.append(source)
        return original(source, *rest)

    monkeypatch.setattr(build, "build_module", counted)
    return found


def test_the_same_call_builds_once(model: Path, builds: list[object]) -> None:
    steps: list[str] = []
    first, second = compiler.compile(model), compiler.compile(str(model), progress=steps.append)
    assert builds == [model]
    assert steps == ["reuse an earlier compilation"]
    np.testing.assert_array_equal(second.run([X])["y"], X + np.arange(4, dtype=np.float32))
    assert second.artifact.library == first.artifact.library
    assert second.manifest.kernels == first.manifest.kernels
    data = onnx.load(model).SerializeToString()
    compiler.compile(data)
    compiler.compile(data)
    assert builds == [model, data]


def test_whatever_a_module_depends_on_builds_anew(
    model: Path, builds: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler.compile(model)
    given: list[dict[str, Any]] = [
        {"threads": 1},
        {"shapes": {"x": (2, 4)}},
        {"shapes": {"x": (3, 4)}},
        {"target": "x86-64-v3"},
        {"reference_inputs": {"x": X}},
        {"reference_inputs": {"x": X + 1}},
        {"records": False},
    ]
    for options in given:
        compiler.compile(model, **options)
        compiler.compile(model, **options)
    assert len(builds) == 1 + len(given)
    monkeypatch.setenv("TENSORWRIGHT_RECORDS", str(tmp_path))  # a folder of records
    compiler.compile(model)
    (tmp_path / "new.jsonl").touch()
    compiler.compile(model)
    weights = tmp_path / "add.weights"
    weights.write_bytes(np.ones(4, np.float32).tobytes())
    np.testing.assert_array_equal(compiler.compile(model).run([X])["y"], X + 1)
    assert len(builds) == 4 + len(given)


def test_graph_passes_and_relax_modules_are_not_kept(model: Path, builds: list[object], tmp_path: Path) -> None:
    for _ in range(2):
        compiler.compile(model, passes={"after:fold-constants": lambda mod, context: mod})
        compiler.compile(model, dump=tmp_path / "dump")
        compiler.compile(model, target="raspberry-pi-5")
    assert len(builds) == 6


def test_damaged_and_foreign_files_are_not_used(
    model: Path, builds: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler.compile(model)
    (stored,) = (tmp_path / "cache" / "modules").glob("*/module.twm")
    data = bytearray(stored.read_bytes())
    data[-9] ^= 1
    stored.write_bytes(data)
    compiler.compile(model)
    (stored.parent / "facts.json").write_text("[")
    compiler.compile(model)
    assert len(builds) == 3
    stored.chmod(0o666)
    assert module_cache._load(stored.parent.name) is None
    stored.chmod(0o600)
    assert module_cache._load(stored.parent.name) is not None
    monkeypatch.setattr("os.getuid", lambda: stored.stat().st_uid + 1)
    assert module_cache._load(stored.parent.name) is None


def test_threads_wait_for_the_one_that_builds(model: Path, builds: list[object]) -> None:
    threads = [threading.Thread(target=compiler.compile, args=(model,)) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert builds == [model]


def test_a_failed_compilation_leaves_nothing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> module_cache.Built:
        raise InternalError("no")

    monkeypatch.setattr(build, "build_module", fail)
    with pytest.raises(InternalError):
        compiler.compile(model)
    assert [each for each in (tmp_path / "cache" / "modules").iterdir() if each.is_dir()] == []


def test_a_cache_that_cannot_be_written_is_a_note(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TENSORWRIGHT_CACHE", str(tmp_path / "file"))
    steps: list[str] = []
    module = compiler.compile(model, progress=steps.append)
    np.testing.assert_array_equal(module.run([X])["y"], X + np.arange(4, dtype=np.float32))
    assert any(step.startswith("not kept for the next compilation: ") for step in steps)


def test_modules_used_longest_ago_go_first(model: Path, builds: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for threads in (1, 2):
        compiler.compile(model, threads=threads)
    newest, oldest = module_cache.entries()
    path = Path(os.environ["TENSORWRIGHT_CACHE"]) / "modules" / oldest.key / "module.twm"
    os.utime(path, (1, 1))
    module_cache._evict(newest.nbytes)
    assert [each.key for each in module_cache.entries()] == [newest.key]
    monkeypatch.setenv("TENSORWRIGHT_CACHE_MB", "0")
    compiler.compile(model, threads=2)
    assert len(builds) == 3
    monkeypatch.setenv("TENSORWRIGHT_CACHE_MB", "much")
    with pytest.raises(OptionError, match="TENSORWRIGHT_CACHE_MB=much"):
        compiler.compile(model)


def test_a_damaged_model_is_the_error_of_compiling(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"\x08\x07\xff location")
    with pytest.raises(InvalidModelError, match=r"net\.onnx is not an ONNX model"):
        compiler.compile(path)


def test_weights_in_a_device_are_not_read(model: Path) -> None:
    proto = onnx.load(model, load_external_data=False)
    proto.graph.initializer[0].external_data[0].value = "/dev/zero"
    model.write_bytes(proto.SerializeToString())
    with pytest.raises(InvalidModelError):
        compiler.compile(model)


def test_command(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compiler.compile(model)
    with isolated_consoles():
        assert main(["cache", "list"]) == 0
        assert "add" in capsys.readouterr().out
        assert main(["cache", "clear"]) == 0
        assert main(["cache", "list", "--json"]) == 0
    assert capsys.readouterr().out.endswith("[]\n")


def test_a_repeated_command_finds_its_file(
    model: Path,
    builds: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "add.twm"

    def answer(*options: str) -> str:
        with isolated_consoles():
            assert main(["compile", str(model), "-o", str(output), *options]) == 0
        return capsys.readouterr().out.splitlines()[-1].split(",")[0]

    compiled, known = f"wrote {output}", f"{output} is up to date"
    assert [answer(), answer(), answer("--threads", "1"), answer("--threads", "1")] == [compiled, known] * 2
    code = f"""
import sys
from compiler.cli import main
main(["compile", {str(model)!r}, "-o", {str(output)!r}, "--threads", "1"])
print([name for name in ("typer", "numpy", "tvm", "onnx") if name in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == [f"{known}, {output.stat().st_size / 1024:.1f} KiB", "[]"]
    changes: list[Callable[[], object]] = [
        lambda: output.write_bytes(output.read_bytes()),
        output.unlink,
        lambda: (tmp_path / "add.weights").write_bytes(np.ones(4, np.float32).tobytes()),
        lambda: monkeypatch.setenv("TENSORWRIGHT_RECORDS", str(tmp_path / "records")),
        lambda: next((tmp_path / "cache" / "commands").iterdir()).write_text("[]"),
        lambda: (tmp_path / "cache" / "commands").chmod(0o777),
        module_cache.clear,
    ]
    for change in changes:
        change()
        assert answer("--threads", "1") == compiled
    np.testing.assert_array_equal(compiler.load(output).run([X])["y"], X + 1)
    assert len(builds) == 5  # two numbers of threads, other weights, other records, and after all were removed
    monkeypatch.setenv("TENSORWRIGHT_CACHE_MB", "0")
    assert [answer(), answer()] == [compiled] * 2


def test_another_process_loads_no_compiler(model: Path) -> None:
    compiler.compile(model)
    command = ["compile", str(model), "-o", str(model.with_name("again.twm"))]
    for call in (f"compiler.compile({str(model)!r})", f"main({command!r})"):
        code = f"import sys, compiler; from compiler.cli import main; {call}; print('tvm' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "False"


def test_graphs_of_torch_compile(builds: list[object]) -> None:
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(4, 3).eval()
    x = torch.from_numpy(X)
    with torch.no_grad():
        for _ in range(2):
            torch._dynamo.reset()
            result = torch.compile(layer, backend="tensorwright")(x)
            np.testing.assert_allclose(result.numpy(), layer(x).numpy(), rtol=1e-5, atol=1e-6)
        assert len(builds) == 1
        layer.weight.mul_(2)
        torch._dynamo.reset()
        result = torch.compile(layer, backend="tensorwright")(x)
        np.testing.assert_allclose(result.numpy(), layer(x).numpy(), rtol=1e-5, atol=1e-6)
    assert len(builds) == 2


@pytest.mark.parametrize(
    ("name", "points", "counts"),
    [
        ("torch-99.0.dist-info", "", True),
        ("mine-1.0.dist-info", "[tensorwright.targets]\nboard = mine:presets\n", True),
        ("other-1.0.dist-info", "[console_scripts]\nother = other:main\n", False),
    ],
)
def test_installed_distributions_that_compile_are_part_of_the_key(
    name: str, points: str, counts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = module_cache._installation.__wrapped__
    before = installed()
    (tmp_path / name).mkdir()
    (tmp_path / name / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert (installed() != before) == counts
