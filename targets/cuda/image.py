"""The kernels in a library: TVM stores CUDA source, to be compiled on the device; here it is replaced by machine code,
and kept next to it, compressed.

TVM packs the modules that a library imports into one array, the symbol `__tvm_ffi__library_bin`: its length, then for
each its kind and its bytes. The bytes of a CUDA module are the format's name ("cuda" for source, "fatbin"), the kernels
(name, argument types, launch parameters) and the code. Lengths are 64-bit little-endian.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from targets.cuda.nvcc import Nvcc
from targets.errors import TargetError

SYMBOL = b"__tvm_ffi__library_bin"
_KIND = struct.pack("<Q", 4) + b"cuda"
_MAGIC = b"TENSORWRIGHT-CUDA-SOURCE"
_TAG = re.compile(r"^(blockIdx|threadIdx)\.[xyz]$|^tirx?\.use_dyn_shared_memory$")
_KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\(\d+\) )?(?P<name>\w+)\(')
_SHARED = re.compile(r"(?<!extern )__shared__ (?:alignas\(\d+\) )?(?P<type>[\w ]+?) \w+\[(?P<count>\d+)\];")
_BYTES = {
    **dict.fromkeys(("bool", "signed char", "unsigned char"), 1),
    **dict.fromkeys(("half", "nv_bfloat16", "short", "unsigned short"), 2),
    **dict.fromkeys(("float", "int", "uint", "unsigned int"), 4),
    **dict.fromkeys(("double", "int64_t", "uint64_t"), 8),
}
_WIDEST = 16  # assumed size of unknown types
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")


@dataclass(frozen=True)
class Source:
    """CUDA source, and for each kernel the order of its launch parameters ("blockIdx.x", ...)."""

    text: str
    launches: dict[str, tuple[str, ...]]


def replaced_source(
    objects: Sequence[str], folder: Path, nvcc: Nvcc | None, compute_capability: int, shared_bytes: int
) -> list[str]:
    """The object files of a library with its CUDA source compiled.

    Args:
        folder: for the files written here.
        nvcc: None keeps the source.
        shared_bytes: limit on the shared memory of a block.

    Returns:
        Paths to link: the packed modules are replaced by an assembly file.

    Raises:
        TargetError: the source has an unknown layout, or a kernel needs more memory than there is.
        LinkError: nvcc failed.
    """
    result = []
    for path in objects:
        data = Path(path).read_bytes()
        span = symbol_bytes(data, SYMBOL) if SYMBOL in data and data[:4] == b"\x7fELF" else None
        packed = None if span is None else data[span[0] : span[0] + span[1]]
        if packed is None or _KIND not in packed:
            result.append(str(path))
            continue
        image, source = _compiled(packed, nvcc, compute_capability, shared_bytes)
        (folder / "modules.bin").write_bytes(image)
        (folder / "source.bin").write_bytes(_stored(source))
        assembler = folder / "modules.s"
        assembler.write_text(_assembler(folder), encoding="utf-8")
        result.append(str(assembler))
    return result


def has_source(library: bytes | memoryview) -> bool:
    """True if a library holds CUDA source, that is, has kernels."""
    return _MAGIC in bytes(library)


def source_of(library: bytes | memoryview) -> Source:
    """The CUDA source in a library. Raises TargetError if there is none."""
    data = bytes(library)
    start = data.find(_MAGIC)
    while start >= 0:
        begin = start + len(_MAGIC) + 8
        (length,) = struct.unpack_from("<Q", data, start + len(_MAGIC))
        if 0 < length <= len(data) - begin:
            stored = json.loads(zlib.decompress(data[begin : begin + length]))
            return Source(stored["source"], {name: tuple(tags) for name, tags in stored["launches"].items()})
        start = data.find(_MAGIC, begin)
    raise TargetError("the library holds no CUDA source to simulate", "compile the model again")


def _stored(source: Source) -> bytes:
    packed = zlib.compress(json.dumps({"source": source.text, "launches": source.launches}).encode(), 9)
    return _MAGIC + struct.pack("<Q", len(packed)) + packed


def _assembler(folder: Path) -> str:
    symbol = SYMBOL.decode()
    return (
        f".section .rodata\n.globl {symbol}\n.type {symbol}, %object\n.balign 16\n{symbol}:\n"
        f'.incbin "{folder / "modules.bin"}"\n.size {symbol}, .-{symbol}\n'
        f'.balign 16\n.incbin "{folder / "source.bin"}"\n.section .note.GNU-stack,"",%progbits\n'
    )


def _compiled(packed: bytes, nvcc: Nvcc | None, compute_capability: int, shared_bytes: int) -> tuple[bytes, Source]:
    """The packed modules with source replaced by machine code, and the source."""
    start = packed.index(_KIND) + len(_KIND)
    (length,) = struct.unpack_from("<Q", packed, start)
    module = packed[start + 8 : start + 8 + length]
    source, kernels = parsed_module(module)
    check_shared_memory(source.text, shared_bytes)
    if nvcc is None:
        return packed, source
    code = nvcc.fatbin(source.text, compute_capability)
    made = _text("fatbin") + kernels + struct.pack("<Q", len(code)) + code
    body = packed[8:start] + struct.pack("<Q", len(made)) + made + packed[start + 8 + length :]
    return struct.pack("<Q", len(body)) + body, source


def check_shared_memory(text: str, limit: int) -> None:
    """Raise TargetError for a kernel of CUDA source whose block uses more shared memory than `limit` bytes."""
    starts = [*_KERNEL.finditer(text)]
    for start, end in zip(starts, [*(each.start() for each in starts[1:]), len(text)], strict=True):
        found = _SHARED.finditer(text, start.end(), end)
        used = sum(_BYTES.get(each["type"], _WIDEST) * int(each["count"]) for each in found)
        if used > limit:
            raise TargetError(
                f"a block of kernel {start['name']!r} takes {used} bytes of shared memory, and the device has {limit}",
                "this is a defect; please report it",
            )


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0

    def number(self) -> int:
        (value,) = struct.unpack_from("<Q", self.data, self.position)
        self.position += 8
        return int(value)

    def skip(self, size: int) -> None:
        """Read a count, and skip that many items of `size` bytes."""
        count = self.number()
        self.position += size * count

    def text(self) -> str:
        length = self.number()
        self.position += length
        return self.data[self.position - length : self.position].decode()


def parsed_module(module: bytes) -> tuple[Source, bytes]:
    """A CUDA module of source, and the bytes that describe its kernels.

    Raises TargetError if the bytes do not have the layout described above: another version of TVM.
    """
    reader = _Reader(module)
    if reader.text() != "cuda":
        raise TargetError("TVM's CUDA module is not source", "this is a defect; please report it")
    begin = reader.position
    launches = {}
    for _ in range(reader.number()):
        name = reader.text()
        reader.text()
        reader.skip(4)  # argument types: code, bits, lanes
        tags = tuple(reader.text() for _ in range(reader.number()))
        if not all(_TAG.match(tag) for tag in tags):
            raise TargetError(f"kernel {name!r} has unknown launch parameters: {', '.join(tags)}")
        reader.skip(4)  # how tensor maps and the like are passed
        launches[name] = tags
    kernels = module[begin : reader.position]
    text = reader.text()
    if reader.position != len(module):
        raise TargetError("TVM's CUDA module has unknown parts", "this is a defect; please report it")
    return Source(text, launches), kernels


def symbol_bytes(data: bytes, wanted: bytes) -> tuple[int, int] | None:
    """Offset and length of a symbol's bytes in a 64-bit relocatable ELF file; None if it has none."""
    (offset,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    sections = [_SECTION.unpack_from(data, offset + index * size) for index in range(count)]
    for section in sections:
        if section[1] != 2:  # SHT_SYMTAB
            continue
        names = sections[section[6]][4]
        for position in range(section[4], section[4] + section[5], _SYMBOL.size):
            name, _, _, index, value, length = _SYMBOL.unpack_from(data, position)
            at = names + name
            if data[at : at + len(wanted) + 1] == wanted + b"\0" and 0 < index < count:
                return sections[index][4] + value, length
    return None
