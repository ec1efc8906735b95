"""The embedding cache: each row is computed once, across batches and requests."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from compiler.artifact import TensorDescription
from compiler.errors import InputError, OptionError
from compiler.serving.caches.embedding import EmbeddingCache, EmbeddingCacheOptions
from compiler.serving.request import Request, Response
from tests.compiler.serving.services import FunctionService, request


def test_known_rows_of_a_batch_are_not_computed() -> None:
    async def scenario() -> None:
        service = FunctionService()
        cache = EmbeddingCache(service)
        await cache.infer(request(1, 2))
        mixed = await cache.infer(request(2, 3, 1, 3))
        assert np.array_equal(mixed.outputs["y"], request(2, 3, 1, 3).inputs["x"] * 2)
        assert service.rows == 3
        assert mixed.cached is None
        assert mixed.notes["cached_rows"] == 3
        known = await cache.infer(request(3, 3))
        assert service.rows == 3
        assert known.cached == "embedding"
        assert known.timing.batch_rows == 0
        assert (await cache.infer(request())).outputs["y"].shape == (0, 2)

    asyncio.run(scenario())


def test_rows_that_another_request_computes_are_awaited() -> None:
    async def scenario() -> None:
        service = FunctionService()
        service.gate = asyncio.Event()
        cache = EmbeddingCache(service)
        tasks = [asyncio.create_task(cache.infer(request(*rows))) for rows in ((1, 2), (2, 3), (3, 1))]
        for _ in range(3):
            await asyncio.sleep(0)
        service.gate.set()
        answers = await asyncio.gather(*tasks)
        assert service.rows == 3
        assert [list(each.outputs["y"][:, 0]) for each in answers] == [[2, 4], [4, 6], [6, 2]]

    asyncio.run(scenario())


@pytest.mark.parametrize("cancelled", [True, False])
def test_rows_that_failed_for_another_request_are_computed_again(cancelled: bool) -> None:
    async def scenario() -> None:
        service = FunctionService()
        service.gate = asyncio.Event()
        service.failures = [] if cancelled else [InputError("bad")]
        cache = EmbeddingCache(service)
        first = asyncio.create_task(cache.infer(request(1, 2)))
        await asyncio.sleep(0)
        second = asyncio.create_task(cache.infer(request(2)))
        await asyncio.sleep(0)
        if cancelled:
            first.cancel()
        service.gate.set()
        failed: object
        answer: Response | BaseException
        failed, answer = await asyncio.gather(first, second, return_exceptions=True)
        assert isinstance(failed, asyncio.CancelledError if cancelled else InputError)
        assert not isinstance(answer, BaseException)
        assert answer.outputs["y"][0, 0] == 4

    asyncio.run(scenario())


class Tokens(FunctionService):
    """Sums of tokens where the mask is 1."""

    @property
    def inputs(self) -> tuple[TensorDescription, ...]:
        return tuple(TensorDescription(name=name, shape=("batch", "length"), dtype="int64") for name in ("ids", "mask"))

    async def infer(self, request: Request) -> Response:
        self.asked.append(request)
        total = (request.inputs["ids"] * request.inputs["mask"]).sum(axis=1, keepdims=True)
        return Response({"y": np.repeat(total.astype(np.float32), 2, axis=1)}, "tokens/1/default")


def test_padding_does_not_count_where_a_mask_is_named() -> None:
    def tokens(*ids: int, length: int) -> Request:
        row = np.zeros((1, length), np.int64)
        row[0, : len(ids)] = ids
        mask = (np.arange(length) < len(ids))[None].astype(np.int64)
        return Request({"ids": row, "mask": mask})

    async def scenario() -> None:
        for mask, computed in (("mask", 1), (None, 2)):
            service = Tokens()
            cache = EmbeddingCache(service, EmbeddingCacheOptions(mask=mask))
            for length in (4, 9):
                answer = await cache.infer(tokens(5, 6, length=length))
                assert answer.outputs["y"][0, 0] == 11
            assert len(service.asked) == computed
        await cache.infer(tokens(5, 6, 0, length=9))  # a token 0 that is not padding is another row
        assert len(service.asked) == 3

    asyncio.run(scenario())


def test_models_whose_rows_have_no_one_size_are_refused() -> None:
    class Sequences(FunctionService):
        @property
        def outputs(self) -> tuple[TensorDescription, ...]:
            return (TensorDescription(name="y", shape=("batch", "length"), dtype="float32"),)

    class Unbatched(FunctionService):
        @property
        def outputs(self) -> tuple[TensorDescription, ...]:
            return (TensorDescription(name="y", shape=(2,), dtype="float32"),)

    for service, message in ((Sequences(), "one size"), (Unbatched(), "row by row")):
        with pytest.raises(OptionError, match=message):
            asyncio.run(EmbeddingCache(service).start())
    with pytest.raises(OptionError, match="not an input"):
        EmbeddingCache(FunctionService(), EmbeddingCacheOptions(mask="attention_mask"))
