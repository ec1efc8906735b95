"""Tokenizers of folders without a complete tokenizer.json, against transformers and the same pieces in a GGUF file."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from compiler.errors import InvalidModelError
from compiler.frontends.llm.gguf_file import GgufFile
from compiler.frontends.llm.gguf_tokenizer import read_gguf_tokenizer
from compiler.frontends.llm.tokenizer_files import read_tokenizer_files
from tests.compiler.generation.other_tokenizers import RULES, charsmap

_TEXTS = ["Hello <think>world</think>, 1234!", "  naïve café\n\n\ttabs", "don't  stop", "", "日本語 e\u0301"]
_PIECES = ["<unk>", "<s>", "</s>", "<0x41>", "<user>", "\u2581", "a", "b", "ab", "\u2581a", "ba", "\u2581ab", "abab"]
_KINDS = [2, 3, 3, 6, 4, 1, 1, 1, 1, 1, 1, 1, 1]


def _trained(folder: Path) -> dict[str, Any]:
    """Write a byte-level tokenizer.json, and return it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["Hello world, do not stop the café. Hello again and again, world."] * 9, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return dict(json.loads((folder / "tokenizer.json").read_text()))


def _write(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(json.dumps(value))


def _ids(folder: Path) -> list[list[int]]:
    content = read_tokenizer_files(folder).content
    assert content is not None
    tokenizer = Tokenizer.from_str(content.decode())
    return [tokenizer.encode(text).ids for text in _TEXTS]


def _wanted(folder: Path) -> list[list[int]]:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return [tokenizer(text).input_ids for text in _TEXTS]


@pytest.mark.parametrize("older", [False, True])
def test_tokens_added_beside_the_file(older: bool, tmp_path: Path) -> None:
    count = len(_trained(tmp_path)["model"]["vocab"])
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    added = {"<think>": count, "</think>": count + 1}
    if older:
        _write(tmp_path, "added_tokens.json", added)
    else:
        flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word", "special"), False)
        settings["added_tokens_decoder"] = {
            str(number): {"content": text, **flags} for text, number in reversed(added.items())
        }
    _write(tmp_path, "tokenizer_config.json", settings)
    found = _ids(tmp_path)
    assert {count, count + 1} <= set(found[0])
    if not older:  # transformers 5 reads the newer form alone
        assert found == _wanted(tmp_path)


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "Qwen2Tokenizer"])
def test_a_vocabulary_and_merges(kind: str, tmp_path: Path) -> None:
    model = _trained(tmp_path)["model"]
    (tmp_path / "tokenizer.json").unlink()
    _write(tmp_path, "vocab.json", model["vocab"])
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs, ""]))
    named = {f"{name}_token": "</s>" for name in ("bos", "eos", "unk", "pad")}
    _write(tmp_path, "tokenizer_config.json", {"tokenizer_class": kind, **named})
    _write(tmp_path, "config.json", {"model_type": "gpt2"})
    assert _ids(tmp_path) == _wanted(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\nq \u0120zz\n")
    with pytest.raises(InvalidModelError, match=r"merges tokens that vocab\.json does not contain"):
        read_tokenizer_files(tmp_path)


def _sentence_piece(
    path: Path, model_type: int, *, prefix: bool, replaced: bytes = b"", collapses: bool = False, fallback: bool = False
) -> Any:
    """Write a file, and return its content."""
    from transformers.utils import sentencepiece_model_pb2_new as proto

    model = proto.ModelProto()
    for index, (text, kind) in enumerate(zip(_PIECES, _KINDS, strict=True)):
        model.pieces.add(piece=text, score=-float(index), type=kind)
    model.trainer_spec.model_type = model_type
    model.trainer_spec.bos_id, model.trainer_spec.pad_id = 1, -1
    model.normalizer_spec.add_dummy_prefix = prefix
    model.trainer_spec.byte_fallback = fallback
    model.normalizer_spec.precompiled_charsmap = replaced
    model.normalizer_spec.remove_extra_whitespaces = collapses
    path.write_bytes(model.SerializeToString())
    return model


@pytest.mark.parametrize("prefix", [False, True])
def test_a_file_of_sentencepiece_is_that_of_its_gguf_file(prefix: bool, tmp_path: Path) -> None:
    _sentence_piece(tmp_path / "tokenizer.model", 2, prefix=prefix)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(_PIECES)
    writer.add_token_scores([-float(index) for index in range(len(_PIECES))])
    writer.add_token_types(_KINDS)
    writer.add_bos_token_id(1)
    writer.add_unk_token_id(0)
    writer.add_add_space_prefix(prefix)
    writer.add_tensor("token_embd.weight", np.zeros((1, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    wanted = read_gguf_tokenizer(GgufFile(tmp_path / "model.gguf")).content
    found = read_tokenizer_files(tmp_path).content
    assert wanted is not None
    assert found is not None
    assert json.loads(found) == json.loads(wanted)
    whole = (tmp_path / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(whole[:-3])
    with pytest.raises(InvalidModelError, match="is not a SentencePiece file"):
        read_tokenizer_files(tmp_path)


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("collapses", [False, True])
@pytest.mark.parametrize("fallback", [False, True])
def test_unigram_is_read_as_by_transformers(prefix: bool, collapses: bool, fallback: bool, tmp_path: Path) -> None:
    from transformers.convert_slow_tokenizer import SpmConverter

    path, rules = tmp_path / "tokenizer.model", base64.b64decode(charsmap(RULES))
    model = _sentence_piece(path, 1, prefix=prefix, replaced=rules, collapses=collapses, fallback=fallback)
    scored = [(each.piece, each.score) for each in model.pieces]
    wanted = SpmConverter.build_tokenizer_from_spm_proto(model, scored, legacy=True)
    content = read_tokenizer_files(tmp_path).content
    assert content is not None
    found = Tokenizer.from_str(content.decode())
    for text in ("ab a", "  abab  b", "baA", "", "a", "qa q", "".join(RULES), "a\nb"):
        ids = found.encode(text, add_special_tokens=False).ids
        assert ids == wanted.encode(text, add_special_tokens=False).ids
        assert found.decode(ids, skip_special_tokens=False) == wanted.decode(ids)
    assert found.encode("a").ids[0] == 1


def test_other_types_of_sentencepiece_give_no_tokenizer(tmp_path: Path) -> None:
    _sentence_piece(tmp_path / "tokenizer.model", 3, prefix=True)
    assert read_tokenizer_files(tmp_path).content is None
