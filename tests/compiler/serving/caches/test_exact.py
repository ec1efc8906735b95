"""The exact cache: hits, retention, concurrent equal requests, and failing disks."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from compiler.errors import OptionError, OverloadedError, StorageError
from compiler.serving.caches.digests import request_digest, row_digests
from compiler.serving.caches.exact import DiskStore, ExactCache, ExactCacheOptions
from compiler.serving.caches.memory import Answer, MemoryStore
from compiler.serving.metrics import Observer
from tests.compiler.serving.services import FunctionService, request


class Counts(Observer):
    def __init__(self) -> None:
        self.hits = self.failures = 0

    def observe_cache(self, model: str, cache: str, hits: int, rows: int) -> None:
        self.hits += hits

    def observe_cache_failure(self, model: str, cache: str) -> None:
        self.failures += 1


def test_equal_requests_are_computed_once_and_answers_belong_to_their_receivers() -> None:
    async def scenario() -> None:
        service, counts = FunctionService(), Counts()
        cache = ExactCache(service, observer=counts)
        first = await cache.infer(request(1, 2))
        np.asarray(first.outputs["y"])[:] = -1
        again = await cache.infer(request(1, 2))
        assert again.cached == "exact"
        assert first.cached is None
        assert again.served_by == first.served_by
        assert np.array_equal(again.outputs["y"], request(1, 2).inputs["x"] * 2)
        await cache.infer(request(2, 1))
        assert (len(service.asked), counts.hits) == (2, 1)
        assert (await cache.infer(request(1, 2, traced=True))).cached is None
        await cache.infer(request(1, 2, outputs=("y",)))
        assert len(service.asked) == 4

    asyncio.run(scenario())


def test_equal_requests_at_once_run_once_whoever_gives_up() -> None:
    async def scenario() -> None:
        service = FunctionService()
        service.gate = asyncio.Event()
        cache = ExactCache(service)
        tasks = [asyncio.create_task(cache.infer(request(1))) for _ in range(4)]
        await asyncio.sleep(0)
        tasks[0].cancel()  # the one that began it
        await asyncio.sleep(0)
        service.gate.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(answers[0], asyncio.CancelledError)
        assert len(service.asked) == 1
        assert all(not isinstance(each, BaseException) and each.outputs["y"][0, 0] == 2 for each in answers[1:])

        service.gate.clear()
        alone = asyncio.create_task(cache.infer(request(5)))
        await asyncio.sleep(0)
        alone.cancel()
        await asyncio.gather(alone, return_exceptions=True)
        service.gate.set()
        assert (await cache.infer(request(5))).cached is None  # what nobody waited for was given up

    asyncio.run(scenario())


def test_a_refusal_of_the_first_is_none_of_the_others() -> None:
    async def scenario() -> None:
        service = FunctionService()
        service.gate = asyncio.Event()
        service.failures = [OverloadedError("late", late=True)]
        cache = ExactCache(service)
        tasks = [asyncio.create_task(cache.infer(request(1, deadline=deadline))) for deadline in (1.0, 9.0)]
        await asyncio.sleep(0)
        service.gate.set()
        first, second = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(first, OverloadedError)
        assert not isinstance(second, BaseException)
        assert second.outputs["y"][0, 0] == 2

    asyncio.run(scenario())


def test_accuracy_of_variants_counts() -> None:
    async def scenario() -> None:
        service = FunctionService(notes={"accuracy": 0.9})
        cache = ExactCache(service)
        await cache.infer(request(1))
        assert (await cache.infer(request(1, min_accuracy=0.8))).cached == "exact"
        service.notes = {"accuracy": 1.0}
        assert (await cache.infer(request(1, min_accuracy=0.95))).cached is None
        assert (await cache.infer(request(1, min_accuracy=0.95))).cached == "exact"
        service.notes = {"degraded": 1.0}
        await cache.infer(request(7))
        assert (await cache.infer(request(7))).cached is None

    asyncio.run(scenario())


def test_limits_of_size_and_age() -> None:
    now = [0.0]
    store: MemoryStore[str] = MemoryStore(100, 10.0, lambda: now[0])
    store.put("a", "A", 60)
    store.put("b", "B", 40)
    assert store.get("a") == "A"
    store.put("c", "C", 30)  # the least recently used one leaves
    assert (store.get("b"), store.get("a"), store.get("c"), store.nbytes) == (None, "A", "C", 90)
    store.put("huge", "H", 101)
    assert store.get("huge") is None
    assert len(store) == 2
    now[0] = 10.5
    assert store.get("a") is None
    with pytest.raises(OptionError, match="above 0"):
        MemoryStore(0)


def test_digests_tell_apart_what_differs_and_find_rows_in_any_batch() -> None:
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    seen = {
        request_digest("m", {"x": x}, None),
        request_digest("n", {"x": x}, None),
        request_digest("m", {"y": x}, None),
        request_digest("m", {"x": x.reshape(2, 3)}, None),
        request_digest("m", {"x": x.view(np.int32)}, None),
        request_digest("m", {"x": x}, ()),
        request_digest("m", {"x": x}, ("y",)),
        request_digest("m", {"x": x[:0]}, None),
    }
    assert len(seen) == 8
    assert request_digest("m", {"x": np.asfortranarray(x)}, None) in seen
    assert row_digests("m", {"x": x}, None, 3)[2] == row_digests("m", {"x": x[2:]}, None, 1)[0]


def answer(value: float = 1.0) -> Answer:
    outputs = {"y": np.full((2, 3), value, np.float32), "z": np.array(value, ml_dtypes.bfloat16)}
    return Answer(outputs, "model/1/int8", {"accuracy": 0.9})


def test_files_outlive_the_process_and_damage_is_a_miss(tmp_path: Path) -> None:
    now = [100.0]
    store = DiskStore(tmp_path, 10_000, 60.0, lambda: now[0])
    assert store.put("k", answer())
    assert store.put("l", answer(2.0))
    other = DiskStore(tmp_path, 10_000, 60.0, lambda: now[0])
    now[0] = 130.0
    found = other.get("k")
    assert found is not None
    assert found[1] == 30.0
    assert found[0].served_by == "model/1/int8"
    assert found[0].outputs["z"].dtype == ml_dtypes.bfloat16
    assert found[0].outputs["z"].shape == ()
    assert np.array_equal(found[0].outputs["y"], answer().outputs["y"])
    assert found[0].accuracy == 0.9

    path = tmp_path / "k.answer"
    content = bytearray(path.read_bytes())
    for at in range(0, len(content), 7):
        path.write_bytes(bytes(content[:at]) + bytes([content[at] ^ 1]) + bytes(content[at + 1 :]))
        assert other.get("k") is None
    (tmp_path / "l.answer").write_bytes((tmp_path / "l.answer").read_bytes()[:-1])
    assert other.get("l") is None
    assert other.nbytes == 0
    now[0] = 1000.0
    store.put("m", answer())
    now[0] = 1061.0
    assert store.get("m") is None
    assert not (tmp_path / "m.answer").exists()


def test_the_folder_stays_within_its_limit(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, 1200)
    for index in range(6):
        store.put(f"k{index}", answer(index))
    files = list(tmp_path.iterdir())
    assert 0 < len(files) < 6
    assert sum(each.stat().st_size for each in files) == store.nbytes <= 1200
    assert store.get("k5") is not None
    assert store.get("k0") is None


def test_a_full_disk_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **named: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def scenario() -> None:
        service, counts = FunctionService(), Counts()
        cache = ExactCache(service, ExactCacheOptions(folder=tmp_path), counts)
        with monkeypatch.context() as patch:
            patch.setattr("compiler.serving.caches.exact.os.replace", full)
            for value in range(3):
                await cache.infer(request(value))
                assert (await cache.infer(request(value))).cached == "exact"  # in memory
            await cache.close()
        assert counts.failures == 3
        assert list(tmp_path.iterdir()) == []

        cache = ExactCache(service, ExactCacheOptions(folder=tmp_path), counts)
        await cache.infer(request(9))
        await cache.close()
        asked = len(service.asked)
        again = ExactCache(service, ExactCacheOptions(folder=tmp_path), counts)
        assert (await again.infer(request(9))).cached == "exact"
        assert len(service.asked) == asked
        await again.close()

    asyncio.run(scenario())
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be used"):
        DiskStore(tmp_path / "file" / "cache", 100)
