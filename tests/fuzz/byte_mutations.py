"""Mutations of any file's bytes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Random = np.random.Generator
ByteMutation = Callable[[bytes, Random], bytes]


def flip_bytes(data: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(int(random.integers(1, 20))):
        changed[int(random.integers(len(changed)))] = int(random.integers(256))
    return bytes(changed)


def truncate(data: bytes, random: Random) -> bytes:
    return data[: int(random.integers(len(data)))]


def insert_garbage(data: bytes, random: Random) -> bytes:
    at = int(random.integers(len(data)))
    return data[:at] + random.bytes(int(random.integers(1, 200))) + data[at:]


def duplicate_range(data: bytes, random: Random) -> bytes:
    low, high = sorted(int(position) for position in random.integers(len(data), size=2))
    return data[:high] + data[low:high] + data[high:]


def remove_range(data: bytes, random: Random) -> bytes:
    low, high = sorted(int(position) for position in random.integers(len(data), size=2))
    return data[:low] + data[high:]


def garbage(data: bytes, random: Random) -> bytes:
    return random.bytes(int(random.integers(0, 2000)))


BYTE_MUTATIONS: tuple[ByteMutation, ...] = (
    flip_bytes,
    truncate,
    insert_garbage,
    duplicate_range,
    remove_range,
    garbage,
)
