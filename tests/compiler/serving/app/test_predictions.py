"""Images over HTTP, including hostile ones."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import tensorwright
from compiler.serving.app.create import AppOptions
from compiler.serving.configuration import model_options
from compiler.serving.limits import Limits
from compiler.support.processing import Processing
from tests.compiler.frontends.processing.nets import NAMES, centers, net_with
from tests.compiler.serving.server import Running, dense_file, serving

pillow = pytest.importorskip("PIL.Image")
IMAGE = np.random.default_rng(0).integers(0, 256, (100, 200, 3), dtype=np.uint8)
PATH = "/v2/models/detector/predict"


@pytest.fixture(scope="module")
def module() -> tensorwright.Module:
    boxes, scores = centers()
    net = net_with({"output0": np.concatenate([boxes, scores], 1).T[None]})
    return tensorwright.compile(net, processing=Processing(task="detect", names=NAMES), threads=1)


@pytest.fixture(scope="module")
def server(module: tensorwright.Module, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder: Path = tmp_path_factory.mktemp("models")
    module.export(folder / "detector.twm")
    paths = (folder / "detector.twm", dense_file(folder))
    with serving([model_options({"path": str(path)}, "a model") for path in paths]) as running:
        yield running


def _file(form: str) -> bytes:
    buffer = io.BytesIO()
    pillow.fromarray(IMAGE).save(buffer, form)
    return buffer.getvalue()


def test_pictures_become_boxes(server: Running, module: tensorwright.Module) -> None:
    answer = server.ask("POST", PATH, _file("PNG"))
    assert answer.status == 200
    assert answer.json == json.loads(json.dumps(module.predict(IMAGE).to_dict()))
    assert server.ask("POST", PATH, _file("JPEG")).status == 200


def _huge() -> bytes:
    """A PNG whose header declares 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "body",
    [b"", b"GIF89a", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>", bytes(10_000), None],
    ids=["empty", "gif", "eps", "svg", "zeros", "huge"],
)
def test_hostile_pictures_are_refused(server: Running, body: bytes | None) -> None:
    assert server.ask("POST", PATH, _huge() if body is None else body).status == 400
    assert server.ask("GET", "/v2/health/ready").status == 200


def test_pixels_of_all_requests_are_bounded_together(module: tensorwright.Module, tmp_path: Path) -> None:
    module.export(tmp_path / "detector.twm")
    options = AppOptions(limits=Limits(held_bytes=50_000))
    with serving([model_options({"path": str(tmp_path / "detector.twm")}, "a model")], options) as running:
        buffer = io.BytesIO()
        pillow.new("1", (500, 500)).save(buffer, "PNG")  # 250 bytes, and 750,000 of pixels
        answer = running.ask("POST", PATH, buffer.getvalue())
        assert (answer.status, b"held_bytes" in answer.body) == (503, True)
        pillow.new("1", (100, 100)).save(buffer := io.BytesIO(), "PNG")
        assert [running.ask("POST", PATH, buffer.getvalue()).status for _ in range(3)] == [200] * 3


def test_damaged_pictures_are_answered(server: Running) -> None:
    generator = np.random.default_rng(1)
    for form in ("PNG", "JPEG", "WEBP", "BMP", "GIF"):
        content = bytearray(_file(form))
        for _ in range(4):
            for at in generator.integers(0, len(content), 20):
                content[at] = int(generator.integers(0, 256))
            cut = int(generator.integers(len(content) // 2, len(content)))
            assert server.ask("POST", PATH, bytes(content[:cut])).status in (200, 400)
    assert server.ask("POST", PATH, _file("PNG")).status == 200


def test_models_without_processing_say_so(server: Running) -> None:
    answer = server.ask("POST", "/v2/models/dense/predict", _file("PNG"))
    assert (answer.status, b"takes no pictures" in answer.body) == (400, True)
    assert server.ask("POST", "/v2/models/none/predict", b"x").status == 404
    assert server.ask("GET", PATH).status == 405
