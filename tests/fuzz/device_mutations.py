"""Mutations of formats that C++ parses without libraries: requirements, JSON, headers, shared libraries, inputs."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

from tests.fuzz.artifact_mutations import HOSTILE_NUMBERS, HOSTILE_STRINGS, Mutation, Parts, edit_json, pick
from tests.fuzz.byte_mutations import BYTE_MUTATIONS

Random = np.random.Generator
_FORMULAS = (
    "n", "n*n*n*n", "n // 0", "n % (n - n)", "-n", "min(n, 3)", "9223372036854775807 + n", "4", "-n // 2 % 3",
    "1000000*n", "(-9223372036854775807 - 1) // -1", "-" * 2000 + "(" * 500 + "n" + ")" * 500, "*".join(["n"] * 1000),
    "max(n, 1) - 8",
)  # fmt: skip
_NO_FORMULAS = ("max()", "q", "", "1 +", "n\0", "2 ** 99", "größe", "n n", "(" * 500, "9" * 5000, "min(1,", "x" * 4097)
_RELATIONS = ("equal", "at least", "broadcast")
_NO_RELATIONS: tuple[Any, ...] = ("at most", "", "EQUAL", None, 3, [])
_EXTREMES = (0, 1, 7, 8, 63, 64, 2**12, 2**31, 2**32 - 1, 2**47, 2**62, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1)
_DYNAMIC_TAGS = (0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 17, 18, 19, 20, 23, 36, 0x6FFFFEF5)
_DEEPEST = 200_000


def edit_requirements(parts: Parts, random: Random) -> None:
    """Add valid and invalid relations and ranges of every kind."""
    inputs = parts.manifest["inputs"]
    sizes = [size for tensor in inputs for size in tensor["shape"] if isinstance(size, str)]
    symbols = {"n": str(pick([*sizes, *sizes, *sizes, "nothing"], random))}
    for _ in range(int(random.integers(1, 4))):
        left, right = (pick(_FORMULAS if random.random() < 0.9 else _NO_FORMULAS, random) for _ in range(2))
        kind = pick(_RELATIONS if random.random() < 0.9 else _NO_RELATIONS, random)
        relation = {"left": left, "relation": kind, "right": right, "symbols": symbols, "where": "w"}
        index = {"input": pick([inputs[0]["name"], "none"], random), "size": left, "symbols": symbols, "where": "w"}
        if random.random() < 0.5:
            index["least"] = right
        key, entry = ("requirements", relation) if random.random() < 0.7 else ("indices", index)
        parts.manifest.setdefault(key, []).append(entry)
    if random.random() < 0.1:
        edit_json(parts.manifest["requirements"], random)


def edit_threads(parts: Parts, random: Random) -> None:
    parts.manifest["threads"] = pick([0, 1, 3, 64, 4096, 4097, 10**9, -1, 1.5, "2", None], random)


def nest_deeply(parts: Parts, random: Random) -> None:
    """Nest a value deeper than a parser's stack, or barely less."""
    depth = int(pick([50, 90, 101, 5000, _DEEPEST], random))
    opened, closed = pick([(b"[", b"]"), (b'{"a":', b"}"), (b"[{},", b"]")], random)
    text = opened * depth + b"1" + closed * depth
    place = pick([b'"details": {', b'"threads": null', b'"model_name": '], random)
    if place.endswith(b"{"):
        parts.rewrite = lambda manifest: manifest.replace(place, place + b'"z": ' + text + b", ", 1)
    else:
        parts.rewrite = lambda manifest: manifest.replace(place, place.split(b":")[0] + b": " + text + b', "x": ', 1)


def edit_json_text(parts: Parts, random: Random) -> None:
    """Write text that is not, or barely, JSON."""
    changes = (
        (b'"relative": 0.001', b'"relative": NaN'),
        (b'"relative": 0.001', b'"relative": 1e999'),
        (b'"relative": 0.001', b'"relative": -Infinity'),
        (b'"model_name"', b'"threads": 4, "threads": 2, "model_name"'),
        (b'"model_name": "', b'"model_name": "\\ud800'),
        (b'"model_name": "', b'"model_name": "\xff\xfe'),
        (b'"model_name": "', b'"model_name": "\x01'),
        (b'"model_name": "', b'"model_name": "\\'),
        (b"}", b"} "),
        (b"{", b"\xef\xbb\xbf{"),
        (b": 1,", b": 1" + b"0" * 5000 + b","),
        (b": 1,", b": -0,"),
    )
    old, new = pick(changes, random)
    parts.rewrite = lambda manifest: manifest.replace(old, new, 1)


def cut_json(parts: Parts, random: Random) -> None:
    share = float(random.random())
    parts.rewrite = lambda manifest: manifest[: int(share * len(manifest))]


def edit_head(parts: Parts, random: Random) -> None:
    if random.random() < 0.5:
        parts.version = int(pick([0, 2, 99, 2**32 - 1], random))
    else:
        parts.flags = int(pick([0, 1, 2, 3, 2**16 - 1], random))


def append_to_content(parts: Parts, random: Random) -> None:
    """Append undeclared bytes, or bytes that a flag declares as signatures."""
    parts.signatures += random.bytes(int(random.integers(1, 200)))
    parts.flags = int(random.integers(2))


def damage_code(parts: Parts, random: Random) -> None:
    """Corrupt headers and tables of the shared library; its code is not run."""
    library = bytearray(parts.sections["library"])
    for _ in range(int(random.integers(1, 4))):
        pick([_damage_header, _damage_segment, _damage_dynamic, _damage_table], random)(library, random)
    parts.sections["library"] = bytes(library)


def _put(library: bytearray, at: int, value: Any, size: int = 8) -> None:
    if at >= 0 and at + size <= len(library):
        library[at : at + size] = (int(value) % (1 << 8 * size)).to_bytes(size, "little")


def _near(value: int, random: Random) -> int:
    return pick(
        (*_EXTREMES, value - 1, value + 1, value + 8, 2 * value, value ^ (1 << int(random.integers(32)))), random
    )


def _damage_header(library: bytearray, random: Random) -> None:
    at, size = pick(((4, 1), (5, 1), (16, 2), (18, 2), (32, 8), (40, 8), (54, 2), (56, 2), (58, 2), (60, 2)), random)
    _put(library, at, _near(int.from_bytes(library[at : at + size], "little"), random), size)


def _segments(library: bytearray) -> list[int]:
    (start,), (count,) = struct.unpack_from("<Q", library, 32), struct.unpack_from("<H", library, 56)
    return [start + 56 * index for index in range(count) if start + 56 * (index + 1) <= len(library)]


def _damage_segment(library: bytearray, random: Random) -> None:
    segments = _segments(library)
    if segments:
        at = pick(segments, random)
        field, size = pick(((0, 4), (4, 4), (8, 8), (16, 8), (32, 8), (40, 8)), random)
        _put(
            library, at + field, _near(int.from_bytes(library[at + field : at + field + size], "little"), random), size
        )


def _dynamic(library: bytearray) -> list[int]:
    """Offsets of the entries of the dynamic section."""
    for at in _segments(library):
        kind, offset, size = (
            *struct.unpack_from("<I", library, at),
            *struct.unpack_from("<Q24xQ", library, at + 8)[:2],
        )
        if kind == 2:
            end = min(offset + size, len(library) - 15)
            return list(range(offset, end, 16))
    return []


def _damage_dynamic(library: bytearray, random: Random) -> None:
    entries = _dynamic(library)
    if entries:
        at = pick(entries, random)
        if random.random() < 0.3:
            _put(library, at, pick(_DYNAMIC_TAGS, random))
        else:
            _put(library, at + 8, _near(int.from_bytes(library[at + 8 : at + 16], "little"), random))


def _damage_table(library: bytearray, random: Random) -> None:
    """Damage symbols, names, hashes and relocations, which are at the beginning."""
    for _ in range(int(random.integers(1, 30))):
        _put(
            library,
            int(random.integers(0x200, 0x1400)),
            _near(int(random.integers(2**32)), random),
            int(pick([1, 4, 8], random)),
        )


def edit_inputs(blob: bytes, random: Random) -> tuple[str, bytes]:
    """A changed input file, and the name of the change."""
    action = int(random.integers(6))
    if action < 2:
        mutation = pick(BYTE_MUTATIONS, random)
        return f"inputs: {mutation.__name__}", mutation(blob, random)
    (length,) = struct.unpack("<Q", blob[:8])
    header, body = json.loads(blob[8 : 8 + length]), blob[8 + length :]
    if action == 2:
        return "inputs: deep", _packed(b'{"x":' + b"[" * _DEEPEST + b"]" * _DEEPEST + b"}", body)
    if action == 3:
        length = int(pick(_EXTREMES, random))
        return "inputs: length", struct.pack("<Q", length) + blob[8:]
    if action == 4:
        _edit_entry(header[pick(list(header), random)], random)
    else:
        edit_json(header, random)
    return "inputs: header", _packed(json.dumps(header).encode(), body)


def _edit_entry(entry: dict[str, Any], random: Random) -> None:
    numbers = (*HOSTILE_NUMBERS, *HOSTILE_STRINGS, 3, 2**60, 2**61, -(2**63))
    if random.random() < 0.6:
        entry["shape"] = [pick((*numbers, *entry["shape"]), random) for _ in range(int(random.integers(0, 5)))]
        entry["data_offsets"] = pick(([0, 0], entry["data_offsets"]), random)
    else:
        entry["data_offsets"] = [pick(numbers, random) for _ in range(int(random.integers(0, 4)))]


def _packed(header: bytes, body: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + body


FORMAT_MUTATIONS: tuple[Mutation, ...] = (
    edit_requirements,
    edit_threads,
    nest_deeply,
    edit_json_text,
    cut_json,
    edit_head,
    append_to_content,
)
