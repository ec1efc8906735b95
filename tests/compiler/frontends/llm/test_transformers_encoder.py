"""Models of two parts generate what transformers does: Whisper, and a model of images and text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import compiler
from compiler.errors import InputError, OptionError
from compiler.generation import LanguageModel, Scheduler

transformers = pytest.importorskip("transformers")

_TEXT = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "eos_token_id": None,
}
_IMAGE = 90


def _greedy(model: Any, prompt: list[int], count: int, **inputs: Any) -> list[int]:
    """Token by token, each from the whole text anew."""
    name = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            scores = model(**{name: torch.tensor([tokens])}, **inputs).logits[0, -1]
            scores[model.generation_config.suppress_tokens or []] = -torch.inf
            tokens.append(int(scores.argmax()))
    return tokens[len(prompt) :]


def test_whisper_transcribes_as_transformers_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = dict.fromkeys(("encoder_layers", "decoder_layers"), 1)
    heads = dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
    widths = dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 48)
    tokens = {"bos_token_id": 1, "eos_token_id": 98, "pad_token_id": 0, "decoder_start_token_id": 3}
    config = transformers.WhisperConfig(
        d_model=32,
        num_mel_bins=8,
        max_source_positions=12,
        max_target_positions=40,
        vocab_size=100,
        init_std=0.3,
        **layers,
        **heads,
        **widths,
        **tokens,
    )
    reference = transformers.WhisperForConditionalGeneration(config).eval()
    features = torch.randn(1, 8, 24)
    (loud,) = set(_greedy(reference, [3], 1, input_features=features))  # which is suppressed then
    reference.generation_config.suppress_tokens = [loud, 98]
    reference.generation_config.begin_suppress_tokens = [50_000]  # no token of this vocabulary
    reference.save_pretrained(tmp_path)
    model = LanguageModel(compiler.compile(tmp_path, threads=1))
    inputs = {"input_features": features.numpy()}
    for prompt in ([3, 20, 21], [3]):
        expected = _greedy(reference, prompt, 20, input_features=features)
        given: Any = "" if prompt == [3] else prompt
        assert list(model.generate(given, inputs=inputs, max_new_tokens=20).tokens) == expected
    with pytest.raises(InputError, match="reads input_features"):
        model.generate([3])
    with pytest.raises(InputError, match="input_features"):
        Scheduler(model)


def test_images_stand_where_their_tokens_do(tmp_path: Path) -> None:
    torch.manual_seed(1)
    vision = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.SmolVLMConfig(
        vision_config={**vision, "image_size": 16, "patch_size": 4},
        text_config=_TEXT,
        image_token_id=_IMAGE,
        scale_factor=2,
        pad_token_id=0,
    )
    reference = transformers.SmolVLMForConditionalGeneration(config).eval()
    reference.generation_config.eos_token_id = None
    reference.save_pretrained(tmp_path)
    model = LanguageModel(compiler.compile(tmp_path, threads=1))
    for images in (1, 2):
        prompt = [5, *[_IMAGE] * 4 * images, 7, 8]
        pixels = torch.randn(1, images, 3, 16, 16)
        expected = _greedy(reference, prompt, 16, pixel_values=pixels)
        result = model.generate(prompt, inputs={"pixel_values": pixels.numpy()}, max_new_tokens=16)
        assert list(result.tokens) == expected
    expected = _greedy(reference, [5, 6], 8)
    assert list(model.generate([5, 6], max_new_tokens=8).tokens) == expected
    with pytest.raises(InputError, match=f"take 8 tokens, but the prompt holds 3 of token {_IMAGE}"):
        model.generate([_IMAGE] * 3, inputs={"pixel_values": pixels.numpy()})
    with pytest.raises(InputError, match="nothing was given"):
        model.generate([_IMAGE] * 3)


def test_images_that_change_positions_are_refused(tmp_path: Path) -> None:
    vision = {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 32}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    config = transformers.Qwen2VLConfig(
        vision_config=vision, text_config={**_TEXT, "model_type": "qwen2_vl_text", "rope_parameters": rope}
    )
    transformers.Qwen2VLForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(OptionError, match="'qwen2_vl' are not supported"):
        compiler.compile(tmp_path)
