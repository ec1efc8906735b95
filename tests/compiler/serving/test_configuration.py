from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compiler.errors import OptionError, StorageError
from compiler.serving.caches.exact import ExactCacheOptions
from compiler.serving.configuration import check_models, default_name, model_options, read_configuration

CONTENT = """
models:
  - name: embed
    path: minilm.twm
    batch: {max_batch_size: 8, max_wait_ms: 2}
    text: {tokenizer: tokenizer.json, pooling: cls}
    latency_ms: 50
    exact_cache: {max_bytes: 1000, folder: cache}
  - path: other.twm
"""


def test_a_file_of_models(tmp_path: Path) -> None:
    path = tmp_path / "server.yaml"
    path.write_text(CONTENT)
    embed, other = read_configuration(path)
    assert (embed.name, embed.path, embed.latency_ms) == ("embed", tmp_path / "minilm.twm", 50)
    assert (embed.batch.max_batch_size, embed.batch.max_wait_ms) == (8, 2)
    assert embed.text.tokenizer == tmp_path / "tokenizer.json"
    assert embed.layers == {"exact_cache": ExactCacheOptions(max_bytes=1000, folder=tmp_path / "cache")}
    assert (other.name, other.layers) == ("other", {})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"path": "a.twm", "bach": {}}, r"no option 'bach' \(did you mean 'batch'\?\)"),
        ({"path": "a.twm", "cascde": {}}, r"no option 'cascde' \(did you mean 'cascade'\?\)"),
        ({"path": "a.twm", "batch": {"max_batch_size": "many"}}, "max_batch_size"),
        ({"path": "a.twm", "batch": {"max_batch_size": 0}}, "at least 1"),
        ({"path": "a.twm", "batch": 7}, "batch"),
        ({"path": "a.twm", "exact_cache": {"size": 1}}, "exact_cache of .* has no option 'size'"),
        ({"path": "a.twm", "text": {"pooling": "max"}}, "pooling must be"),
        ({"path": "a.twm", "name": "a/b"}, "not a model name"),
        ({"name": "a"}, "path"),
        ({"path": "a.twm", "layers": {}}, "name them directly"),
        ([], "must be a mapping"),
    ],
)
def test_wrong_options_are_named(given: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message) as raised:
        model_options(given, "model 1")
    assert "layers" not in (raised.value.hint or "")


@pytest.mark.parametrize("content", ["models: []", "models: {}", "model: [{path: a}]", "{", "[]", ""])
def test_files_that_list_no_models_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "server.yaml"
    path.write_text(content)
    with pytest.raises(OptionError):
        read_configuration(path)
    with pytest.raises(StorageError):
        read_configuration(tmp_path / "none.yaml")


def test_names() -> None:
    assert default_name(Path("some/My Model.v2.twm")) == "My-Model.v2"
    with pytest.raises(OptionError, match="two models are named 'a'"):
        check_models([model_options({"path": "a.twm"}, "one"), model_options({"path": "x/a.twm"}, "two")])
