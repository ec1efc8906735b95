from __future__ import annotations

import asyncio

import numpy as np
import pytest

from compiler.artifact import TensorDescription
from compiler.errors import OptionError
from compiler.serving.request import Request, Response
from compiler.serving.text.embedder import ServiceEmbedder
from compiler.serving.text.service import TextOptions

TABLE = np.random.default_rng(0).standard_normal((100, 4)).astype(np.float32)


class Means:
    """The mean of the vectors of a text's tokens; of those that the mask keeps, if it is looked at."""

    name, version = "means", "1"
    outputs = (TensorDescription(name="vector", shape=("batch", 4), dtype="float32"),)

    def __init__(self, masked: bool) -> None:
        names = ("input_ids", "attention_mask") if masked else ("input_ids",)
        self.inputs = tuple(TensorDescription(name=name, shape=("batch", "length"), dtype="int64") for name in names)
        self.lengths: list[int] = []

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def infer(self, request: Request) -> Response:
        ids = request.inputs["input_ids"]
        self.lengths.append(ids.shape[1])
        mask = request.inputs.get("attention_mask", np.ones_like(ids)).astype(np.float32)[:, :, None]
        return Response({"vector": (TABLE[ids] * mask).sum(1) / mask.sum(1)}, "means/1/default")


def test_texts_of_about_the_same_length_are_padded_to_one() -> None:
    service = Means(masked=True)
    embedder = ServiceEmbedder(service, TextOptions(pad_to_multiple_of=8, max_tokens=20, normalize=False))
    texts = [list(range(1, count + 1)) for count in (8, 5, 7, 9, 18)]
    vectors, _ = asyncio.run(embedder.embed(texts, Request({})))
    assert service.lengths == [5, 8, 8, 8, 8, 16, 20]  # the first two are the proof
    np.testing.assert_allclose(vectors, [TABLE[text].mean(axis=0) for text in texts], rtol=1e-5, atol=1e-6)
    asyncio.run(embedder.embed(texts[1:2], Request({})))
    assert service.lengths[7:] == [8]


def test_padding_that_changes_vectors_is_refused() -> None:
    embedder = ServiceEmbedder(Means(masked=False), TextOptions(pad_to_multiple_of=8))
    with pytest.raises(OptionError, match="depend on padding"):
        asyncio.run(embedder.embed([[1, 2, 3]], Request({})))
    with pytest.raises(OptionError, match="pad_to_multiple_of"):
        TextOptions(pad_to_multiple_of=0)
