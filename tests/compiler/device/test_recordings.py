"""Recordings without Python: the runner reads WAV files, and finds the same speech segments as `predict`."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import wave
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import targets
import tensorwright
from compiler.device.programs import device_programs

RATE, WINDOW, CONTEXT = 8000, 160, 40
SAMPLES = np.random.default_rng(0).uniform(-1, 1, (RATE // 2 + 7, 2))
SAMPLES *= np.repeat([[0.9], [0.02], [0.7]], [1500, 1300, 1207], 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module whose probability is the mean loudness of this window and the previous one."""
    nodes = [
        helper.make_node("Abs", ["x"], ["a"]),
        helper.make_node("ReduceMean", ["a"], ["m"]),
        helper.make_node("Add", ["m", "state"], ["s"]),
        helper.make_node("Mul", ["s", "half"], ["p"]),
        helper.make_node("Identity", ["m"], ["next"]),
    ]
    shapes = {"x": [1, CONTEXT + WINDOW], "state": [1, 1], "p": [1, 1], "next": [1, 1]}
    info = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    half = numpy_helper.from_array(np.array(0.5, np.float32), "half")
    graph = helper.make_graph(nodes, "loud", [info["x"], info["state"]], [info["p"], info["next"]], [half])
    folder = tmp_path_factory.mktemp("speech")
    processing = tensorwright.Processing(task="speech", rate=RATE, window=WINDOW, context=CONTEXT, score=0.2)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    tensorwright.compile(model, processing=processing, state={"state": "next"}, threads=1).export(folder / "net.twm")
    return folder


def wave_file(width: int, channels: int, rate: int = RATE) -> bytes:
    """`SAMPLES` as integers of this many bytes."""
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        values = np.round(SAMPLES[:, :channels] * (2 ** (8 * width - 1) - 1)).astype("<i4")
        raw = (values + 128).astype(np.uint8) if width == 1 else values[..., None].view(np.uint8)[..., :width]
        file.writeframes(raw.tobytes())
    return content.getvalue()


def run(folder: Path, *options: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    program = device_programs(targets.get("host", cores=1)) / "tensorwright-run"
    done = subprocess.run([program, "net.twm", *options], capture_output=True, text=True, cwd=folder, timeout=600)
    assert done.returncode == code, done.stderr
    return done


@pytest.mark.parametrize(("width", "channels"), [(1, 1), (2, 1), (2, 2), (3, 2), (4, 1)])
def test_the_runner_finds_what_predict_finds(folder: Path, width: int, channels: int) -> None:
    (folder / "a.wav").write_bytes(wave_file(width, channels))
    (found,) = json.loads(run(folder, "a.wav", "--json").stdout)["predictions"]
    expected = tensorwright.load(folder / "net.twm").predict(folder / "a.wav")
    assert isinstance(expected, tensorwright.Speech)
    assert len(expected) == 2
    assert found == {"input": "a.wav", **expected.to_dict()}
    assert run(folder, "a.wav").stdout.startswith("speech in 2 parts\n    0.02 s to")


def test_chunks_before_the_samples_and_a_length_that_is_not_known(folder: Path) -> None:
    plain = wave_file(2, 1)
    listed = b"LIST" + struct.pack("<I", 3) + b"abc\0"  # of odd length, and padded
    endless = plain[:36] + listed + b"data" + struct.pack("<I", 0xFFFFFFFF) + plain[44:]
    (folder / "a.wav").write_bytes(plain)
    (folder / "b.wav").write_bytes(endless)
    one, other = json.loads(run(folder, "a.wav", "b.wav", "--json").stdout)["predictions"]
    assert one["segments"] == other["segments"]


def test_what_cannot_be_read_is_said(folder: Path) -> None:
    plain = wave_file(2, 1)
    for content, message in (
        (wave_file(2, 1, 44100), "44100 samples a second, and the module reads 8000"),
        (plain[:44], "holds no samples"),
        (plain[:30], "is not a WAV file"),
        (b"", "is not a WAV file"),
        (plain[:20] + struct.pack("<H", 3) + plain[22:], "not a WAV file of integers"),
        (plain[:34] + struct.pack("<H", 64) + plain[36:], "not a WAV file of integers"),
    ):
        (folder / "bad.wav").write_bytes(content)
        assert message in run(folder, "bad.wav", code=1).stderr
    (folder / "a.wav").write_bytes(plain)
    assert "leave out --picture" in run(folder, "a.wav", "--picture", "b.png", code=1).stderr
