"""The tensors of a quantized folder under their original names, read in their stored format."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from compiler.errors import InvalidModelError, OptionError
from compiler.frontends.llm.blocks import dequantized
from compiler.frontends.llm.quantized.bitsandbytes import bitsandbytes
from compiler.frontends.llm.quantized.compressed_tensors import compressed_tensors
from compiler.frontends.llm.quantized.floats import fbgemm, fine_grained, modelopt, mxfp4
from compiler.frontends.llm.quantized.gptq import auto_round, awq, gptq
from compiler.frontends.llm.quantized.parts import Parts, Scheme
from compiler.frontends.llm.safetensors_folder import SafetensorsFolder, read_json
from compiler.frontends.llm.settings import Settings
from compiler.frontends.llm.weights import Array, Matrix, Reader

# By the method names of transformers.
METHODS: Mapping[str, Callable[[Settings], Scheme | tuple[Scheme, ...]]] = {
    "auto-round": auto_round,
    "awq": awq,
    "bitsandbytes": bitsandbytes,
    "compressed-tensors": compressed_tensors,
    "fbgemm_fp8": fbgemm,
    "fp8": fine_grained,
    "gptq": gptq,
    "modelopt": modelopt,
    "mxfp4": mxfp4,
}
_KEYS = ("quantization_config", "compression_config")
_OLD_FILE = "quantize_config.json"  # AutoGPTQ's, next to a config.json without quantization settings


def open_folder(folder: Path) -> Reader:
    """Open the weights of a folder.

    Raises:
        StorageError, InvalidModelError: like `SafetensorsFolder`, or if config.json is damaged.
        OptionError: the weights are quantized by an unsupported method.
    """
    schemes = _schemes(folder)
    opened = SafetensorsFolder(folder)
    return QuantizedFolder(opened, schemes) if schemes else opened


def quantization(folder: Path) -> dict[str, Any] | None:
    """Return the quantization settings in config.json; None if there are none."""
    path = folder / "config.json"
    values = read_json(path)
    config = next((values[key] for key in _KEYS if values.get(key)), None)
    if config is None and (folder / _OLD_FILE).exists():
        return {"quant_method": "gptq", **read_json(folder / _OLD_FILE)}
    if config is not None and not isinstance(config, dict):
        raise InvalidModelError(f"{path}: 'quantization_config' is {json.dumps(config)[:80]}, not an object")
    return config


def _schemes(folder: Path) -> tuple[Scheme, ...]:
    """The quantization schemes used by a folder's weights; empty if they are not quantized."""
    values, path = quantization(folder), folder / "config.json"
    if values is None:
        return ()
    method = values.get("quant_method")
    if method is None and (values.get("load_in_4bit") or values.get("load_in_8bit")):
        method = "bitsandbytes"  # older versions omitted the name
    if not isinstance(method, str) or method not in METHODS:
        raise OptionError(
            f"{path}: weights quantized by {str(method)[:80]!r} are not supported",
            f"supported: {', '.join(sorted(METHODS))}; give the model in float16, bfloat16 or float32, or a GGUF file",
        )
    found = METHODS[method](Settings(values, path, {}))
    return found if isinstance(found, tuple) else (found,)


class QuantizedFolder:
    """A `Reader` of a folder with quantized weights; other tensors are read as usual."""

    def __init__(self, folder: SafetensorsFolder, schemes: Iterable[Scheme]) -> None:
        self._folder = folder
        self._quantized: dict[str, tuple[Scheme, Parts]] = {}
        unquantized = set(folder.names)
        for scheme in schemes:
            for name in folder.names:
                end = next((mark for mark in scheme.marks if name.endswith(mark)), None)
                if end is not None:
                    parts = Parts(folder, name.removesuffix(end))
                    self._quantized[f"{parts.module}.weight"] = scheme, parts
                    unquantized.difference_update(parts.module + each for each in scheme.ends)
            unquantized = {name for name in unquantized if not name.endswith(scheme.unused)}
        self._names = frozenset(unquantized | self._quantized.keys())

    @property
    def names(self) -> frozenset[str]:
        """Names of all tensors; a quantized weight has only the name of the weight itself."""
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape, slowest axis first. Raises InvalidModelError for damaged tensors."""
        if name not in self._quantized:
            return self._folder.shape(name)
        scheme, parts = self._quantized[name]
        return scheme.shape(parts)

    def matrix(self, name: str) -> Matrix:
        """Return a 2-D tensor; more axes are flattened to rows. Raises InvalidModelError like `shape`."""
        if name not in self._quantized:
            return self._folder.matrix(name)
        scheme, parts = self._quantized[name]
        result = scheme.read(parts)
        assert math.prod(self.shape(name)) == result.rows * result.depth
        return result

    def vector(self, name: str) -> Array:
        """Return a tensor as float32."""
        if name not in self._quantized:
            return self._folder.vector(name)
        values: Array = dequantized(self.matrix(name)).reshape(self.shape(name))
        return values
