"""Mutations of a module file's structure, after which all checksums are recomputed.

They reach what lies behind the checksums. Machine code is left alone but for what no loader must accept: once a file's
checksums are right, its code is what somebody wanted to run, and only a signature can say who.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from compiler.artifact.container import HEAD_BYTES, align, parse_header, tree_digests
from compiler.artifact.dtypes import ELEMENT_TYPES
from tests.fuzz.byte_mutations import BYTE_MUTATIONS

Random = np.random.Generator

HOSTILE_NUMBERS: tuple[Any, ...] = (0, -1, 1, 2, 63, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**400, 0.5, 1e308)
HOSTILE_STRINGS = ("", "x" * 5000, "a\0b", "../../etc/passwd", "/dev/zero", "\ud7ff\uffff", "%s%n", "s390x", "n", "2*n")
HOSTILE_VALUES: tuple[Any, ...] = (None, True, [], {}, [[]], [None], {"": {}}, [0] * 2000, [1] * 100)


@dataclass
class Parts:
    """A parsed module file; `assemble` writes it with right checksums.

    Attributes:
        table: wrong offsets to write into the section table.
        version, flags: of the header; flags None: the right ones.
        rewrite: changes the manifest's text.
    """

    manifest: Any
    sections: dict[str, bytes]
    signatures: bytes = b""
    table: dict[str, tuple[int, int]] = field(default_factory=dict)
    version: int = 1
    flags: int | None = None
    rewrite: Callable[[bytes], bytes] = bytes

    @classmethod
    def of(cls, content: bytes) -> Parts:
        layout = parse_header(memoryview(content), "it")
        sections = {s.name: content[s.offset : s.offset + s.size] for s in layout.sections}
        return cls(json.loads(layout.manifest), sections, content[layout.content_bytes :])

    def assemble(self) -> bytes:
        if isinstance(self.manifest, dict) and isinstance(self.manifest.get("checksums"), dict):
            digests = tree_digests([[content] for content in self.sections.values()])
            self.manifest["checksums"] |= {n: digest.hex() for n, digest in zip(self.sections, digests, strict=True)}
        manifest = self.rewrite(json.dumps(self.manifest).encode())
        start = align(HEAD_BYTES + 32 * len(self.sections) + len(manifest))
        table, body = b"", b""
        for name, content in self.sections.items():
            body += bytes(align(len(body)) - len(body))
            offset, size = self.table.get(name, (start + len(body), len(content)))
            table += struct.pack("<16sQQ", name.encode()[:16], offset, size)
            body += content
        prefix = struct.pack(
            "<8sIHHQQ",
            b"\x89TWM\r\n\x1a\n",
            self.version,
            len(self.sections),
            (1 if self.signatures else 0) if self.flags is None else self.flags,
            len(manifest),
            start + len(body),
        )
        head = prefix + hashlib.sha256(prefix + table + manifest).digest() + table + manifest
        return head + bytes(start - len(head)) + body + self.signatures


Mutation = Callable[[Parts, Random], None]


def pick(items: Any, random: Random) -> Any:
    """A random item."""
    return items[int(random.integers(len(items)))]


def _hostile(random: Random) -> Any:
    return pick((*HOSTILE_NUMBERS, *HOSTILE_STRINGS, *HOSTILE_VALUES, *ELEMENT_TYPES), random)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values inside a JSON value."""
    found: list[tuple[Any, ...]] = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += [(*path, key), *_places(inner, (*path, key))]
    return found


def edit_json(value: Any, random: Random) -> None:
    """Replace, remove, duplicate or add one random value in JSON."""
    places = _places(value)
    if not places:
        return
    *parents, key = pick(places, random)
    for parent in parents:
        value = value[parent]
    action = int(random.integers(4))
    if action == 0:
        del value[key]
    elif action == 1 and isinstance(value, list):
        value.append(value[key])
    elif action == 1:
        value[str(pick(HOSTILE_STRINGS, random))] = value[key]
    else:
        value[key] = _hostile(random)


def edit_manifest(parts: Parts, random: Random) -> None:
    for _ in range(int(random.integers(1, 3))):
        edit_json(parts.manifest, random)


def replace_manifest(parts: Parts, random: Random) -> None:
    parts.manifest = _hostile(random)


def edit_shapes(parts: Parts, random: Random) -> None:
    """Make the manifest's description of a tensor contradict the code."""
    groups = ["inputs", "outputs", "parameters", "reference_inputs", "reference_outputs"]
    tensors = parts.manifest[pick([group for group in groups if parts.manifest[group]], random)]
    tensor = pick(tensors, random)
    action = int(random.integers(4))
    if action == 0:
        tensor["dtype"] = pick(list(ELEMENT_TYPES), random)
    elif action == 1:
        tensor["shape"] = [int(size) for size in random.integers(0, 9, int(random.integers(0, 5)))]
    elif action == 2 and tensor["shape"]:
        tensor["shape"][int(random.integers(len(tensor["shape"])))] = pick([0, 1, 3, 17, 2**40, "k"], random)
    else:
        random.shuffle(tensors)


def edit_tensor_header(parts: Parts, random: Random) -> None:
    names = [name for name in ("parameters", "reference_in", "reference_out") if len(parts.sections[name]) > 64]
    if not names:
        edit_manifest(parts, random)
        return
    name = pick(names, random)
    blob = parts.sections[name]
    (length,) = struct.unpack("<Q", blob[:8])
    header = json.loads(blob[8 : 8 + length])
    edit_json(header, random)
    text = json.dumps(header).encode()
    parts.sections[name] = struct.pack("<Q", len(text)) + text + blob[8 + length :]


def edit_tensor_length(parts: Parts, random: Random) -> None:
    name = pick(["parameters", "reference_in", "reference_out"], random)
    length = int(pick([0, 1, 7, 2**32, 2**63, 2**64 - 1], random))
    parts.sections[name] = struct.pack("<Q", length) + parts.sections[name][8:]


def edit_tensor_bytes(parts: Parts, random: Random) -> None:
    name = pick(["parameters", "reference_in", "reference_out"], random)
    parts.sections[name] = pick(BYTE_MUTATIONS, random)(parts.sections[name], random)


def edit_numbers(parts: Parts, random: Random) -> None:
    """Change parameter values, also to NaN and infinity: the module loads but differs from its reference run."""
    blob = bytearray(parts.sections["parameters"])
    (length,) = struct.unpack("<Q", blob[:8])
    body = memoryview(blob)[8 + length :]
    if body:
        start = int(random.integers(len(body)))
        count = min(len(body) - start, int(random.integers(1, 64)))
        body[start : start + count] = pick([random.bytes(count), b"\xff" * count, bytes(count)], random)
    parts.sections["parameters"] = bytes(blob)


def edit_table(parts: Parts, random: Random) -> None:
    name = pick(list(parts.sections), random)
    numbers = (0, 1, 63, 64, 128, 4096, 2**31, 2**63, 2**64 - 1, 2**64 - 64)
    parts.table[name] = (int(pick(numbers, random)), int(pick(numbers, random)))


def rearrange_sections(parts: Parts, random: Random) -> None:
    names = list(parts.sections)
    action = int(random.integers(4))
    if action == 0:
        random.shuffle(names)
        parts.sections = {name: parts.sections[name] for name in names}
    elif action == 1:
        del parts.sections[pick(names, random)]
    elif action == 2:
        parts.sections[pick(["extra", "library2", "x" * 16, ""], random)] = b"more"
    else:
        one, other = pick(names, random), pick(names, random)
        parts.sections[one], parts.sections[other] = parts.sections[other], parts.sections[one]


def break_library(parts: Parts, random: Random) -> None:
    """Break the shared library: truncated, empty, garbage, or for another machine."""
    library = parts.sections["library"]
    action = int(random.integers(4))
    if action == 0:
        library = library[: int(random.integers(len(library)))]
    elif action == 1:
        library = random.bytes(int(random.integers(0, 3000)))
    elif action == 2:
        library = b"\x7fELF" + random.bytes(int(random.integers(0, 3000)))
    else:
        at = pick([0, 1, 2, 3, 4, 5, 16, 17, 18, 19], random)  # magic, class, byte order, kind, machine
        library = library[:at] + bytes([library[at] ^ int(random.integers(1, 256))]) + library[at + 1 :]
    parts.sections["library"] = library


def edit_signatures(parts: Parts, random: Random) -> None:
    """Change the signature block, with a right checksum."""
    count = int(pick([0, 1, 2, 64, 65, 2**32 - 1], random))
    stored = int(pick([1, 1, 2, 3], random))
    block = b"TWMSIGN\x01" + struct.pack("<I4s", count, bytes(4)) + random.bytes(96 * stored)
    parts.signatures = block + hashlib.sha256(block).digest()


STRUCTURE_MUTATIONS: tuple[Mutation, ...] = (
    edit_manifest,
    replace_manifest,
    edit_shapes,
    edit_tensor_header,
    edit_tensor_length,
    edit_tensor_bytes,
    edit_numbers,
    edit_table,
    rearrange_sections,
    break_library,
    edit_signatures,
)
