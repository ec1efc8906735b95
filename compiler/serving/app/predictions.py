"""Predictions on pictures: the request body is an image, and the answer contains boxes, a mask, classes or a text."""

from __future__ import annotations

import asyncio
import re
import weakref

import numpy as np

from compiler.artifact import Artifact, read_artifact
from compiler.artifact.language_model import TOKENIZER_ASSET
from compiler.artifact.processing import PROCESSING_ASSET, decoded
from compiler.errors import InputError
from compiler.runtime.prediction.results import of_image
from compiler.serving.app.http import Call, Reply, check_method, json_reply
from compiler.serving.metrics import Metrics
from compiler.serving.repository import Repository, versions_of
from compiler.serving.service import Service
from compiler.support.processing import Processing

_PATH = re.compile(r"/v2/models/([^/]+)/predict")
_IMAGE = "image"  # the input name of modules with processing


class Predictions:
    """`POST /v2/models/NAME/predict`."""

    def __init__(self, repository: Repository, metrics: Metrics) -> None:
        self._repository, self._metrics = repository, metrics
        self._known: weakref.WeakKeyDictionary[Service, Processing] = weakref.WeakKeyDictionary()

    async def answer(self, call: Call) -> Reply | None:
        """See `Routes`."""
        matched = _PATH.fullmatch(call.path)
        if matched is None:
            return None
        check_method(call, "POST")
        name = matched[1]
        self._repository.options(name)  # raises if there is no such model
        call.model, call.route = name, "predict"
        with self._repository.lease(name) as service:
            processing = await self._processing(name, service)
            if not call.body:
                raise InputError("the request has no body", "send an image: curl --data-binary @cat.jpg URL")
            # An image decoder that crashes or hangs only ends its own process.
            pixels: np.ndarray = await call.required_sandbox.run("pixels", None, bytes(call.body))
            call.hold(pixels.nbytes)  # possibly a thousand times the file's size, and many may wait for the model
            latency = self._repository.options(name).latency_ms
            response = await service.infer(call.request({_IMAGE: pixels}, latency))
        call.observe([response], self._metrics)
        prediction = of_image(processing, response.outputs, pixels)
        if processing.task == "segment" or "masks" in response.outputs:  # masks are compressed
            return json_reply(await asyncio.to_thread(prediction.to_dict))
        return json_reply(prediction.to_dict())

    async def _processing(self, name: str, service: Service) -> Processing:
        """Return the processing of a model. Raises InputError if it has none, or is not for images."""
        if service not in self._known:
            if [each.name for each in service.inputs] != [_IMAGE]:
                raise InputError(
                    f"model {name!r} takes no pictures", "compile it with processing, or send tensors to .../infer"
                )
            artifact = await served_artifact(self._repository, name, service)
            if artifact is None:
                raise InputError(f"model {name!r} has variants, which take no pictures", "send tensors to .../infer")
            if PROCESSING_ASSET not in artifact.assets:
                raise InputError(f"model {name!r} was compiled without processing", "send tensors to .../infer")
            self._known[service] = decoded(artifact.assets[PROCESSING_ASSET].tobytes())
        return self._known[service]


async def served_artifact(repository: Repository, name: str, service: Service) -> Artifact | None:
    """Return the module that a service runs; None if it has variants. Raises ArtifactError, StorageError."""
    paths = versions_of(repository.options(name).path)
    path = next((path for path, version in paths if version == service.version), paths[0][0])
    return None if path.is_dir() else await asyncio.to_thread(read_artifact, path)


async def served_tokenizer(repository: Repository, name: str, service: Service) -> bytes | None:
    """Return the tokenizer.json configured for a model, or else that of its module; None if there is none.

    Raises ArtifactError, StorageError.
    """
    given = repository.options(name).text.tokenizer
    if given is not None:
        return await asyncio.to_thread(given.read_bytes)
    artifact = await served_artifact(repository, name, service)
    asset = None if artifact is None else artifact.assets.get(TOKENIZER_ASSET)
    return None if asset is None else asset.tobytes()
