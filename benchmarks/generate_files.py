"""Create GGUF files of several precisions from one, for `benchmarks.generate` and `benchmarks.perplexity`.

    INTERPRETER -m benchmarks.generate_files SOURCE.gguf FOLDER [--rotate] [--types Q8_0 Q4_0 ...]

FOLDER receives the dequantized SOURCE, F32.gguf, and versions of it quantized by llama.cpp's own code; `INTERPRETER`
needs llama-cpp-python, gguf and numpy, and nothing from this project is imported. If SOURCE is quantized, the weights
in F32.gguf are on its grid, so that another format may reproduce them exactly. `--rotate` prevents this: the weights of
norms are folded into the following matmuls, and the residual stream is rotated by a random orthogonal matrix. The
function is the same, but its weights are on no grid, and the head is untied from the embedding. For models with Llama's
architecture.
"""

from __future__ import annotations

import argparse
import ctypes
from pathlib import Path
from typing import Any

import numpy as np

_TYPES = {"BF16": "MOSTLY_BF16", "F16": "MOSTLY_F16", "F32": "ALL_F32"}
_READERS = {"attn_norm": ("attn_q", "attn_k", "attn_v"), "ffn_norm": ("ffn_gate", "ffn_up")}
_WRITERS = ("attn_output", "ffn_down")


def quantize(source: Path, target: Path, kind: str) -> None:
    """Write `target` with llama.cpp. Exits the program on failure."""
    import llama_cpp

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_{_TYPES.get(kind, f'MOSTLY_{kind}')}")
    options.allow_requantize = True
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(options)):
        raise SystemExit(f"llama.cpp cannot quantize {source} to {kind}")


def rotate(source: Path, target: Path) -> None:
    """Write the float32 model `source` with a rotated residual stream."""
    import gguf

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            element = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], element)
    for name, values in rotated(_tensors(reader)).items():
        writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(reader: Any) -> dict[str, np.ndarray]:
    return {
        each.name: np.asarray(each.data, np.float64).reshape([int(size) for size in reversed(each.shape)])
        for each in reader.tensors
    }


def rotated(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the tensors of the same function in the rotated stream."""
    table = tensors["token_embd.weight"]
    width = table.shape[1]
    turn, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((width, width)))
    head = tensors.get("output.weight", table)
    result = {
        "token_embd.weight": table @ turn,
        "output.weight": (head * tensors["output_norm.weight"]) @ turn,
        "output_norm.weight": np.ones(width),
    }
    layers = sorted({name.split(".")[1] for name in tensors if name.startswith("blk.")}, key=int)
    for block in (f"blk.{layer}." for layer in layers):
        for norm, names in _READERS.items():
            result[f"{block}{norm}.weight"] = np.ones(width)
            for name in names:
                result[f"{block}{name}.weight"] = (
                    tensors[f"{block}{name}.weight"] * tensors[f"{block}{norm}.weight"]
                ) @ turn
        for name in _WRITERS:
            result[f"{block}{name}.weight"] = turn.T @ tensors[f"{block}{name}.weight"]
    return result


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rotate", action="store_true")
    parser.add_argument("--types", nargs="+", default=["BF16", "F16", "Q8_0", "Q4_0", "Q4_1", "Q4_K_M"])
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    f32_path = options.folder / "F32.gguf"
    quantize(options.source, f32_path, "F32")
    if options.rotate:
        plain = f32_path.rename(options.folder / "plain.gguf")
        rotate(plain, f32_path)
        plain.unlink()
    for kind in options.types:
        quantize(f32_path, options.folder / f"{kind}.gguf", kind)


if __name__ == "__main__":
    main()
