"""Packs, run from end to end without a device: kernels are simulated, in folders that know nothing of this project."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

import targets
from benchmarks import cuda
from benchmarks.gpu_pack import peers
from benchmarks.gpu_pack.build import Case, Model, arrays_of
from benchmarks.gpu_pack.compact import Compactor
from benchmarks.gpu_pack.entries import PackEntry
from benchmarks.gpu_pack.kernel_table import number_of
from benchmarks.gpu_pack.pack import Made, make_pack, parse_size
from benchmarks.gpu_pack.references import tolerance
from benchmarks.gpu_pack.report import read_results, tables
from benchmarks.gpu_pack.seeded import Weight
from benchmarks.gpu_pack.single_kernels import product
from compiler.errors import OptionError, StorageError
from targets.cuda.image import source_of
from targets.cuda.simulator import CudaSimulator
from targets.cuda.target import CudaTarget
from tests.targets import cuda_stand_in as stand_in
from tests.targets.cuda.test_target import needs_nvcc

_LIMIT = 60 * 10**6
_PATH = f"{os.defpath}:/usr/sbin:/sbin"
_TOOLS = ("sh", "chmod", "cat", "dirname", "grep", "gzip", "uname")


def perceptron() -> Model:
    """softmax(relu(x w + b) v), float32; w and v are generated, b is stored."""
    one, two = Weight(1, 40, (48, 40)), Weight(2, 48, (10, 48))
    unit = np.float32(2.0**-9)
    w, v = (each.values().T.astype(np.float32) * unit for each in (one, two))
    b = np.random.default_rng(0).standard_normal(48).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["1"]),
        helper.make_node("Add", ["1", "b"], ["2"]),
        helper.make_node("Relu", ["2"], ["3"]),
        helper.make_node("MatMul", ["3", "v"], ["4"]),
        helper.make_node("Softmax", ["4"], ["y"], axis=-1),
    ]
    values = [helper.make_tensor_value_info(name, 1, shape) for name, shape in (("x", [6, 40]), ("y", [6, 10]))]
    constants = [numpy_helper.from_array(np.ascontiguousarray(a), n) for n, a in (("w", w), ("b", b), ("v", v))]
    graph = helper.make_graph(nodes, "perceptron", values[:1], values[1:], constants)
    source = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    given = [{"name": "x", "dtype": "float32", "shape": [6, 40], "make": {"kind": "reals", "seed": 3}}]
    x = arrays_of(given)["x"].astype(np.float64)
    powers = np.exp(np.maximum(x @ w + b, 0) @ v)
    expected = {"y": powers / powers.sum(-1, keepdims=True)}
    allowed = tolerance(relative=1e-5)
    return Model(source, {}, [Case(given, expected)], allowed, allowed, [one, two])


def packed_entries() -> list[PackEntry]:
    return [
        PackEntry("perceptron-float32", perceptron),
        PackEntry("product-48-float16", lambda: product("float16", 48)),
        PackEntry("product-48-int8", lambda: product("int8", 48), rest=True),
    ]


@pytest.fixture(scope="module")
def target() -> CudaTarget:
    found = targets.get("cuda-simulated")
    assert isinstance(found, CudaTarget)
    return found


@pytest.fixture(scope="module")
def pack(target: CudaTarget, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root") / "pack"
    made: list[Made] = []
    assert make_pack(folder, target, packed_entries(), _LIMIT, made.append) == 0
    assert [each.problem for each in made] == [None] * 3
    # w and v of the perceptron follow from their seeds; b is 192 bytes.
    assert not any(each.written.stored for each in made if each.written)
    return folder


@pytest.fixture
def copy(pack: Path, tmp_path: Path) -> Path:
    shutil.copytree(pack, tmp_path / "pack")
    return tmp_path / "pack"


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The pack's own script where nothing of Python is found: not even a PATH to it."""
    tools = folder.parent / "tools"
    if not tools.exists():
        tools.mkdir()
        for name in _TOOLS:
            (tools / name).symlink_to(str(shutil.which(name, path=_PATH)))
    whole = {"PATH": str(tools), **environment}
    return subprocess.run(
        [str(folder / "run"), *arguments], capture_output=True, text=True, env=whole, cwd="/", check=False
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def ended(path: Path) -> dict[str, str]:
    return {line["entry"]: line["status"] for line in lines(path) if line["stage"] == "end"}


def test_a_pack_is_verified_and_timed_without_python(copy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    done = run(copy, OUT=str(out))
    assert done.returncode == 0, done.stderr
    assert "no python3" in done.stdout
    assert ended(out / "results.json") == dict.fromkeys((each.name for each in packed_entries()), "right")
    found = read_results([out / "results.json"])
    kernels = found.entries["perceptron-float32"].stages["kernels"]["kernels"]
    assert sum(each["calls"] for each in kernels) == len(kernels) == 3
    assert kernels[0]["bytes"] == 4 * (6 * 40 + 40 * 48 + 48 + 6 * 48)
    assert kernels[0]["operations"] >= 2 * 6 * 40 * 48
    assert found.entries["product-48-int8"].milliseconds("graph") is not None
    text = tables(found)
    assert "| perceptron-float32 | right |" in text
    assert "| product-48-float16 |" in text


@pytest.fixture
def bare_root(pack: Path, tmp_path: Path) -> list[str]:
    """Arguments that start a command in a folder with the pack and the few system files that it needs."""
    root = tmp_path / "bare"
    for name in ("proc", "tmp", "bin", "lib64"):
        (root / name).mkdir(parents=True)
    shutil.copytree(pack, root / "pack")
    programs = [Path(str(shutil.which(name, path=_PATH))).resolve() for name in _TOOLS]
    for name, program in zip(_TOOLS, programs, strict=True):
        shutil.copy(program, root / "bin" / name)
    said = subprocess.run(["ldd", *programs, pack / "bin" / "pack-driver"], capture_output=True, text=True, check=False)
    for word in set(said.stdout.split()):
        if word.startswith("/lib") and not word.endswith(":") and str(pack) not in word:
            place = root / word[1:]
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(word).resolve(), place)
    script = 'mount --rbind /proc "$0/proc" && root="$0" && exec chroot "$root" "$@"'
    prefix = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, str(root)]
    if subprocess.run([*prefix, "/bin/uname"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody change the root folder")
    return prefix


def test_a_pack_runs_in_a_bare_root_folder(bare_root: list[str]) -> None:
    command = [*bare_root, "/pack/run", "--only", "perceptron"]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": f"/bin:{_PATH}"}, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 right, 0 wrong" in done.stdout


def replace_kernels(entry: Path, target: CudaTarget, change: Any) -> None:
    """Other simulated kernels in place of an entry's: `change` gives their source."""
    library = gzip.decompress((entry / "model.so.gz").read_bytes())
    source = source_of(library)
    made = CudaSimulator(target.compiler()).compiled(dataclasses.replace(source, text=change(source.text)), entry)
    (entry / "kernels.so.gz").write_bytes(gzip.compress(made.read_bytes()))


def definition(text: str, kernel: str) -> re.Match[str]:
    """Where a kernel is defined, to the start of its body."""
    found = re.search(rf" {kernel}_kernel\((?P<arguments>[^)]*)\) \{{", text)
    assert found is not None
    return found


def second_kernel(folder: Path) -> str:
    described = json.loads(gzip.decompress((folder / "entries" / "perceptron-float32" / "entry.json.gz").read_bytes()))
    return str(described["calls"][1]["kernel"])


def test_the_first_wrong_kernel_is_named_with_its_source_and_sizes(copy: Path, target: CudaTarget) -> None:
    name = second_kernel(copy)

    def wrong(text: str) -> str:
        found = definition(text, name)
        end = text.index("\n}", found.end())
        arguments = {each.split()[-1] for each in found["arguments"].split(",")}
        (result,) = arguments & set(re.findall(r"(\w+)\[[^\]]*\] = ", text[found.end() : end]))
        return f"{text[:end]}\n  if (blockIdx.x == 0 && threadIdx.x == 0) {result}[0] = 1000.0f;{text[end:]}"

    replace_kernels(copy / "entries" / "perceptron-float32", target, wrong)
    done = run(copy)
    assert done.returncode == 1
    results = copy / "results.json"
    assert ended(results)["perceptron-float32"] == "wrong"
    assert ended(results)["product-48-int8"] == "right"
    (found,) = (line for line in lines(results) if line["stage"] == "first wrong kernel")
    assert found["kernel"] == name
    assert found["call"] == 1
    assert f"{found['kernel']}_kernel(" in found["source"]
    assert found["tensors"] == ["float32[6, 48]", "float32[48, 10]", "float32[6, 10]"]
    assert f"| {found['kernel']} | float32[6, 48], " in tables(read_results([results]))
    assert run(copy).returncode == 1, "what was wrong before is still wrong"


def test_a_crash_loses_one_entry_and_names_the_kernel(copy: Path, target: CudaTarget) -> None:
    name = second_kernel(copy)

    def crashing(text: str) -> str:
        place = definition(text, name).end()
        return f"{text[:place]} __builtin_trap();{text[place:]}"

    replace_kernels(copy / "entries" / "perceptron-float32", target, crashing)
    done = run(copy)
    assert done.returncode == 1
    assert ended(copy / "results.json")["perceptron-float32"] == "failed"
    assert f"ends in call 1 {name}" in done.stdout
    assert "2 right, 1 wrong" in done.stdout


def test_a_killed_run_leaves_whole_lines_and_is_resumed(copy: Path) -> None:
    results = copy / "results.json"
    started = subprocess.Popen([copy / "run"], env={"PATH": _PATH}, stdout=subprocess.DEVNULL, start_new_session=True)
    while started.poll() is None and not (results.exists() and '"end"' in results.read_text(encoding="utf-8")):
        time.sleep(0.005)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    before = ended(results)
    assert before
    with results.open("a", encoding="utf-8") as file:
        file.write('{"entry": "product-48-int8", "stage": "en')
    done = run(copy)
    assert done.returncode == 0, done.stderr
    assert f"{3 - len(before)} right, 0 wrong, {len(before)} known from before" in done.stdout
    assert len(ended(results)) == 3
    out = copy.parent / "out"
    out.mkdir()
    assert "3 known from before" in run(copy, OUT=str(out)).stdout
    assert ended(out / "results.json") == ended(results)


@needs_nvcc
@pytest.mark.skipif(stand_in.cuda_headers() is None, reason="nvidia-cuda-runtime is not installed")
def test_a_pack_runs_by_tvms_cuda_runtime(tmp_path: Path) -> None:
    """On the stand-in for NVIDIA's libraries: streams, events, graphs and memory are used as a device requires."""
    h100 = targets.get("h100")
    assert isinstance(h100, CudaTarget)
    folder, made = tmp_path / "pack", list[Made]()
    assert make_pack(folder, h100, [PackEntry("perceptron-float32", perceptron)], _LIMIT, made.append) == 0
    for name in ("kernels", "lib"):
        (tmp_path / name).mkdir()
    library = gzip.decompress((folder / "entries" / "perceptron-float32" / "model.so.gz").read_bytes())
    stand_in.add_kernels(library, h100.compiler(), tmp_path / "kernels")
    stand_in.build_libraries(h100.compiler(), tmp_path / "lib")
    (tmp_path / "lib" / stand_in.RUNTIME).replace(folder / "lib" / stand_in.RUNTIME)
    settings = {"LD_LIBRARY_PATH": str(tmp_path / "lib"), "STAND_IN_KERNELS": str(tmp_path / "kernels")}
    done = run(folder, **settings)
    assert done.returncode == 0, done.stderr + done.stdout
    found = read_results([folder / "results.json"]).entries["perceptron-float32"]
    assert found.stages["loaded"]["device"] == "stand-in"
    assert found.stages["graph"]["right"] is True
    assert len(found.stages["kernels"]["kernels"]) == 3
    old = run(folder, **settings, STAND_IN_CAPABILITY="80")
    assert old.returncode == 2
    assert "needs an NVIDIA GPU of compute capability 9.0 or newer" in old.stderr


def test_a_run_without_time_says_what_it_skips(copy: Path) -> None:
    done = run(copy, "--budget", "0.5")
    assert done.returncode == 0
    assert "perceptron-float32 and what follows: no time left" in done.stdout
    assert "3 skipped" in done.stdout


def test_what_a_machine_lacks_is_one_error(copy: Path) -> None:
    about = copy / "pack.json"
    text = about.read_text(encoding="utf-8")
    about.write_text(text.replace('"simulated": 1', '"simulated": 0'), encoding="utf-8")
    done = run(copy)
    assert done.returncode == 2
    assert "driver" in done.stderr
    about.write_text(text.replace('"architecture": "x86_64"', '"architecture": "aarch64"'), encoding="utf-8")
    done = run(copy)
    assert done.returncode == 2
    assert "another processor than x86_64" in done.stderr
    about.write_text(text, encoding="utf-8")
    limited = subprocess.run(
        ["sh", "-c", f"ulimit -f 0 && exec {copy}/run"],
        capture_output=True,
        text=True,
        env={"PATH": _PATH},
        check=False,
    )
    assert limited.returncode == 2
    assert "results cannot be written" in limited.stderr
    (copy / "entries" / "product-48-int8" / "references.bin.gz").write_bytes(gzip.compress(b"\0" * 16))
    done = run(copy, "--only", "int8")
    assert done.returncode == 1
    assert "is truncated" in done.stdout


def test_a_pack_goes_on_where_it_was_cut_off(copy: Path, target: CudaTarget, tmp_path: Path) -> None:
    def never() -> Model:
        raise AssertionError("it is there")

    there = [PackEntry("perceptron-float32", never), PackEntry("mistaken", lambda: product("float64", 8))]
    made: list[Made] = []
    assert make_pack(copy, target, there, _LIMIT, made.append) == 1
    assert made[0].problem is None
    assert (made[1].problem or "").startswith("KeyError: 'float64' (single_kernels.py:")
    with pytest.raises(OptionError, match="programs and libraries alone"):
        make_pack(copy, target, [], 1000, made.append)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(StorageError, match="is not a pack"):
        make_pack(tmp_path / "other", target, [], _LIMIT, made.append)
    h100 = targets.get("h100")
    assert isinstance(h100, CudaTarget)
    with pytest.raises(StorageError, match="is a pack for cuda-simulated"):
        make_pack(copy, h100, [], _LIMIT, made.append)


def test_sizes_and_formulas_are_read() -> None:
    assert [parse_size(text) for text in ("60MB", "1.5 G", "4096", "2k")] == [60_000_000, 1_500_000_000, 4096, 2000]
    with pytest.raises(OptionError, match="not a size"):
        parse_size("much")
    assert number_of("2*3 + 4") == 10
    assert number_of("2*n") == 0


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_generated_weights_are_found_in_any_order_of_axes(dtype: str) -> None:
    weight = Weight(7, 5 * 3 * 3, (16, 5, 3, 3))
    unit = 1 if dtype == "int8" else 2.0**-6
    array = np.ascontiguousarray((weight.values().transpose(2, 3, 1, 0) * unit).astype(dtype)).reshape(9, 5, 16)
    compactor = Compactor([Weight(6, 4, (180, 4)), weight])
    make = compactor.describe("w", dtype, array)["make"]
    assert make["kind"] == "weights"
    assert not compactor.stored
    changed = array.copy()
    changed[-1, -1, -1] += 1
    assert compactor.describe("w", dtype, changed)["make"] == {"kind": "stored", "offset": 0}


def test_pytorch_is_timed_once_and_its_lines_stay(tmp_path: Path) -> None:
    about = {
        "id": "some",
        "entries": [{"name": "mobilenet_v2-float32", "rest": 0}, {"name": "resnet18-int8", "rest": 0}],
    }
    (tmp_path / "pack.json").write_text(json.dumps(about), encoding="utf-8")
    results = tmp_path / "results.json"
    results.write_text('{"stage": "run", "pack": "some"}\n', encoding="utf-8")
    for _ in range(2):
        assert peers.main([str(tmp_path), str(results), "60"], device="cpu") == 0
    _, line = lines(results)
    assert line["peer"] == "eager"
    assert read_results([results]).entries["mobilenet_v2-float32"].peers == {"eager": line["ms"]}


def test_a_report_of_something_else_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    path.write_text('{"stage": "run", "pack": "p"}\n{"no": 1}\n', encoding="utf-8")
    assert cuda.main(["--report", str(path)]) == 2
    assert "line 2, is not a line of results" in capsys.readouterr().err
    path.write_text('{"stage": "device", "name": "NVIDIA H100 80GB HBM3"}\n{"stage": "cut', encoding="utf-8")
    assert cuda.main(["--report", str(path)]) == 0
    assert "NVIDIA H100 80GB HBM3" in capsys.readouterr().out
