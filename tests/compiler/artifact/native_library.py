"""The C++ tokenizer as a shared library of this machine."""

from __future__ import annotations

import ctypes
from pathlib import Path

from compiler.artifact.native_tokenizer.tokenizer import write_tokenizer
from compiler.artifact.native_tokenizer.writer import Writer
from compiler.device.programs import SOURCES, TOKENIZER_SOURCES
from compiler.support.cache import cached, key_of
from targets import Target

_WRAPPER = Path(__file__).with_name("text_library.cc")
_SIZE, _POINTER = ctypes.c_size_t, ctypes.c_void_p


def _library(host: Target) -> ctypes.CDLL:
    text = SOURCES / "text"
    sources = [_WRAPPER, SOURCES / "error.cc", *(SOURCES / name for name in TOKENIZER_SOURCES)]
    key = key_of([path.read_bytes() for path in (*sources, *sorted(text.glob("*.h")))])

    def build(folder: Path) -> None:
        together = folder / "text.cc"
        together.write_text("".join(f'#include "{source}"\n' for source in sources))
        options: list[str | Path] = ["-std=c++17", "-O1", "-shared", "-fPIC", f"-I{text}", together]
        host.compiler().run([*options, "-o", folder / "text.so"])

    return ctypes.CDLL(str(cached("text-library", key, build) / "text.so"))


class NativeTokenizer:
    """A tokenizer.json in the C++ tokenizer."""

    def __init__(self, content: bytes, host: Target) -> None:
        writer = Writer()
        write_tokenizer(content, writer)
        self._content = writer.content()
        self._library = _library(host)
        self._library.text_open.restype = _POINTER
        self._library.text_encode.restype = ctypes.c_int64
        self._library.text_decode.restype = _POINTER
        self._tokenizer = self._library.text_open(self._content, _SIZE(len(self._content)))
        assert self._tokenizer

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Tokens of a text."""
        content = text.encode()
        tokens = (ctypes.c_int64 * (4 * len(content) + 16))()
        count = self._library.text_encode(
            _POINTER(self._tokenizer), content, _SIZE(len(content)), ctypes.c_bool(special), tokens, _SIZE(len(tokens))
        )
        assert 0 <= count <= len(tokens)
        return list(tokens[:count])

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens."""
        size = _SIZE()
        array = (ctypes.c_int64 * max(1, len(tokens)))(*tokens)
        found = self._library.text_decode(_POINTER(self._tokenizer), array, _SIZE(len(tokens)), ctypes.byref(size))
        return ctypes.string_at(found, size.value).decode()
