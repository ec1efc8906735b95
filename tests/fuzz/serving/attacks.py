"""Requests that are small but costly for a server, by name; each is sent once by one client."""

from __future__ import annotations

import base64
import io
import json
import struct
import wave
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

FORM = "multipart/form-data; boundary=B"


class Attack(NamedTuple):
    """A request; `body` is created when sent, since it may be large."""

    method: str
    path: str
    body: Callable[[], bytes]
    headers: Mapping[str, str] = {}


def post(path: str, body: Callable[[], Any], **headers: str) -> Attack:
    """A request whose body is JSON, or raw bytes."""

    def content() -> bytes:
        made = body()
        return made if isinstance(made, bytes) else json.dumps(made).encode()

    return Attack("POST", path, content, {name.replace("_", "-"): value for name, value in headers.items()})


def completion(model: str = "chat", **fields: Any) -> Attack:
    """A completion with the given fields."""
    return post("/v1/completions", lambda: {"model": model, "prompt": "hi", "max_tokens": 8, **fields})


def schema(value: Any) -> Attack:
    """A completion whose text must match a JSON schema."""
    return completion(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": value}})


def chat(content: Any, model: str = "chat") -> Attack:
    """A chat with one message."""
    messages = [{"role": "user", "content": content}]
    return post("/v1/chat/completions", lambda: {"model": model, "max_tokens": 4, "messages": messages})


def image(content: Callable[[], bytes], kind: str = "png", count: int = 1) -> Attack:
    """A chat with an image, once or several times."""

    def body() -> Any:
        url = f"data:image/{kind};base64,{base64.b64encode(content()).decode()}"
        part = {"type": "image_url", "image_url": {"url": url}}
        messages = [{"role": "user", "content": [*[part] * count, {"type": "text", "text": "what?"}]}]
        return {"model": "vision", "max_tokens": 4, "messages": messages}

    return post("/v1/chat/completions", body)


def picture(content: Callable[[], bytes], model: str = "pictures") -> Attack:
    """A prediction request with a picture as body."""
    return Attack("POST", f"/v2/models/{model}/predict", content, {"Content-Type": "image/png"})


def speech(content: Callable[[], bytes]) -> Attack:
    """A transcription request for a file."""

    def body() -> bytes:
        parts = [("model", b"speech"), ("file", content()), ("language", b"en")]
        return b"".join(b'--B\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (name.encode(), value)
                        for name, value in parts) + b"--B--\r\n"  # fmt: skip

    return post("/v1/audio/transcriptions", body, Content_Type=FORM)


def png(width: int, height: int, rows: bytes | None = None, before: bytes = b"") -> bytes:
    """A PNG file with one bit per pixel and declared sizes, containing the given rows, by default all.

    `before`: chunks before the pixels.
    """

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    content = zlib.compress(bytes(height * (1 + (width + 7) // 8)) if rows is None else rows, 9)
    chunks = png_chunk(b"IHDR", header) + before + png_chunk(b"IDAT", content) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def png_chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def gif(width: int, height: int, frames: int) -> bytes:
    """A GIF file of a size, with frames of one pixel."""
    frame = b"\x2c" + struct.pack("<4HB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    colors = bytes(6)
    return b"GIF89a" + struct.pack("<2H3B", width, height, 0x80, 0, 0) + colors + frame * frames + b";"


def bmp(width: int, height: int) -> bytes:
    """A BMP file with 24 bits per pixel and declared sizes, containing 64 bytes of pixels."""
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 118, 0, 0, 54) + head + bytes(64)


def wav(frames: int, rate: int = 16000, width: int = 2, channels: int = 1) -> bytes:
    """A silent WAV file."""
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(bytes(frames * width * channels))
    return content.getvalue()


def _nested(count: int, inner: str = '{"type":"string"}') -> Any:
    """Arrays of arrays, as raw JSON."""
    text = '{"type":"array","items":' * count + inner + "}" * count
    head = '{"model":"chat","prompt":"hi","response_format":{"type":"json_schema","json_schema":{"name":"a","schema":'
    return post("/v1/completions", lambda: f"{head}{text}}}}}}}".encode())


def _tensor(**fields: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [1.0] * 16, **fields}]}


def _infer(body: Callable[[], Any], **headers: str) -> Attack:
    return post("/v2/models/dense/infer", body, **headers)


def _form(head: bytes, content: bytes = b"x") -> Attack:
    body = b"--B\r\n" + head + b"\r\n\r\n" + content + b"\r\n--B--\r\n"
    return post("/v1/audio/transcriptions", lambda: body, Content_Type=FORM)


def _deep(count: int) -> bytes:
    return b"[" * count + b"]" * count


def _with_nested_field(path: str, name: str) -> Attack:
    return post(path, lambda: b'{"model":"chat","prompt":"a","%b":%b}' % (name.encode(), _deep(1000)))


_ROUTES = ("/v2/models/dense/infer", "/v1/completions", "/v1/chat/completions", "/v1/embeddings",
           "/v1/audio/transcriptions", "/v2/repository/index", "/v2/repository/models/dense/load")  # fmt: skip
_FIELDS = ("inputs", "outputs", "parameters", "id", "model", "prompt", "messages", "input", "stop", "response_format",
           "stream_options", "temperature", "n", "user")  # fmt: skip

ATTACKS: dict[str, Attack | list[Attack]] = {
    "form: header of semicolons": _form(b'Content-Disposition: form-data; name="' + b";" * 100_000),
    "form: many headers": _form(b"A: b\r\n" * 100_000),
    "form: 100,000 fields": _form(b'Content-Disposition: form-data; name="a"\r\n\r\nx\r\n--B\r\n' * 100_000),
    "form: almost boundaries": _form(b'Content-Disposition: form-data; name="file"', b"\r\n--" * 4_000_000),
    "form: type of semicolons": post("/v1/audio/transcriptions", lambda: b"x", Content_Type=FORM + ";" * 60_000),
    "pattern of 100,000 groups": schema({"type": "string", "pattern": "(" * 100_000 + "a" + ")" * 100_000}),
    "pattern of 120 groups": schema({"type": "string", "pattern": "(" * 120 + "a" + ")" * 120}),
    "pattern of alternatives": schema({"type": "string", "pattern": "(a|b|c)*" * 3000}),
    "pattern of stars": schema({"type": "string", "pattern": "((((a*)*)*b*)*c*)*" * 300}),
    "pattern of repetitions": schema({"type": "string", "pattern": "^(((a{40}){40}){40})$"}),
    "schema of 126 arrays": _nested(126),
    "schema of 490 arrays": _nested(490),
    "schema of 1,000 arrays": _nested(1000),
    "schema of 2,000 values": schema({"enum": [f"value {i}" for i in range(2000)]}),
    "schema of 1,000 properties": schema({"type": "object", "properties": {f"p{i}": {} for i in range(1000)}}),
    "schema of references": schema(
        {"$defs": {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(60)} | {"d60": {}},
         "$ref": "#/$defs/d0"}),
    "schema of 50,000 items": schema({"type": "array", "items": {"type": "integer"}, "minItems": 50_000}),
    "schema refers to itself": schema({"$ref": "#"}),
    "10 MB of spaces": completion("chat3", prompt=" " * 10_200_000 + "x"),
    "26,000 spaces": completion("chat3", prompt=" " * 26_000 + "x"),
    "prompt of 4 MB": completion(prompt="a" * 4_000_000),
    "prompt of 16 MB": completion(prompt="a" * 16_000_000),
    "chat of 10 MB": chat("a" * 10_000_000),
    "100,000 messages": post(
        "/v1/chat/completions", lambda: {"model": "chat", "messages": [{"role": "user", "content": "a"}] * 100_000}),
    "100,000 parts": chat([{"type": "text", "text": "a"}] * 100_000),
    "100,000 prompts": completion(prompt=["a"] * 100_000),
    "100 prompts 16 times": completion(prompt=["a"] * 100, n=16),
    "1,000,000 tokens": completion(prompt=[1] * 1_000_000),
    "100,000 stop texts": completion(stop=[f"zz{i}" for i in range(100_000)], max_tokens=64),
    "stop text of 5 MB": completion(stop=["a" * 5_000_000]),
    "embeddings of 15 MB": post("/v1/embeddings", lambda: {"model": "embed", "input": "a" * 15_000_000}),
    "embeddings of 2,048 texts": post("/v1/embeddings", lambda: {"model": "embed", "input": ["a b " * 900] * 2048}),
    "embeddings of 100,000 texts": post("/v1/embeddings", lambda: {"model": "embed", "input": ["a"] * 100_000}),
    "nested JSON, each field of each route": [_with_nested_field(path, name) for path in _ROUTES for name in _FIELDS],
    "nested data": _infer(lambda: json.dumps(_tensor(data=5)).encode().replace(b"5}", _deep(900) + b"}")),
    "shape of zero and 2^47": _infer(lambda: _tensor(shape=[0, 1 << 47, 1 << 47, 1 << 47], data=[])),
    "60 MB of backslashes as a name": post(
        "/v1/completions", lambda: b'{"model":"' + b"\\\\" * (30 << 20) + b'"}'),
    "60 MB of digits": post("/v1/completions", lambda: b'{"model":"chat","max_tokens":' + b"1" * (60 << 20) + b"}"),
    "60 MB of escapes": post("/v1/completions", lambda: b'{"prompt":"' + b"\\u00e9" * (10 << 20) + b'"}'),
    "900,000 keys": post("/v1/completions", lambda: b"{%b}" % b",".join(b'"%d":1' % i for i in range(900_000))),
    "rerank 2,000 texts of 7 KB": post(
        "/v1/rerank", lambda: {"model": "rank", "query": "a b " * 1000, "documents": ["a b " * 1000] * 2000}),
    "JSON of empty lists": _infer(lambda: b'{"inputs":[' + b"[]," * 10_000_000 + b"[]]}"),
    "JSON of empty lists to chats": post(
        "/v1/chat/completions", lambda: b'{"messages":[' + b"[]," * 10_000_000 + b"[]]}"),
    "5,000,000 numbers": _infer(lambda: _tensor(shape=[312_500, 16], data=[0.5] * 5_000_000)),
    "300,000 tensors": _infer(lambda: {"inputs": [{"name": f"x{i}", "datatype": "FP32", "shape": [1], "data": [1.0]}
                                                  for i in range(300_000)]}),
    "1,000,000 outputs": _infer(lambda: {**_tensor(), "outputs": [{"name": "y"}] * 1_000_000}),
    "gzip bomb": _infer(lambda: _gzipped(b" " * (1 << 30)), Content_Encoding="gzip"),
    "gzip of 60 MB": _infer(lambda: _gzipped(b" " * (60 << 20)), Content_Encoding="gzip"),
    "image bomb of 900 megapixels": image(lambda: png(30_000, 30_000, b"")),
    "image of 60 megapixels": image(lambda: png(7_900, 7_900)),
    "three images of 60 megapixels": image(lambda: png(7_900, 7_900), count=3),
    "image that lies about its size": image(lambda: png(5_000, 5_000, b"\0" * 100)),
    "image of one line": image(lambda: png(1 << 26, 1)),
    "image of a huge size": image(lambda: png((1 << 31) - 1, (1 << 31) - 1, b"")),
    "image that is none": image(lambda: b"\x89PNG\r\n\x1a\n" + b"\xff" * 1000),
    "image of another format": image(lambda: b"GIF89a\xff\xff\xff\xff\xf7\x00\x00" + b"\x2c" * 5000, "gif"),
    "1,000 images": chat([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}] * 1000, "vision"),
    "picture bomb of 900 megapixels": picture(lambda: png(30_000, 30_000, b"")),
    "picture of 60 megapixels": picture(lambda: png(7_900, 7_900)),
    "pictures of one line and one column": [picture(lambda: png(1 << 26, 1)), picture(lambda: png(1, 1 << 22))],
    "pictures of one pixel, and of none": [picture(lambda: png(1, 1)), picture(lambda: png(0, 5, b""))],
    "pictures that lie about their size": [
        picture(lambda: png(5_000, 5_000, b"\0" * 100)), picture(lambda: bmp(20_000, 3_000)),
        picture(lambda: bmp(-5, -(1 << 31))), picture(lambda: gif(65_535, 1_000, 1)),
        picture(lambda: gif(9, 9, 100_000)),
        picture(lambda: png((1 << 31) - 1, (1 << 31) - 1, b""))],
    "picture with a bomb of text": picture(
        lambda: png(8, 8, before=png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 26), 9)))),
    "pictures that are none": [
        picture(partial(bytes, content)) for content in (b"", b"\0" * 1000, wav(100), b"RIFF\xff\xff\xff\x7fWEBPVP8 ",
                                                 b"\xff\xd8\xff\xe0" + b"\xff" * 5000, b"P6 9 9 255 ", b"%!PS-Adobe")],
    "pictures to models that take none": [
        picture(lambda: png(8, 8), model)
        for model in ("dense", "chat", "detect", "nope", "..%2f..", "%00", "a" * 9000)],
    "speech of 3 hours": speech(lambda: wav(8000 * 3600 * 3, 8000, 1)),
    "speech of 50 minutes": speech(lambda: wav(8000 * 3000, 8000, 1)),
    "speech at 1,000 a second": speech(lambda: wav(60_000_000, 1000, 1)),
    "speech that lies about its length": speech(lambda: wav(10)[:40] + b"\xff\xff\xff\x7f" + bytes(100)),
    "speech of 65,535 channels": speech(lambda: wav(100)[:22] + b"\xff\xff" + wav(100)[24:]),
    "speech at rate 0": speech(lambda: wav(100)[:24] + bytes(4) + wav(100)[28:]),
    "speech of zero bits": speech(lambda: wav(100)[:34] + bytes(2) + wav(100)[36:]),
}  # fmt: skip


TOGETHER: dict[str, tuple[Attack, int]] = {
    "16 pictures of 60 megapixels at once": (picture(lambda: png(7_900, 7_900)), 16),
}
"""Requests that are sent so many times at once, by name."""


def _gzipped(content: bytes) -> bytes:
    packer = zlib.compressobj(9, wbits=zlib.MAX_WBITS | 16)
    return packer.compress(content) + packer.flush()
