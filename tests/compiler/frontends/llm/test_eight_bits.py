"""8-bit matmuls against PyTorch with the same rounded weights and operands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import compiler
from compiler.frontends.llm import LanguageModelOptions, import_language_model
from tests.compiler.frontends.llm.families import greedy, save_model

pytest.importorskip("transformers")


def _in_eight_bits(values: torch.Tensor, scale: torch.dtype) -> torch.Tensor:
    """Round groups of 32 elements along the last axis to multiples of a scale of this type."""
    depth = values.shape[-1]
    groups = torch.nn.functional.pad(values, (0, -depth % 32)).reshape(*values.shape[:-1], -1, 32)
    scales = (groups.abs().amax(-1, keepdim=True) / 127).to(scale).to(torch.float32)
    return ((groups / scales).round() * scales).nan_to_num().flatten(-2)[..., :depth]


@pytest.mark.parametrize("name", ["llama", "gemma3n_text", "gemma4_text"])
def test_products_in_eight_bits_round_as_the_same_products_in_pytorch(name: str, tmp_path: Path) -> None:
    """Random weights of Gemma 3n and 4 amplify small changes, so only the same rounding gives similar logits."""
    reference = save_model(name, tmp_path)
    options = LanguageModelOptions("int8", cache="float32")
    module = compiler.compile(import_language_model(tmp_path, options), threads=1)
    prompt = np.random.default_rng(23).integers(1, reference.config.vocab_size, 23)
    [exact], _ = greedy(reference, prompt, 1)
    with torch.no_grad():
        for key, parameter in reference.named_parameters():
            if parameter.ndim == 2 and ".altup." not in key:
                parameter.copy_(_in_eight_bits(parameter, torch.float16))
    for key, part in reference.named_modules():
        if isinstance(part, torch.nn.Linear) and ".altup." not in key:
            part.register_forward_pre_hook(lambda _, given: (_in_eight_bits(given[0], torch.float32), *given[1:]))
    [wanted], _ = greedy(reference, prompt, 1)
    session = module.session(capacity=32)
    # One by one: a prompt's attention may round its operands to bfloat16.
    found = [session.run([token[None, None]])["logits"][0, 0] for token in prompt][-1]
    assert (
        abs(found - wanted).max() < 0.1 * abs(exact - wanted).max()
    )  # a number between two steps may be rounded apart
