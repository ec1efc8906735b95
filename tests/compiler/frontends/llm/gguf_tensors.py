"""The tensors of a GGUF file, by the names that llama.cpp's converter gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gguf
import numpy as np

_LIKE = {
    "cohere2moe": "exaone-moe",
    "granite_swa": "granite",
    "hy_v3": "exaone-moe",
    "laguna": "dots1",
    "mellum": "qwen3moe",
}  # which gguf's names lack


def write_tensors(
    writer: gguf.GGUFWriter, architecture: str, layers: int, tensors: Mapping[str, np.ndarray[Any, Any]]
) -> None:
    """Add the tensors in float32 and write the file. Names that begin with "blk." are those of the file already."""
    kind = next(each for each, name in gguf.MODEL_ARCH_NAMES.items() if name == _LIKE.get(architecture, architecture))
    names = gguf.get_tensor_name_map(kind, layers)
    for key, values in tensors.items():
        known = key if key.startswith("blk.") else names.get_name(key, try_suffixes=(".weight", ".bias"))
        assert known is not None, key
        writer.add_tensor(known, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
