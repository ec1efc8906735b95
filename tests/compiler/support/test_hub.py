"""Names on the Hugging Face Hub, with a prepared cache and no network."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import tensorwright
from compiler.errors import OptionError, StorageError
from compiler.support.hub import HubModel, download, hub_model

constants = pytest.importorskip("huggingface_hub.constants")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with the model acme/negate, as huggingface_hub lays it out."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", [x], [y])
    folder = tmp_path / "models--acme--negate"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), folder / "snapshots/abc/net.onnx")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_names() -> None:
    assert hub_model("model.onnx") is None
    assert hub_model(Path("hf:org/model")) == HubModel("org/model")
    assert hub_model("hf:org/m-1.5@v1:sub/net.gguf") == HubModel("org/m-1.5", "v1", "sub/net.gguf")
    assert (HubModel("org/model").name, HubModel("o/m", None, "sub/net.Q4_0.gguf").name) == ("model", "net.Q4_0")
    for wrong in ("hf:model", "hf:org/model:../x", "hf:a/b/c", "hf:a/b:/etc/x", "hf:a/b@/etc", "hf:a/b:" + "a" * 2000):
        with pytest.raises(OptionError, match="is not a Hugging Face Hub name"):
            hub_model(wrong)


def test_a_model_of_the_cache_is_compiled(cache: Path) -> None:
    module = tensorwright.compile("hf:acme/negate:net.onnx", threads=1)
    assert module.manifest.model_name == "net"
    np.testing.assert_array_equal(module.run([np.array([1, -2], np.float32)])["y"], [-1, 2])


@pytest.mark.parametrize("name", ["hf:acme/other", "hf:acme/negate:other.onnx"])
def test_what_cannot_be_had_names_the_command(cache: Path, name: str) -> None:
    with pytest.raises(StorageError, match="not in the local cache") as caught:
        tensorwright.compile(name)
    assert "hf download acme/" in str(caught.value.hint)


@pytest.mark.parametrize("stored", ["model.safetensors", "pytorch_model-00001-of-00002.bin"])
def test_weights_as_pytorch_saves_them_are_downloaded_where_there_are_no_others(
    cache: Path, monkeypatch: pytest.MonkeyPatch, stored: str
) -> None:
    """The cache holds a part of the repository, without its weights."""
    folder = cache / "models--acme--negate" / "snapshots" / "abc"
    asked: list[str] = []

    def snapshot_download(_: str, *, allow_patterns: list[str], local_files_only: bool, **options: object) -> str:
        if not local_files_only:
            asked.append("all" if "pytorch_model*.bin" in allow_patterns else "usual")
            if any(fnmatch(stored, pattern) for pattern in allow_patterns):
                (folder / stored).touch()
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert download(HubModel("acme/negate")) == folder
    assert (folder / stored).exists()
    assert asked == (["usual"] if stored.endswith("safetensors") else ["usual", "all"])
    asked.clear()
    assert download(HubModel("acme/negate")) == folder
    assert asked == []
