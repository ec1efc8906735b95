"""GGUF files and folders: their stored values are used unchanged, and broken files give one clear error."""

from __future__ import annotations

import json
import os
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import compiler
from compiler.errors import InvalidModelError, OptionError, StorageError, UserError
from compiler.frontends.llm import LanguageModelOptions, import_language_model
from compiler.frontends.llm.gguf_file import GgufFile
from compiler.frontends.llm.gguf_tokenizer import read_gguf_tokenizer
from compiler.frontends.llm.safetensors_folder import SafetensorsFolder
from compiler.frontends.llm.tokenizer_files import TokenizerFiles
from tests.compiler.frontends.llm.expert_gguf import write_expert_gguf
from tests.compiler.frontends.llm.families import save_model
from tests.compiler.generation.models import GGUF_NAMES, interleaved, weights, write_folder, write_gguf
from tests.compiler.generation.other_tokenizers import CORPUS

PROMPT = np.array([list(b"Once upon a time")])
EXACT = LanguageModelOptions(activations="float32", all_logits=True, cache="float32")


def _logits(path: Path, options: LanguageModelOptions = EXACT) -> np.ndarray[Any, Any]:
    module = compiler.compile(import_language_model(path, options), threads=1)
    found: np.ndarray[Any, Any] = module.session(capacity=32).run([PROMPT])["logits"][0]
    return found


@pytest.mark.parametrize("kind", ["Q4_1", "BF16"])
def test_a_gguf_file_computes_with_the_numbers_that_it_stores(kind: str, tmp_path: Path) -> None:
    found = _logits(write_gguf(tmp_path / "model.gguf", kind))
    # The same numbers as float32 in a folder of transformers, whose arithmetic test_decoder checks.
    folder = write_folder(tmp_path)
    stored, block = {}, gguf.GGMLQuantizationType[kind]
    for name, values in load_file(folder / "model.safetensors").items():
        stored[name] = values if values.ndim == 1 else gguf.dequantize(gguf.quantize(values, block), block)
    save_file(stored, folder / "model.safetensors")
    np.testing.assert_allclose(found, _logits(folder), rtol=0, atol=1e-5 * abs(found).max())


def test_stacked_experts_of_a_gguf_file_are_those_of_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    sizes = {"hidden_size": 64, "vocab_size": 260, "num_hidden_layers": 1, "mlp_only_layers": []}
    save_model("qwen2_moe", tmp_path, **sizes, moe_intermediate_size=64, shared_expert_intermediate_size=32)
    stored = write_expert_gguf(tmp_path / "model.gguf", tmp_path, "qwen2moe", "Q4_0")
    save_file({name: np.ascontiguousarray(values) for name, values in stored.items()}, tmp_path / "model.safetensors")
    found = _logits(tmp_path / "model.gguf")
    np.testing.assert_allclose(found, _logits(tmp_path), rtol=0, atol=1e-5 * abs(found).max())


def test_the_tokenizer_and_the_template_of_a_gguf_file_are_kept(tmp_path: Path) -> None:
    from compiler.generation.language_model import LanguageModel

    module = compiler.compile(write_gguf(tmp_path / "model.gguf", "Q8_0"), threads=1)
    model = LanguageModel(module)
    assert model.tokens_of("né🎉") == list("né🎉".encode())
    assert model.tokens_of([{"role": "user", "content": "Hi"}]) == [257, *b"Hi", 256, 258]
    assert model.description.stop_tokens == (256,)
    assert model.generate("Hi", max_new_tokens=2).prompt_tokens == 2


def test_a_tokenizer_that_is_not_supported_is_noted(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", "F32")
    assert not import_language_model(path).notes
    path.write_bytes(path.read_bytes().replace(b"gpt-2", b"gpt-7"))
    (note,) = import_language_model(path).notes
    assert "(model 'gpt2', pre-tokenizer 'gpt-7'): the module takes and returns tokens" in note


def test_merges_are_kept_as_texts_that_read_sooner() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    for letter, expected in (("b", ["a b"]), (" ", [["a", " "]])):
        vocabulary = {"a": 0, letter: 1, f"a{letter}": 2}
        content = {"version": "1.0", "model": {"type": "BPE", "vocab": vocabulary, "merges": [["a", letter]]}}
        stored = TokenizerFiles(json.dumps(content).encode(), ()).stored()
        assert stored is not None
        assert json.loads(stored)["model"]["merges"] == expected
        assert tokenizers.Tokenizer.from_str(stored.decode()).encode(f"a{letter}").ids == [2]
    with pytest.raises(InvalidModelError, match="not valid Unicode"):
        TokenizerFiles(b'{"model": {"vocab": {"\\ud800": 0}}}', ()).stored()


@pytest.mark.parametrize(("precision", "most"), [("int8", 0.03), ("int4", 0.4)])
def test_weights_are_rounded_on_request(precision: str, most: float, tmp_path: Path) -> None:
    wanted = _logits(write_folder(tmp_path))
    found = _logits(tmp_path, LanguageModelOptions(precision, "float32", all_logits=True))
    error = float(np.sqrt(((found - wanted) ** 2).mean() / (wanted**2).mean()))
    assert most / 20 < error < most


def test_quantized_weights_are_rounded_again_on_request(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", "Q8_0")
    wanted = _logits(path)
    found = _logits(path, LanguageModelOptions("int4", "float32", all_logits=True, cache="float32"))
    assert 0.01 < np.sqrt(((found - wanted) ** 2).mean() / (wanted**2).mean()) < 0.4


def test_a_truncated_gguf_file_is_one_error(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "model.gguf", "Q8_0").read_bytes()
    for size in (4, 20, 300, 5000, len(whole) // 2, len(whole) - 10):
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        with pytest.raises(InvalidModelError, match="truncated or damaged"):
            import_language_model(tmp_path / "cut.gguf")


def test_a_damaged_gguf_file_is_an_error_of_the_project(tmp_path: Path) -> None:
    whole = bytearray(write_gguf(tmp_path / "model.gguf", "Q8_0").read_bytes())
    random = np.random.default_rng(0)
    for _ in range(60):
        changed = bytearray(whole)
        for place in random.integers(4, 6000, 3):
            changed[place] = int(random.integers(256))
        (tmp_path / "damaged.gguf").write_bytes(changed)
        with suppress(UserError):
            import_language_model(tmp_path / "damaged.gguf")


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def _tensor(name: str, shape: tuple[int, ...], offset: int) -> bytes:
    return _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, offset)


@pytest.mark.parametrize(
    ("tensors", "entries", "content"),
    [
        (0, 1 << 60, b""),
        (1 << 60, 0, b""),
        (0, 1, struct.pack("<Q", 1 << 62)),
        (0, 1, _text("list") + struct.pack("<IIQ", 9, 4, 1 << 60)),  # of integers, at the end of the file
        (0, 1, _text("list") + struct.pack("<IIQ", 9, 0, 1 << 23) + bytes(1 << 23)),
        (0, 1, _text("list") + struct.pack("<IIQIQ", 9, 9, 1, 4, 0)),  # a list of lists
        (0, 1, _text("general.alignment") + struct.pack("<II", 4, 0)),
        (1, 0, _tensor("a", (1 << 40, 1 << 40), 0)),
        (1, 0, _tensor("a", (0,), 0)),
        (1, 0, _tensor("a", (4,), 1 << 62)),
        (2, 0, _tensor("a", (16,), 0) + _tensor("b", (16,), 32)),
    ],
)
def test_absurd_counts_and_offsets_of_a_gguf_file_are_one_error(
    tensors: int, entries: int, content: bytes, tmp_path: Path
) -> None:
    header = b"GGUF" + struct.pack("<IQQ", 3, tensors, entries)
    (tmp_path / "model.gguf").write_bytes(header + content + bytes(200))
    with pytest.raises(InvalidModelError, match="truncated or damaged"):
        import_language_model(tmp_path / "model.gguf")


@pytest.mark.parametrize("order", ["little", "big"])
def test_lists_of_a_gguf_file_are_what_its_package_reads(order: str, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    lists = {"f": [0.5, -1.5], "i": [1, -(2**31)], "b": [True, False], "s": ["", "ä", "x" * 300]}
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", endianess=getattr(gguf.GGUFEndian, order.upper()))
    for name, values in lists.items():
        writer.add_key_value(name, values, gguf.GGUFValueType.ARRAY, sub_type=_SUB_TYPES[name](gguf.GGUFValueType))
    writer.add_tensor("t", np.arange(32, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file, expected = GgufFile(tmp_path / "m.gguf"), gguf.GGUFReader(tmp_path / "m.gguf")
    for name, values in lists.items():
        assert file.value(name) == values
        assert file.value(name) == expected.fields[name].contents()
    assert file.names == {"t"}


_SUB_TYPES: dict[str, Any] = {
    "f": lambda kinds: kinds.FLOAT32,
    "i": lambda kinds: kinds.INT32,
    "b": lambda kinds: kinds.BOOL,
    "s": lambda kinds: kinds.STRING,
}


@pytest.mark.parametrize(
    "header",
    [
        "[" * 100_000,
        '{"a": {"dtype": "F32", "shape": [1e400], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1e400]}}',
        '{"a": {"dtype": "F32", "shape": [0, 1000000000000000000000], "data_offsets": [0, 0]}}',
        '{"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}',
        '{"a": 5}',
    ],
)
def test_a_damaged_safetensors_header_is_one_error(header: str, tmp_path: Path) -> None:
    write_folder(tmp_path)
    content = struct.pack("<Q", len(header)) + header.encode() + bytes(64)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InvalidModelError, match="truncated or"):
        import_language_model(tmp_path)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "..", ".", "", "a\0b", "a" * 5000, "\ud800", "é" * 200]
)
def test_an_index_cannot_name_files_outside_of_its_folder(name: str, tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    with pytest.raises(InvalidModelError, match="not in its folder"):
        import_language_model(tmp_path)


def test_a_pipe_in_place_of_weights_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(StorageError, match="not a regular file"):
        import_language_model(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[:5], "model-2.safetensors": names[5:]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    whole = import_language_model(tmp_path)
    assert whole.assets
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(StorageError, match=r"lacks 1 of 2 files of weights: model-2\.safetensors"):
        import_language_model(tmp_path)


def test_the_files_of_a_split_gguf_model_are_read_together(tmp_path: Path) -> None:
    whole = GgufFile(write_gguf(tmp_path / "whole.gguf", "F32"))
    write_gguf(tmp_path / "model.gguf", "F32", split_max_tensors=5)
    first, second, third = sorted(tmp_path.glob("model-*-of-00003.gguf"))
    assert GgufFile(first).names == whole.names
    with pytest.raises(InvalidModelError, match=r"give the first: model-00001-of-00003\.gguf"):
        GgufFile(second)
    with pytest.raises(InvalidModelError, match="its name does not say which"):
        GgufFile(first.rename(tmp_path / "other.gguf"))
    (tmp_path / "other.gguf").rename(first)
    third.unlink()
    with pytest.raises(StorageError, match=r"lacks 1 of 3 files of weights: model-00003-of-00003\.gguf"):
        GgufFile(first)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 250}, "the tokenizer has token"),
        ({"hidden_size": 128}, "has shape"),
        ({"num_hidden_layers": 2}, "lacks the tensor"),
        ({"num_attention_heads": 0}, "not a size"),
        ({"rope_scaling": {"rope_type": "linear"}}, "'factor' is None"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 0}}, "rope scaling"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "rope scaling"),
        ({"num_hidden_layers": 2000000000}, "at most 4096"),
        ({"hidden_size": None}, "is missing"),
        ({"head_dim": 2000000000}, "at most 16384"),
        ({"num_attention_heads": 1 << 30}, "at most 16384"),
        ({"num_key_value_heads": -1}, "not a size"),
        ({"partial_rotary_factor": 1e300}, "its part"),
        ({"rope_theta": float("inf")}, "not a number"),
        ({"eos_token_id": 1 << 40}, "not a token"),
        ({"eos_token_id": 5000}, "has token 5000"),
    ],
)
def test_a_config_that_does_not_fit_is_one_error(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_folder(tmp_path, **changes)
    with pytest.raises(InvalidModelError, match=message):
        import_language_model(tmp_path)


def test_tensors_that_would_be_left_out_are_an_error(tmp_path: Path) -> None:
    write_folder(tmp_path)
    tensors = weights() | {"model.layers.0.self_attn.sinks": np.zeros(4, np.float32)}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InvalidModelError, match=r"model\.layers\.0\.self_attn\.sinks"):
        import_language_model(tmp_path)


@pytest.mark.parametrize("changes", [{"model_type": "another"}, {"hidden_act": "mish"}, {"quantization_config": {}}])
def test_what_is_not_supported_is_named(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As where transformers is not installed, whose own code would be captured.
    monkeypatch.setattr("compiler.frontends.llm.importer.is_available", lambda: False)
    if "quantization_config" in changes:
        changes = {"quantization_config": {"quant_method": "aqlm"}}
    write_folder(tmp_path, **changes)
    with pytest.raises(OptionError, match=r"not supported|aqlm"):
        import_language_model(tmp_path)


def test_interleaving_is_what_llama_cpp_does() -> None:
    rows = np.arange(32)[:, None]
    assert interleaved(rows)[:6, 0].tolist() == [0, 8, 1, 9, 2, 10]
    assert len(GGUF_NAMES) == 11


def test_the_tokenizer_of_gemma_4_splits_as_that_of_transformers(tmp_path: Path) -> None:
    """Its merges are a list; text is merged within lines, with byte fallback."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.normalizer = normalizers.Replace(" ", "\u2581")
    trained.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n+"), "isolated")
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False)
    trained.train_from_iterator([*CORPUS, "a  b\n\n\n\nc   d\n"] * 4, trainer)
    model = json.loads(trained.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    reference = transformers.GemmaTokenizer(vocab=model["vocab"], merges=[tuple(each) for each in model["merges"]])
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "gemma4")
    writer.add_tokenizer_model("gemma4")
    writer.add_token_list(tokens)
    kinds = [gguf.TokenType.CONTROL] * 5 + [gguf.TokenType.BYTE] * 256
    writer.add_token_types([*kinds, *[gguf.TokenType.NORMAL] * (len(tokens) - len(kinds))])
    writer.add_token_merges([" ".join(each) for each in model["merges"]])
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(True)
    writer.add_tensor("unread", np.zeros(1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    files = read_gguf_tokenizer(GgufFile(tmp_path / "model.gguf"))
    assert files.content is not None
    found = Tokenizer.from_str(files.content.decode())
    random = np.random.default_rng(0)
    pieces = [*CORPUS, *CORPUS[0].split(" "), "\n", "\n\n", " ", "  ", "\t", "\r\n", "\u20ac", "\U0001f9ea", "<bos>"]
    for _ in range(200):
        text = "".join(random.choice(pieces, int(random.integers(1, 8))))
        ids = found.encode(text).ids
        assert ids == [2, *reference.encode(text, add_special_tokens=False)], repr(text)  # 2: <bos>
        assert found.decode(ids) == reference.decode(ids, skip_special_tokens=True)


def _as_torch_saves(folder: Path, files: int) -> None:
    """Replace the folder's safetensors by as many files of torch.save."""
    torch = pytest.importorskip("torch")
    stored = {name: torch.from_numpy(values) for name, values in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    norm = torch.nn.Parameter(stored.pop("model.norm.weight"))
    parts = [dict(list(stored.items())[each::files]) for each in range(files)]
    parts[0]["model.norm.weight"] = norm
    names = [f"pytorch_model-{each}.bin" for each in range(files)] if files > 1 else ["pytorch_model.bin"]
    for name, part in zip(names, parts, strict=True):
        torch.save(part, folder / name)
    if files > 1:
        table = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": table}))


@pytest.mark.parametrize("files", [1, 3])
def test_files_of_torch_save_hold_the_same_weights(files: int, tmp_path: Path) -> None:
    wanted = _logits(write_folder(tmp_path))
    _as_torch_saves(tmp_path, files)
    np.testing.assert_array_equal(_logits(tmp_path), wanted)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "int64", "uint8"])
def test_tensors_of_torch_save(dtype: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    whole = torch.arange(24).reshape(4, 6).to(getattr(torch, dtype))
    model = torch.nn.Linear(3, 2)
    torch.save({"part": whole[1:3], "whole": whole, "none": whole[:0]}, tmp_path / "pytorch_model.bin")
    found = SafetensorsFolder(tmp_path)
    assert not found.is_safetensors
    for name, wanted in (("part", whole[1:3]), ("whole", whole), ("none", whole[:0])):
        np.testing.assert_array_equal(found.stored(name).astype(np.float64), wanted.double().numpy())
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")  # a subclass of dict with attributes
    assert SafetensorsFolder(tmp_path).names == {"weight", "bias"}
    for wrong in (whole.T, {"a": whole.T}, {"a": 1}, model):
        torch.save(wrong, tmp_path / "pytorch_model.bin")
        with pytest.raises(InvalidModelError, match="cannot be read without running it"):
            SafetensorsFolder(tmp_path)
    torch.save({"a": whole}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(InvalidModelError, match="cannot be read without running it"):
        SafetensorsFolder(tmp_path)


class _Runs:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def test_programs_in_files_of_torch_save_do_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    torch.save({"a": _Runs()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InvalidModelError, match=r"it calls posix\.mkdir"):
        SafetensorsFolder(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_damaged_file_of_torch_save_is_an_error_of_the_project(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "pytorch_model.bin"
    torch.save({f"tensor{each}": torch.ones(3, each) for each in range(4)}, path)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(whole)
        for place in random.integers(0, len(whole), 3):
            changed[place] = int(random.integers(256))
        path.write_bytes(changed)
        with suppress(UserError):
            read = SafetensorsFolder(tmp_path)
            assert all(read.vector(name).shape == read.shape(name) for name in read.names)


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_saved_without_a_head(tied: bool, tmp_path: Path) -> None:
    wanted = _logits(write_folder(tmp_path, tie_word_embeddings=True))
    stored = load_file(tmp_path / "model.safetensors")
    write_folder(tmp_path, tie_word_embeddings=tied, architectures=["LlamaModel"])
    save_file({name.removeprefix("model."): values for name, values in stored.items()}, tmp_path / "model.safetensors")
    if tied:
        np.testing.assert_array_equal(_logits(tmp_path), wanted)
        assert compiler.compile(tmp_path, threads=1).artifact.assets
    else:
        with pytest.raises(InvalidModelError, match=r"has no head \(lm_head\.weight\), and config\.json does not tie"):
            compiler.compile(tmp_path, threads=1)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model.", "language_model."])
def test_tensors_of_a_text_part_with_the_config_of_a_text_model(prefix: str, tmp_path: Path) -> None:
    wanted = _logits(write_folder(tmp_path, tie_word_embeddings=True))
    stored = load_file(tmp_path / "model.safetensors")
    others = {"vision_tower.weight": np.ones((2, 3), np.float32)}
    renamed = {prefix + name.removeprefix("model."): values for name, values in stored.items()}
    save_file({**renamed, **others}, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(_logits(tmp_path), wanted)
