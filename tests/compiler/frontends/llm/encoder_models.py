"""Small random models with an encoder, written as transformers writes them, and what transformers computes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.compiler.generation.models import byte_tokenizer

START, END, IMAGE = 257, 256, "<image>"
WHISPER_TOKENS = [
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|en|>",
    "<|de|>",
    "<|translate|>",
    "<|transcribe|>",
    "<|notimestamps|>",
]
_TILES = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
IMAGE_TOKENS = ["<|end|>", "<|start|>", IMAGE, "<fake_token_around_image>", "<global-img>", *_TILES]
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}\n{% endfor %}a: "
)
_VOCABULARY = 280
_TEXT = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": _VOCABULARY,
    "pad_token_id": 0,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}
_VISION = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
_TOKENS = {"bos_token_id": START, "eos_token_id": END, "pad_token_id": 0, "decoder_start_token_id": START}


@dataclass(frozen=True)
class EncoderModel:
    """How to make a model.

    Attributes:
        kind: the class of transformers, without "Config" or "ForConditionalGeneration".
        config: settings for so many positions.
        reads: what the encoder reads, by the name of its input.
        factors: of weights whose names hold a text, chosen with the seed so that greedy tokens differ.
    """

    kind: str
    config: Callable[[int], dict[str, Any]]
    reads: str
    factors: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0


def _of_parts(**names: Any) -> dict[str, Any]:
    """Settings of an encoder and a decoder of one layer."""
    each = {"layers": 1, "attention_heads": 2, "ffn_dim": 48}
    both = {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in each.items()}
    return {"d_model": 32, "vocab_size": _VOCABULARY, "tie_word_embeddings": False, **both, **_TOKENS, **names}


def _whisper(positions: int) -> dict[str, Any]:
    return _of_parts(num_mel_bins=8, max_source_positions=50, max_target_positions=positions, init_std=0.3)


def _whisper_tiny(_: int) -> dict[str, Any]:
    """The sizes of openai/whisper-tiny."""
    each = {"layers": 4, "attention_heads": 6, "ffn_dim": 1536}
    both = {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in each.items()}
    return {"d_model": 384, "vocab_size": 51865, "num_mel_bins": 80, "init_std": 0.05, **both, **_TOKENS}


def _bart(positions: int) -> dict[str, Any]:
    return _of_parts(max_position_embeddings=positions, init_std=0.3)


def _t5(positions: int) -> dict[str, Any]:
    return {
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 48,
        "num_layers": 1,
        "num_heads": 2,
        "vocab_size": _VOCABULARY,
        "n_positions": positions,
        "tie_word_embeddings": False,
        "dropout_rate": 0.0,
        **_TOKENS,
    }


def _t5gemma(positions: int) -> dict[str, Any]:
    """Layers with and without a window in both parts."""
    part = {
        **{key: value for key, value in _TEXT.items() if key != "model_type"},
        "num_hidden_layers": 2,
        "head_dim": 8,
        "sliding_window": 9,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 8,
        "max_position_embeddings": positions,
        **_TOKENS,
    }
    return {"encoder": part, "decoder": dict(part), "vocab_size": _VOCABULARY, "tie_word_embeddings": False, **_TOKENS}


def _idefics(positions: int) -> dict[str, Any]:
    return {
        "vision_config": {**_VISION, "image_size": 16, "patch_size": 4},
        "text_config": {**_TEXT, "max_position_embeddings": positions},
        "image_token_id": 258,
        "scale_factor": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }


def _llava(positions: int) -> dict[str, Any]:
    vision = {**_VISION, "model_type": "clip_vision_model", "image_size": 16, "patch_size": 8, "projection_dim": 24}
    return {
        "vision_config": {**vision, "num_hidden_layers": 2},
        "text_config": {**_TEXT, "max_position_embeddings": positions},
        "image_token_index": 258,
        "tie_word_embeddings": False,
    }


def _gemma3(positions: int) -> dict[str, Any]:
    """Layers with and without a window, which is shorter than an image."""
    text = {
        **_TEXT,
        "model_type": "gemma3_text",
        "num_hidden_layers": 2,
        "head_dim": 8,
        "sliding_window": 3,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 8,
        "max_position_embeddings": positions,
    }
    vision = {**_VISION, "model_type": "siglip_vision_model", "image_size": 16, "patch_size": 4}
    return {
        "vision_config": vision,
        "text_config": text,
        "image_token_index": 258,
        "mm_tokens_per_image": 4,
        "boi_token_index": 259,
        "eoi_token_index": 260,
        "tie_word_embeddings": False,
    }


_POSITIONS = {"decoder.embed_positions": 4.0, "decoder.layers.0.self_attn.v_proj": 4.0}
_ATTENTION = {"shared": 0.1, "SelfAttention.v": 8.0, "SelfAttention.o": 8.0}
ENCODER_MODELS = {
    "whisper": EncoderModel("Whisper", _whisper, "input_features"),
    "whisper-tiny": EncoderModel("Whisper", _whisper_tiny, "input_features"),
    "bart": EncoderModel("Bart", _bart, "input_ids", _POSITIONS, seed=1),
    "t5": EncoderModel("T5", _t5, "input_ids", _ATTENTION, seed=2),
    "t5gemma": EncoderModel("T5Gemma", _t5gemma, "input_ids", seed=3),
    "llava": EncoderModel("Llava", _llava, "pixel_values"),
    "smolvlm": EncoderModel("SmolVLM", _idefics, "pixel_values"),
    "idefics3": EncoderModel("Idefics3", _idefics, "pixel_values"),
    "gemma3": EncoderModel("Gemma3", _gemma3, "pixel_values"),
}


def save_encoder_model(name: str, folder: Path, positions: int = 96) -> Any:
    """Write a random model, its tokenizer and its processor; returns the torch module, in evaluation mode."""
    import torch
    import transformers

    made = ENCODER_MODELS[name]
    torch.manual_seed(made.seed or len(name))
    config = getattr(transformers, f"{made.kind}Config")(**made.config(positions))
    model = getattr(transformers, f"{made.kind}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            # Large enough that tokens differ: positions and what the encoder found count as much as the last token.
            scale = 0.05 if name == "whisper-tiny" else 0.12
            parameter.add_((5 * scale if "embed_positions" in key else scale) * torch.randn_like(parameter))
            for text, factor in made.factors.items():
                parameter.mul_(factor if text in key else 1.0)
    model.generation_config.eos_token_id = None
    if made.reads == "pixel_values":
        model.generation_config.suppress_tokens = [258]  # a text that goes on with an image cannot be read again
    model.save_pretrained(folder)
    tokens = WHISPER_TOKENS if made.kind == "Whisper" else IMAGE_TOKENS
    (folder / "tokenizer.json").write_text(json.dumps(byte_tokenizer(tokens)))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    processors = {
        "llava": {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}},
        "smolvlm": {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}},
        "idefics3": {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}},
        "gemma3": {"size": {"height": 16, "width": 16}},
    }
    if name in processors:
        (folder / "preprocessor_config.json").write_text(json.dumps(processors[name]))
    return model


def encoder_input(name: str, random: np.random.Generator, size: int = 12) -> dict[str, np.ndarray[Any, Any]]:
    """Random inputs of the encoder; `size`: tokens of a text, or images."""
    made = ENCODER_MODELS[name]
    if made.reads == "input_ids":
        return {made.reads: random.integers(1, 256, (1, size))}
    shapes = {"whisper": (1, 8, 100), "whisper-tiny": (1, 80, 3000), "llava": (size, 3, 16, 16)}
    shapes["gemma3"] = shapes["llava"]
    shape = shapes.get(name, (1, size, 3, 16, 16))
    return {made.reads: random.standard_normal(shape).astype(np.float32)}


def encoder_greedy(model: Any, prompt: list[int], count: int, **inputs: Any) -> tuple[list[Any], list[int]]:
    """Logits and tokens, one after another, each from the whole text anew."""
    import torch

    name = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
    given = {key: torch.as_tensor(value) for key, value in inputs.items()}
    rows, tokens = [], list(prompt)
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            given = {"encoder_outputs": model.get_encoder()(*given.values())}
        for _ in range(count):
            if model.config.model_type == "gemma3":  # 1 for tokens of images, which see one another
                given["token_type_ids"] = torch.tensor([[int(token == 258) for token in tokens]])
            rows.append(model(**{name: torch.tensor([tokens])}, **given).logits[0, -1].numpy())
            best = rows[-1].copy()
            best[model.generation_config.suppress_tokens or []] = -np.inf
            tokens.append(int(best.argmax()))
    return rows, tokens[len(prompt) :]
