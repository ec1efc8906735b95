"""Model files of other programs are recognized by content, and the error says how to export them."""

from __future__ import annotations

import gzip
import json
import lzma
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorwright
from compiler.errors import InvalidModelError, StorageError, TensorwrightError
from compiler.inspection.summary import coverage_of


def write_torch(path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)


def write_torch_script(path: Path) -> None:
    torch = pytest.importorskip("torch")
    with zipfile.ZipFile(path, "w") as archive:  # as torch.jit.save lays it out, without its deprecation warning
        for name in ("data.pkl", "code/__torch__.py", "constants.pkl", "version"):
            archive.writestr(f"net/{name}", b"")
    assert torch is not None


def write_old_torch(path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(2, 2).state_dict(), path, _use_new_zipfile_serialization=False)


def write_ultralytics(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "best/data.pkl", b"\x80\x02}q\x00X\x05\x00\x00\x00modelcultralytics.nn.tasks\nDetectionModel\n"
        )


def write_safetensors(path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)


def write_program(path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.zeros(2),)), path)


CASES: dict[str, tuple[Any, str, str]] = {
    "net.pt": (write_torch, "a pickled torch file", "torch.export.save"),
    "net.onnx": (write_torch, "a pickled torch file", "torch.export.save"),
    "old.pth": (write_old_torch, "a pickle", "torch.export.save"),
    "script.pt": (write_torch_script, "a TorchScript program", "torch.export.export"),
    "program.zip": (write_program, "a program saved by torch.export.save", "suffix .pt2"),
    "script.pt2": (write_torch_script, "a TorchScript program", "torch.export.export"),
    "net.safetensors": (write_safetensors, "a safetensors file, which contains weights but no model", "optimum-cli"),
    "net.tflite": (lambda path: path.write_bytes(b"\x1c\0\0\0TFL3" + b"\0" * 90), "TensorFlow Lite", "tf2onnx"),
    "net.pkl": (lambda path: path.write_bytes(pickle.dumps({"weights": [1, 2]})), "a pickle", "to ONNX"),
    "net.h5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 90), "an HDF5 file", "tf2onnx"),
    "net.xml": (lambda path: path.write_text('<?xml version="1.0"?>\n<net name="n">'), "an OpenVINO model", "ONNX"),
    "config.json": (lambda path: path.write_text('{"model_type": "llama"}'), "a JSON file", "by its folder"),
    "page.onnx": (lambda path: path.write_text("<!DOCTYPE html><html>"), "a text file", "download"),
    "net.py": (lambda path: path.write_text("# A net\nimport torch\n"), "a Python program", "torch.export.save"),
    "notes.onnx": (lambda path: path.write_text("höhere Werte\n" * 999), "a text file", "models are .onnx files"),
    "net.onnx.gz": (lambda path: path.write_bytes(gzip.compress(b"\x08\x0a")), "compressed by gzip", "gunzip"),
    "net.onnx.xz": (lambda path: path.write_bytes(lzma.compress(b"\x08\x0a")), "compressed by xz", "unxz"),
    "yolov8n.pt": (write_ultralytics, "a pickled torch file", "yolo export model="),
    "lfs.onnx": (lambda path: path.write_text("version https://git-lfs.github.com/spec"), "Git LFS", "lfs pull"),
    "x.npz": (lambda path: np.savez(path, x=np.zeros(2)), "an archive of numpy arrays", "inputs"),
    "x.npy": (lambda path: np.save(path, np.zeros(2)), "an array of numpy", "data are for its inputs"),
    "x.png": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), "a picture", "data are for its inputs"),
    "x.wav": (lambda path: path.write_bytes(b"RIFF\0\0\0\0WAVE"), "a recording", "data are for its inputs"),
    "cut.zip": (lambda path: path.write_bytes(b"PK\x03\x04cut"), "a damaged zip archive", "again"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_files_of_other_programs_are_named(name: str, tmp_path: Path) -> None:
    write, kind, hint = CASES[name]
    write(tmp_path / name)
    with pytest.raises(InvalidModelError) as caught:
        tensorwright.compile(tmp_path / name)
    assert kind in caught.value.message
    assert hint in str(caught.value.hint)
    if not name.endswith(".pt2"):
        with pytest.raises(InvalidModelError, match="the given bytes are"):
            tensorwright.compile((tmp_path / name).read_bytes())


def test_a_gguf_file_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "net.gguf"
    path.write_bytes(b"\0" * 90)
    with pytest.raises(InvalidModelError, match="is not a GGUF file, or it is damaged"):
        tensorwright.compile(path)
    path.write_bytes(b"GGUF" + b"\0" * 90)
    with pytest.raises(InvalidModelError, match=r"net\.gguf is a language model"):
        tensorwright.coverage_report(path)


def test_damaged_program_is_no_file_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/archive_format", "pt2")
    with pytest.raises(InvalidModelError, match=r"is not a program saved by torch\.export\.save: "):
        tensorwright.compile(path)


@pytest.mark.parametrize(
    ("name", "files", "hint"),
    [
        ("onnx_folder", ["model.onnx"], "onnx_folder/model.onnx"),
        ("saved", ["saved_model.pb"], "tf2onnx.convert --saved-model"),
        ("bert", ["config.json"], "optimum-cli export onnx --model"),
        ("lora", ["adapter_config.json", "adapter_model.safetensors"], "with --adapter"),
        ("empty", [], "the path of the .onnx file inside"),
    ],
)
def test_folders_are_named(name: str, files: list[str], hint: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    for file in files:
        (tmp_path / name / file).touch()
    with pytest.raises(StorageError, match="is a folder"):
        coverage_of(tmp_path / name)
    with pytest.raises(StorageError, match="is a folder") as caught:
        tensorwright.compile(tmp_path / name)
    assert hint in str(caught.value.hint)


def test_name_of_the_hub_is_taken_for_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for read in (tensorwright.compile, tensorwright.coverage_report):
        for name in ("openai/whisper-tiny", "meta-llama/Llama-3.2-1B", "Qwen/Qwen2.5-0.5B"):
            with pytest.raises(TensorwrightError, match=f"no such model file: {name}") as caught:
                read(name)
            assert f"optimum-cli export onnx --model {name}" in str(caught.value.hint)
    with pytest.raises(StorageError) as caught_address:
        tensorwright.compile("https://example.com/net.onnx")
    assert "download it first" in str(caught_address.value.hint)
    with pytest.raises(StorageError) as caught_plain:
        tensorwright.compile("missing.onnx")
    assert caught_plain.value.hint is None


def test_missing_detector_of_ultralytics_is_taken_for_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match=r"no such model file: yolov8n\.pt") as caught:
        tensorwright.compile("yolov8n.pt")
    assert "yolo export model=yolov8n.pt format=onnx" in str(caught.value.hint)
