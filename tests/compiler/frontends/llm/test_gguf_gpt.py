"""GGUF files of GPT-2 and related models equal their folders, which are compared with transformers elsewhere."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from compiler.errors import InvalidModelError
from compiler.frontends.llm import LanguageModelOptions
from compiler.frontends.llm.config import DecoderConfig
from compiler.frontends.llm.gguf_config import read_gguf
from compiler.frontends.llm.gguf_file import GgufFile
from compiler.frontends.llm.hugging_face import read_hugging_face
from compiler.frontends.llm.parameters import Norm, Parameters
from tests.compiler.frontends.llm.families import save_model
from tests.compiler.frontends.llm.gpt_gguf import NAMES, sizes_of, write_gpt_gguf

# of transformers (tests.compiler.frontends.llm.families) -> of GGUF
KINDS = {
    "gpt2": "gpt2",
    "gpt_bigcode": "starcoder",
    "starcoder2": "starcoder2",
    "gpt_neox": "gptneox",
    "gpt_neox-sequential": "gptneox",
    "phi": "phi2",
    "falcon": "falcon",
    "falcon-7b": "falcon",
    "bloom": "bloom",
    "mpt": "mpt",
    "stablelm": "stablelm",
}


@pytest.mark.parametrize("family", KINDS)
def test_a_file_holds_what_the_folder_does(family: str, tmp_path: Path) -> None:
    save_model(family, tmp_path, num_hidden_layers=1)
    path = write_gpt_gguf(tmp_path / "model.gguf", tmp_path, KINDS[family], sizes_of(tmp_path))
    config, names, storage, checkpoint, _ = read_hugging_face(tmp_path, LanguageModelOptions())
    written, names_in_file, storage_in_file, file = read_gguf(GgufFile(path))
    kept = replace(
        config,
        architecture=written.architecture,
        # llama.cpp computes GELU by tanh, and files hold neither a window nor a context of these.
        activation="gelu_tanh" if config.activation == "gelu" else config.activation,
        layers=tuple(replace(layer, window=None) for layer in config.layers),
        context=written.context,
    )
    assert _rounded(asdict(written)) == _rounded(asdict(kept))
    found = _weights(Parameters(file, names_in_file, config, storage_in_file), config)
    expected = _weights(Parameters(checkpoint, names, config, storage), config)
    assert len(found) == len(expected) > 8
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_file_without_its_table_of_positions_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "gpt2")
    for add, value in (
        (writer.add_context_length, 16),
        (writer.add_embedding_length, 8),
        (writer.add_block_count, 1),
        (writer.add_feed_forward_length, 8),
        (writer.add_head_count, 2),
    ):
        add(value)
    writer.add_tensor("token_embd.weight", np.zeros((4, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InvalidModelError, match="no table of positions"):
        read_gguf(GgufFile(tmp_path / "model.gguf"))


def test_every_architecture_is_tested() -> None:
    assert set(KINDS.values()) == set(NAMES)


def _weights(parameters: Parameters, config: DecoderConfig) -> list[np.ndarray[Any, Any]]:
    """Tensors of the first layer, and around the layers."""
    norms = [parameters.final_norm(), parameters.embedding_norm()]
    norms += [
        parameters.norm(0, role, config.hidden)
        for role in ("attention_norm", "mlp_norm")
        if parameters.has_norm(0, role)
    ]
    products = [*parameters.queries_keys_values(0), parameters.output(0), parameters.down(0)]
    products += parameters.gate_up(0) if config.gated else [parameters.up(0)]
    arrays = [each for norm in norms if isinstance(norm, Norm) for each in (norm.weight, norm.bias)]
    arrays += [each for product in products for each in (product.weight.data, product.bias)]
    return [each for each in arrays if each is not None]


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return [_rounded(each) for each in value]
    return float(np.float32(value)) if isinstance(value, float) else value
