"""A cache in a folder, which persists across processes and may be shared by several of them.

A file an answer: a header in JSON (tensors, who served it, when) and the arrays' bytes, checked by a digest. Nothing in
it is executed. What cannot be read is a miss; what cannot be written is not kept. The cache then goes on in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import tempfile
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from compiler.artifact.dtypes import ELEMENT_TYPES
from compiler.errors import StorageError
from compiler.serving.caches.memory import Answer, Clock

_MAGIC = b"twcache1"
_MAX_HEADER = 1 << 20
_SUFFIX = ".answer"
# After a write has failed so many more are not tried: a full disk does not cost each request a failed write.
_SKIPPED_WRITES = 64
_log = logging.getLogger(__name__)


class DiskStore:
    """Answers by key in a folder, bounded by bytes and by age. For one thread at a time."""

    def __init__(self, folder: Path, max_bytes: int, max_age: float | None = None, clock: Clock = time.time) -> None:
        """Read what the folder holds.

        Args:
            max_age: seconds of `clock`, which must keep counting across restarts of the process.

        Raises:
            StorageError: the folder cannot be made or read.
        """
        self._folder, self._max_bytes, self._max_age, self._clock = folder, max_bytes, max_age, clock
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._to_skip = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            found = sorted(
                (each.stat().st_mtime, each.stem, each.stat().st_size) for each in folder.glob(f"*{_SUFFIX}")
            )
        except OSError as error:
            raise StorageError(f"the cache's folder {folder} cannot be used: {error}", "name another one") from error
        for _, key, size in found:
            self._sizes[key] = size
        self.nbytes = sum(self._sizes.values())

    def get(self, key: str) -> tuple[Answer, float] | None:
        """The answer and its age in seconds; None where there is none that is whole and young enough."""
        try:
            content = self._path(key).read_bytes()
        except FileNotFoundError:
            self._forget(key)
            return None
        except OSError as error:
            _log.warning("the cache's file %s cannot be read: %s", self._path(key), error)
            return None
        found = _decoded(content, key)
        if found is None:
            _log.warning("the cache's file %s is damaged and is removed", self._path(key))
            self.remove(key)
            return None
        answer, stored = found
        age = self._clock() - stored
        if self._max_age is not None and age > self._max_age:
            self.remove(key)
            return None
        return answer, max(age, 0.0)

    def put(self, key: str, answer: Answer) -> bool:
        """Write an answer, whole or not at all; False where it could not be written."""
        if self._to_skip:
            self._to_skip -= 1
            return False
        content = _encoded(key, answer, self._clock())
        if len(content) > self._max_bytes:
            return True
        try:
            self._write(key, content)
        except OSError as error:
            self._to_skip = _SKIPPED_WRITES
            _log.warning("the cache's folder %s cannot be written, so answers stay in memory: %s", self._folder, error)
            return False
        self._forget(key)
        self._sizes[key] = len(content)
        self.nbytes += len(content)
        while self.nbytes > self._max_bytes:
            self.remove(next(iter(self._sizes)))
        return True

    def remove(self, key: str) -> None:
        """Remove an answer, if it is there."""
        self._forget(key)
        try:
            self._path(key).unlink(missing_ok=True)
        except OSError as error:
            _log.warning("the cache's file %s cannot be removed: %s", self._path(key), error)

    def _forget(self, key: str) -> None:
        self.nbytes -= self._sizes.pop(key, 0)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{_SUFFIX}"

    def _write(self, key: str, content: bytes) -> None:
        descriptor, temporary = tempfile.mkstemp(dir=self._folder, suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            os.replace(temporary, self._path(key))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def _encoded(key: str, answer: Answer, now: float) -> bytes:
    arrays = {name: np.ascontiguousarray(array) for name, array in answer.outputs.items()}
    header = {
        "key": key,
        "stored": now,
        "served_by": answer.served_by,
        "notes": dict(answer.notes),
        "tensors": [[name, str(array.dtype), list(answer.outputs[name].shape)] for name, array in arrays.items()],
    }
    text = json.dumps(header).encode()
    body = b"".join([len(text).to_bytes(4, "little"), text, *(array.tobytes() for array in arrays.values())])
    return b"".join([_MAGIC, hashlib.blake2b(body, digest_size=32).digest(), body])


def _decoded(content: bytes, key: str) -> tuple[Answer, float] | None:
    """The answer and when it was stored; None for what is no whole answer of that key."""
    head = len(_MAGIC) + 32
    digest = hashlib.blake2b(memoryview(content)[head:], digest_size=32).digest()
    if content[: len(_MAGIC)] != _MAGIC or content[len(_MAGIC) : head] != digest:
        return None
    try:
        size = int.from_bytes(content[head : head + 4], "little")
        if size > _MAX_HEADER:
            return None
        header: dict[str, Any] = json.loads(content[head + 4 : head + 4 + size])
        outputs, position = {}, head + 4 + size
        for name, dtype, shape in header["tensors"]:
            element = ELEMENT_TYPES[dtype].numpy
            count = math.prod(shape)
            outputs[name] = np.frombuffer(content, element, count, position).reshape(shape)
            position += count * element.itemsize
        if header["key"] != key or position != len(content):
            return None
        return Answer(outputs, str(header["served_by"]), header["notes"]), float(header["stored"])
    except (KeyError, ValueError, TypeError):
        return None
