"""Models named by their Hugging Face Hub names: `hf:org/model`, `hf:org/model@revision`, `hf:org/model:file.gguf`.

Models in the local cache of huggingface_hub are used without network requests.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from compiler.errors import MissingDependencyError, OptionError, StorageError
from compiler.support.shown import shown

PREFIX = "hf:"
_FORM = re.compile(r"hf:(?P<repository>[\w.-]+/[\w.-]+?)(@(?P<revision>[\w.-][\w./-]*))?(:(?P<file>[\w.-][\w./-]*))?")
_LONGEST = 1024  # maximum characters of a name
# The files of a folder: weights, configuration and tokenizer, but not the same weights in formats of other libraries.
_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class HubModel:
    """A repository on the Hub, or one of its files; the newest revision if `revision` is None."""

    repository: str
    revision: str | None = None
    file: str | None = None

    @property
    def name(self) -> str:
        """Name of the file without its suffix, or of the repository without its owner."""
        return Path(self.file).stem if self.file is not None else self.repository.partition("/")[2]


def hub_model(source: object) -> HubModel | None:
    """The model named by a source of `compile`; None for any other source.

    Raises OptionError for invalid names.
    """
    if not isinstance(source, str | Path) or not str(source).startswith(PREFIX):
        return None
    match = _FORM.fullmatch(str(source))
    if match is None or ".." in str(source) or len(str(source)) > _LONGEST:
        raise OptionError(
            f"{shown(str(source))} is not a Hugging Face Hub name", "write hf:org/model, or hf:org/model:file.gguf"
        )
    return HubModel(match["repository"], match["revision"], match["file"])


def download(model: HubModel) -> Path:
    """The file or folder of a model, from the local cache or downloaded into it.

    Raises:
        MissingDependencyError: huggingface_hub is not installed.
        StorageError: the cache has no such model, and the Hub could not be reached or refused the request; the hint
            contains the command for downloading the model on another machine.
    """
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"{PREFIX}{model.repository}: huggingface_hub is not installed", "pip install huggingface_hub"
        ) from error
    problem: Exception | None = None
    for local in (True, False):
        try:
            if model.file is None:
                folder = _folder(model, local)
                if _has_weights(folder) or not local:
                    return folder
            else:
                stored = huggingface_hub.hf_hub_download(
                    model.repository, model.file, revision=model.revision, local_files_only=local
                )
                return Path(stored)
        except (HfHubHTTPError, OSError, ValueError) as error:  # includes network errors: httpx's errors are wrapped
            problem = error
    lines = str(problem).strip().splitlines()
    what = model.repository if model.file is None else f"{model.repository} {model.file}"
    raise StorageError(
        f"{what} is not in the local cache of the Hugging Face Hub and could not be downloaded"
        + (f": {lines[0]}" if lines else ""),
        f"on a machine with access to the Hub: hf download {what} --local-dir FOLDER, then give the path in FOLDER",
    ) from problem


def _folder(model: HubModel, local: bool) -> Path:
    """The folder of a repository; with the weights as PyTorch saves them only where there are no others."""
    import huggingface_hub

    for files in (_FILES, [*_FILES, *_WEIGHTS]):
        folder = Path(
            huggingface_hub.snapshot_download(
                model.repository, revision=model.revision, allow_patterns=files, local_files_only=local
            )
        )
        if _has_weights(folder):
            break
    return folder


def _has_weights(folder: Path) -> bool:
    return any(any(folder.rglob(pattern)) for pattern in _WEIGHTS)
