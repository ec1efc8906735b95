"""Folders of models that also read images: their text decoder is built as a model of its family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import compiler
from compiler.artifact.language_model import LanguageModelDescription
from compiler.frontends.llm import import_language_model
from compiler.frontends.llm.gguf_file import GgufFile
from compiler.frontends.llm.gguf_tokenizer import read_gguf_tokenizer
from compiler.frontends.llm.tokenizer_files import read_tokenizer_files
from compiler.generation.tokenizer import Tokenizer
from tests.compiler.generation.models import byte_tokenizer
from tests.coverage.tiny_configs import tiny_config

pytest.importorskip("transformers")
_NAMES = ("mistral3", "gemma4", "qwen3_5", "lfm2_vl", "llava_next", "aya_vision", "kimi_k25", "nemotron_h_omni")


def _save(name: str, folder: Path) -> Any:
    """Write a small random model, and return it."""
    import torch
    import transformers

    torch.manual_seed(len(name))
    model = transformers.AutoModelForMultimodalLM.from_config(tiny_config(name), dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def _last_logits(model: Any, tokens: Any) -> Any:
    """The logits after the last token; transformers leaves Cohere's scale out of them before 5.25."""
    scale = getattr(model.config.text_config, "logit_scale", None)
    if scale is None:
        return model(input_ids=tokens).logits[0, -1].numpy()
    states = model.model(input_ids=tokens).last_hidden_state[0, -1]
    return (model.lm_head(states) * scale).numpy()


@pytest.mark.parametrize("name", _NAMES)
def test_logits_of_text_equal_those_of_the_whole_model(name: str, tmp_path: Path) -> None:
    import torch

    reference = _save(name, tmp_path)
    imported = import_language_model(tmp_path)
    assert "without images and audio" in imported.notes[0]
    prompt = np.random.default_rng(1).integers(5, 100, (1, 30))
    with torch.no_grad():
        wanted = _last_logits(reference, torch.from_numpy(prompt))
    session = compiler.compile(imported, threads=1).session(capacity=32)
    found = session.run([prompt])["logits"][0, -1]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * abs(wanted).max())


@pytest.mark.parametrize("file", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_templates_have_a_file_of_their_own_or_are_settings(file: str, tmp_path: Path) -> None:
    text = "{{ messages }}"
    (tmp_path / file).write_text(text if file.endswith("jinja") else json.dumps({"chat_template": text}))
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"eos_token_id": [7, 9]}}))
    found = read_tokenizer_files(tmp_path)
    assert (found.chat_template, found.stop_tokens) == (text, (7, 9))


@pytest.mark.parametrize("form", ["list", "files", "a file beside settings", "tool_use alone"])
def test_tools_have_a_template_of_their_own(form: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    texts = {"default": "plain {{ messages[0].content }}", "tool_use": "tools {{ tools }}", "rag": "documents"}
    if form == "tool_use alone":
        del texts["default"]
    listed = [{"name": name, "template": text} for name, text in texts.items()]
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if form != "files":
        settings["chat_template"] = listed if form != "a file beside settings" else "other"
    if "file" in form:
        (tmp_path / "additional_chat_templates").mkdir()
        (tmp_path / "chat_template.jinja").write_text(texts["default"])
        for name in ("tool_use", "rag"):
            (tmp_path / f"additional_chat_templates/{name}.jinja").write_text(texts[name])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "tokenizer.json").write_text(json.dumps(byte_tokenizer([])))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    files = read_tokenizer_files(tmp_path)
    assert files.content is not None
    description = LanguageModelDescription(
        architecture="llama",
        context=1,
        vocabulary=256,
        chat_template=files.chat_template,
        tool_template=files.tool_template,
    )
    tokenizer = Tokenizer(files.content, description)
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "hi"}]
    choices: list[list[Any] | None] = [None, []] if "default" in texts else [[]]
    for tools in choices:
        wanted = reference.apply_chat_template(messages, tools=tools, tokenize=False)
        assert tokenizer.chat(messages, tools) == wanted
    assert tokenizer.chat(messages).startswith("plain" if "default" in texts else "tools")


@pytest.mark.parametrize("names", [("default", "tool_use"), ("tool_use",)])
def test_templates_of_gguf_files(names: tuple[str, ...], tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_token_list(["a"])
    writer.add_chat_template([{"name": name, "template": f"a template of {name}"} for name in names])
    writer.add_tensor("token_embd.weight", np.zeros((1, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_gguf_tokenizer(GgufFile(tmp_path / "model.gguf"))
    assert (found.chat_template, found.tool_template) == (f"a template of {names[0]}", "a template of tool_use")
