"""The description of a module's processing, stored with the manifest as the asset `processing.json`."""

from __future__ import annotations

import msgspec

from compiler.artifact.artifact import Artifact
from compiler.artifact.fields import FieldError
from compiler.errors import ArtifactError, OptionError
from compiler.support.processing import IMAGE_TASKS, Processing

PROCESSING_ASSET = "processing.json"


def encoded(processing: Processing) -> bytes:
    """The asset's content."""
    return msgspec.json.encode(processing)


def takes_images(artifact: Artifact) -> bool:
    """True for a module whose processing reads images. Raises ArtifactError."""
    asset = artifact.assets.get(PROCESSING_ASSET)
    return asset is not None and decoded(asset.tobytes()).task in IMAGE_TASKS


def decoded(content: bytes | memoryview) -> Processing:
    """The processing that an asset describes. Raises ArtifactError."""
    try:
        return msgspec.json.decode(content, type=Processing, strict=True)
    except (msgspec.MsgspecError, OptionError, FieldError, ValueError, RecursionError) as error:
        raise ArtifactError(f"the module's {PROCESSING_ASSET} cannot be read: {error}") from error
