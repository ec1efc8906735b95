"""Random requests: valid ones with one or several changes."""

from __future__ import annotations

import base64
import copy
import json
import random
from typing import Any

import numpy as np

from tests.fuzz.media import changed, pictures, recordings
from tests.fuzz.serving.attacks import FORM, Attack, bmp, gif, image, picture, png, wav
from tests.fuzz.serving.fields import VALUES


def _sound(random_: random.Random) -> tuple[str, dict[str, Any]]:
    """Path and JSON of a valid request."""
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "[a-z]{1,4}"}}, "required": ["a"]}
    picture = {"url": f"data:image/png;base64,{base64.b64encode(png(24, 16)).decode()}"}
    parts = [{"type": "image_url", "image_url": picture}, {"type": "text", "text": "what is it?"}]
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 16], "data": [0.25] * 32}
    pixels = {"name": "image", "datatype": "FP32", "shape": [1, 3, 16, 16], "data": [0.5] * 768}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    sampling = {"temperature": 0.7, "top_p": 0.9, "seed": 1, "stop": ["x", "yz"], "max_tokens": 6}
    choices: list[tuple[str, dict[str, Any]]] = [
        ("/v2/models/dense/infer", {"inputs": [tensor], "outputs": [{"name": "y"}], "id": "1", "parameters": {}}),
        ("/v2/models/detect/infer", {"inputs": [pixels]}),
        ("/v1/embeddings", {"model": "embed", "input": ["a text", "another"], "encoding_format": "float"}),
        ("/v1/embeddings", {"model": "embed", "input": [1, 2, 3]}),
        ("/v1/completions", {"model": "chat", "prompt": "hello", **sampling, "n": 2, "logprobs": 2}),
        ("/v1/completions", {"model": "chat3", "prompt": ["a b", "c"], **sampling, "stream": True}),
        ("/v1/completions", {"model": "chat", "prompt": "a", "max_tokens": 6, "response_format": form}),
        ("/v1/chat/completions", {"model": "chat", "messages": [{"role": "user", "content": "hi"}], **sampling}),
        (
            "/v1/chat/completions",
            {"model": "vision", "messages": [{"role": "user", "content": parts}], "max_tokens": 3},
        ),
    ]
    weights = [8, 4, 4, 2, 2, 2, 1, 2, 1]
    path, body = random_.choices(choices, weights)[0]
    return path, copy.deepcopy(body)


def request(seed: int) -> Attack:
    """The request for a seed."""
    random_ = random.Random(seed)
    kind = random_.random()
    if kind < 0.03:
        return _speech(random_)
    if kind < 0.06:
        return _path(random_)
    if kind < 0.09:
        return _picture(random_)
    path, body = _sound(random_)
    for _ in range(random_.choice((0, 1, 1, 1, 2, 4))):
        _change(body, random_)
    content = json.dumps(body).encode()
    headers = {}
    if random_.random() < 0.1:
        content = _damaged(content, random_)
    if random_.random() < 0.05:
        names = ("Content-Encoding", "Inference-Header-Content-Length", "Content-Type", "Tensorwright-Latency-Ms")
        headers[random_.choice(names)] = random_.choice(
            ("gzip", "-1", "10", "1e9", "nan", "deflate", "identity", "0.001")
        )
    return Attack("POST", path, lambda: content, headers)


def _change(body: Any, random_: random.Random) -> None:
    """Change one value, at any depth."""
    at = body
    while True:
        keys: list[Any] = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            return
        key = random_.choice(keys)
        inner = at[key]
        if isinstance(inner, dict | list) and inner and random_.random() < 0.7:
            at = inner
            continue
        _change_one(at, key, random_)
        return


def _change_one(at: Any, key: Any, random_: random.Random) -> None:
    """Replace, remove, rename or repeat one item of a list or an object."""
    inner, way = at[key], random_.randrange(3)
    if way == 0:
        at[key] = copy.deepcopy(random_.choice(VALUES))
    elif isinstance(at, list):
        if way == 1:
            at.append(copy.deepcopy(inner))
        else:
            at.clear()
    else:
        del at[key]
        if way == 1:
            at[f"{key}x"] = inner


def _damaged(content: bytes, random_: random.Random) -> bytes:
    at = random_.randrange(len(content))
    return random_.choice((
        content[:at],
        content[:at] + bytes([random_.randrange(256)]) + content[at + 1 :],
        content + b"\0",
        content[:at] + b"[" * random_.choice((1, 50, 2000)) + content[at:],
        b"\xef\xbb\xbf" + content,
    ))  # fmt: skip


def _speech(random_: random.Random) -> Attack:
    made = wav(random_.choice((0, 1, 400, 16000)), random_.choice((1000, 8000, 16000, 44100)))
    content = random_.choice((made, *recordings()))
    if random_.random() < 0.8:
        content = changed(content, np.random.default_rng(random_.getrandbits(32)))
    fields = [("model", b"speech"), ("file", content), ("language", b"en"), ("temperature", b"0")]
    if random_.random() < 0.3:
        fields[random_.randrange(4)] = (
            random_.choice(("model", "file", "x", "")),
            random_.choice((b"", b"\xff", b"nan")),
        )
    parts = [
        b'--B\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (name.encode(), value)
        for name, value in fields
    ]
    body = b"".join(parts) + random_.choice((b"--B--\r\n", b"--B--\r\n", b"", b"--B\r\n"))
    return Attack("POST", "/v1/audio/transcriptions", lambda: body, {"Content-Type": FORM})


def _picture(random_: random.Random) -> Attack:
    sizes = (0, 1, 7, 64, 500)
    made = (png(random_.choice(sizes), random_.choice(sizes)), gif(*random_.choices(sizes, k=3)),
            bmp(random_.choice(sizes), random_.choice((-9, 1, 9))))  # fmt: skip
    content = random_.choice((*made, *pictures()))
    if random_.random() < 0.8:
        content = changed(content, np.random.default_rng(random_.getrandbits(32)))
    if random_.random() < 0.2:
        return image(lambda: content, random_.choice(("png", "jpeg", "webp", "gif", "x")))
    return picture(lambda: content, random_.choice(("pictures", "pictures", "pictures", "detect")))


def _path(random_: random.Random) -> Attack:
    paths = ("/", "/metrics", "/v2", "/v2/health/ready", "/v1/models", "/v1/models/chat", "/v2/models/dense",
             "/nope", "/v2/models/dense/ready", "/v2/models/%ff/infer", "/v2/models/" + "a" * 5000,
             "/v2/repository/index")  # fmt: skip
    method = random_.choice(("GET", "HEAD", "POST", "DELETE", "OPTIONS"))
    return Attack(method, random_.choice(paths), lambda: b"", {})
