"""GGUF architectures, small and random, against llama.cpp: logits and greedy tokens. Needs llama-cpp-python."""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import gguf
import numpy as np

import compiler
from compiler.errors import TensorwrightError
from compiler.frontends.llm import LanguageModelOptions, import_language_model
from compiler.frontends.llm.families import ARCHITECTURES
from compiler.frontends.llm.gguf_config import read_gguf
from compiler.frontends.llm.gguf_file import GgufFile
from tests.compiler.frontends.llm import (
    gpt_gguf,
    llama_gguf,
    recurrent_gguf,
    test_gguf_gpt,
    test_gguf_graphs,
    test_gguf_llama,
    test_recurrent_gguf,
)
from tests.compiler.frontends.llm.expert_gguf import write_expert_gguf
from tests.compiler.frontends.llm.families import save_model
from tests.compiler.frontends.llm.gpt_oss_gguf import write_gpt_oss_gguf
from tests.fuzz.forked import ending_of

Array: TypeAlias = "np.ndarray[Any, Any]"
_PROMPTS, _STEPS, _CONTEXT = (7, 128), 64, 192
_TOLERANCE = 2e-5  # relative to the largest logit
_GELU_TOLERANCE = 2e-2  # llama.cpp looks up GELU in a float16 table
_SECONDS = 300.0
_BASE = {
    "context_length": 2048,
    "embedding_length": 64,
    "block_count": 4,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "attention.layer_norm_epsilon": 1e-5,
    "rope.dimension_count": 16,
    "rope.freq_base": 5000.0,
    "vocab_size": 160,
}
_SHARED = {"expert_shared_count": 1, "leading_dense_block_count": 1, "expert_weights_scale": 1.0}
_PLAIN = {"rope_type": "default", "rope_theta": 1e4}
# architectures whose graphs need other sizes
_SIZES: dict[str, dict[str, Any]] = {
    "exaone4": {"block_count": 64},  # layers of the others have no windows
    "baichuan": {"block_count": 32},
    "qwen2moe": {"expert_shared_feed_forward_length": 56},
    **dict.fromkeys(("deepseek", "deepseek2-ocr"), _SHARED),
    "bailingmoe": {**_SHARED, "leading_dense_block_count": 0},  # and no others
    "refact": {"attention.head_count_kv": 4},
    "olmoe": {"attention.head_count_kv": 4, "feed_forward_length": 40},
    "jais": {"attention.head_count_kv": 4, "attention.max_alibi_bias": 8.0},
    "qwen": {"attention.head_count_kv": 4, "feed_forward_length": 192},
    "granitemoe": {
        "logit_scale": 4.0,
        "residual_scale": 0.5,
        "embedding_scale": 3.0,
        "attention.scale": 0.125,
        "expert_feed_forward_length": 96,
    },
    "llama4": {"interleave_moe_layer_step": 2, "attention.chunk_size": 8192},
}
# which files have, and llama.cpp does not ask for
_OPTIONAL: dict[str, dict[str, tuple[int, ...]]] = {
    "granitemoe": {"ffn_gate_exps.weight": (6, 96, 64)},
    "phi3": {"attn_qkv.weight": (128, 64)},
}
# folders: settings for which llama.cpp supports no other values
_CHANGES: dict[str, dict[str, Any]] = {
    **test_gguf_llama.CHANGES,
    **test_recurrent_gguf.CHANGES,
    "afmoe": {"num_hidden_layers": 4, "layer_types": [*["sliding_attention"] * 3, "full_attention"]},
    "exaone4": {"hidden_size": 64, "sliding_window": None, "layer_types": None},
    "dots1": {"num_key_value_heads": 4},
    "exaone_moe": {"num_shared_experts": 1},
    "glm4_moe": {**test_gguf_llama.CHANGES["glm4_moe"], "hidden_size": 64},
    "nemotron": {"hidden_size": 64},
    # of which llama.cpp adds one to the lengths of keys and queries, and transformers 1e-6
    "kimi_linear": {**test_recurrent_gguf.CHANGES["kimi_linear"], "rms_norm_eps": 1e-6},
    "mellum": {"rope_parameters": dict.fromkeys(("full_attention", "sliding_attention"), _PLAIN)},
}
_CHANGES["gemma3n_text"] |= {
    "altup_num_inputs": 4,
    "hidden_size_per_layer_input": 256,
    "laurel_rank": 64,
    "intermediate_size": 1024,  # llama.cpp's deviations of gates are of one less
    "num_hidden_layers": 5,
    "layer_types": [*["sliding_attention"] * 4, "full_attention"],
    "activation_sparsity_pattern": [0.95] * 5,  # of the first ten layers
    "num_kv_shared_layers": 0,  # of those behind the twentieth
    "final_logit_softcapping": 30.0,
}
_EPSILONS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")
_TEXTS = ("qwen2vl", "qwen3vl", "qwen3vlmoe", "paddleocr", "hunyuan_vl")  # vision: graphs of other files
_MIXTURE = {"expert_count": 6, "expert_used_count": 3, "expert_feed_forward_length": 40}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Architectures."""
    parser.add_argument("names", nargs="*", help="GGUF architectures; all that are supported when none is given")


def main(options: argparse.Namespace) -> int:
    """Print a line for each file; return 1 if one differs."""
    os.environ["GGML_NO_BACKTRACE"] = "1"  # a failed assertion would start a debugger, which waits
    wrong, seen = 0, set()
    for architecture, name, write in _files():
        if options.names and architecture not in options.names:
            continue
        seen.add(architecture)
        ending = ending_of(partial(_row, write), _SECONDS)
        text = ending.value if ending.kind == "returned" else f"{ending.kind}: {ending.reason}"
        wrong += not text.startswith("equal")
        print(f"{architecture} ({name}): {text}", flush=True)
    missing = sorted((set(options.names) or set(ARCHITECTURES)) - seen)
    print(f"no file is written of: {', '.join(missing) or 'none'}")
    return int(wrong > 0)


def _files() -> Iterator[tuple[str, str, Any]]:
    """Architecture, name, and a function that writes the file to a folder."""
    for name, architecture in llama_gguf.ARCHITECTURES.items():
        yield architecture, name, partial(_of_a_folder, name, llama_gguf.write_llama_gguf)
    for name in ("mamba", "mamba2", "dots1", *test_recurrent_gguf.KINDS):
        kind = f"{name.partition('-')[0]}{'-mixture' if name == 'nemotron_h-mixture' else ''}"
        write = recurrent_gguf.write_recurrent_gguf
        yield recurrent_gguf.ARCHITECTURES[kind][0], name, partial(_of_a_folder, name, write)
    for name, architecture in test_gguf_gpt.KINDS.items():
        yield architecture, name, partial(_of_a_gpt, name, architecture)
    for name, graph in test_gguf_graphs.GRAPHS.items():
        yield name, "a graph", partial(_of_a_graph, name, graph)
    yield "phimoe", "phimoe", _of_experts
    yield "gpt-oss", "gpt_oss", _of_gpt_oss
    for name, (metadata, _) in test_gguf_llama.KINDS.items():
        if name not in ("phimoe", "gpt-oss", *_TEXTS):
            yield name, "as llama.cpp asks", partial(_grown, name, metadata)


def _of_a_folder(name: str, write: Any, folder: Path) -> Path:
    save_model(name, folder, **_CHANGES.get(name, {}))
    return Path(write(folder / "model.gguf", folder))


def _of_a_gpt(name: str, architecture: str, folder: Path) -> Path:
    save_model(name, folder)
    return gpt_gguf.write_gpt_gguf(folder / "model.gguf", folder, architecture, gpt_gguf.sizes_of(folder))


def _of_a_graph(name: str, graph: Any, folder: Path) -> Path:
    tensors = test_gguf_graphs.tensors_of(graph)
    if name in ("openelm", "plm"):  # whose heads llama.cpp always ties
        del tensors["output.weight"]
    return test_gguf_graphs.written(folder / "model.gguf", name, graph, tensors)


def _of_experts(folder: Path) -> Path:
    save_model("phimoe", folder, hidden_size=64, head_dim=16, vocab_size=260)
    write_expert_gguf(folder / "model.gguf", folder, "phimoe", "F32")
    return folder / "model.gguf"


def _of_gpt_oss(folder: Path) -> Path:
    write_gpt_oss_gguf(folder / "model.gguf", folder, save_model("gpt_oss", folder, swiglu_limit=7.0).config)
    return folder / "model.gguf"


def _grown(architecture: str, metadata: Any, folder: Path) -> Path:
    """A file with the tensors that llama.cpp requires, in the shapes that it expects."""
    mixture = _MIXTURE if "expert_count" in metadata else {}
    values = {**_BASE, **metadata, **mixture, **_SIZES.get(architecture, {})}
    path = folder / "model.gguf"
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (values["vocab_size"], values["embedding_length"])}
    own = _OPTIONAL.get(architecture, {})
    shapes |= {f"blk.{layer}.{name}": shape for layer in range(values["block_count"]) for name, shape in own.items()}
    while True:
        _write(path, architecture, values, shapes)
        error = LlamaCpp.refusal(path)
        if not error:
            return path
        shape = re.search(r"tensor '(.+)' has wrong shape; expected ([\d, ]+), got", error)
        name = re.search(r"tensor '(.+)' not found", error)
        if shape and shapes[shape[1]] == (1,):
            shapes[shape[1]] = tuple(int(size) for size in reversed(shape[2].split(",")))
        elif name and name[1] not in shapes:
            shapes[name[1]] = (1,)
        else:
            raise ValueError(error)


def _write(path: Path, architecture: str, values: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in values.items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"{architecture}.{key}", value)
    writer.add_tokenizer_model("none")
    for name, shape in shapes.items():
        is_norm = name.endswith("norm.weight")
        writer.add_tensor(name, random.normal(float(is_norm), 0.1, shape).astype(np.float32))
    _finish(writer)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _with_vocabulary(path: Path) -> Path:
    """Add the metadata that llama.cpp needs: an empty tokenizer, and the vocabulary size."""
    reader = gguf.GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    rows = next(int(each.shape[1]) for each in reader.tensors if each.name == "token_embd.weight")
    writer = gguf.GGUFWriter(path.with_name("complete.gguf"), architecture)
    for key, each in reader.fields.items():
        others = ("general.architecture", f"{architecture}.vocab_size")
        if not key.startswith(("GGUF.", "tokenizer.")) and key not in others:
            element = each.types[-1] if each.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, each.contents(), each.types[0], element)
    writer.add_vocab_size(rows)
    writer.add_tokenizer_model("none")
    for name, other in (_EPSILONS, reversed(_EPSILONS)):
        known = reader.fields.get(f"{architecture}.{other}")
        if f"{architecture}.{name}" not in reader.fields:
            writer.add_float32(f"{architecture}.{name}", known.contents() if known else 1e-5)
    for each in reader.tensors:
        is_block = each.tensor_type != gguf.GGMLQuantizationType.F32
        values = each.data if is_block else each.data.reshape([int(size) for size in reversed(each.shape)])
        writer.add_tensor(each.name, values, raw_dtype=each.tensor_type if is_block else None)
    _finish(writer)
    return path.with_name("complete.gguf")


def _row(write: Any) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = _with_vocabulary(write(Path(folder)))
        peer = LlamaCpp(path)
        options = LanguageModelOptions(activations="float32", cache="float32")
        try:
            module = compiler.compile(import_language_model(path, options), threads=1, progress=None)
        except TensorwrightError as error:
            return f"refused: {error}"
        found = [_differences(module, peer, size) for size in _PROMPTS]
        gelu = read_gguf(GgufFile(path))[0].activation.startswith("gelu")
    most = _GELU_TOLERANCE if gelu else _TOLERANCE
    end = "equal" if all(worst <= most and same == _STEPS for worst, _, same, _ in found) else "WRONG"
    return f"{end}{' (GELU)' if gelu else ''}: " + ", ".join(
        f"after {size} {worst:.1e} (log probabilities {logs:.1e}), {same} of {_STEPS} tokens ({distinct} distinct)"
        for size, (worst, logs, same, distinct) in zip(_PROMPTS, found, strict=True)
    )


def _differences(module: Any, peer: LlamaCpp, size: int) -> tuple[float, float, int, int]:
    """The largest errors of the logits, of the largest logit, and of the five highest log probabilities; how many
    tokens agree, and how many are distinct."""
    step = np.random.default_rng(size).integers(1, peer.vocabulary, size)
    session = module.session(capacity=_CONTEXT if any("capacity" in each.shape for each in module.inputs) else None)
    peer.reset()
    worst, logs, same, tokens = 0.0, 0.0, 0, set()
    for _ in range(_STEPS):
        found, row = session.run([step[None]])["logits"][0, -1].astype(np.float64), peer.read(step)
        worst = max(worst, float(abs(found - row).max() / abs(row).max()))
        best = np.argsort(row)[-5:]
        logs = max(logs, float(abs(_log_softmax(found) - _log_softmax(row))[best].max()))
        same += int(found.argmax() == row.argmax())
        step = np.array([row.argmax()])
        tokens.add(int(step[0]))
    return worst, logs, same, len(tokens)


def _log_softmax(row: Array) -> Array:
    return row - row.max() - np.log(np.exp(row - row.max()).sum())


class LlamaCpp:
    """A model in llama.cpp, one thread, everything in float32."""

    def __init__(self, path: Path) -> None:
        import llama_cpp

        self._library = llama_cpp
        self._model = self._loaded(path)
        if not self._model:
            raise ValueError(self.refusal(path))
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = _CONTEXT
        options.n_threads = options.n_threads_batch = 1
        options.type_k = options.type_v = llama_cpp.GGML_TYPE_F32
        options.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = llama_cpp.llama_init_from_model(self._model, options)

    @staticmethod
    def _loaded(path: Path) -> Any:
        import llama_cpp
        from llama_cpp import _ggml

        _ggml.libggml.ggml_backend_load_all_from_path(str(_ggml.libggml_base_path).encode())
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0
        return llama_cpp.llama_model_load_from_file(str(path).encode(), options)

    @classmethod
    def refusal(cls, path: Path) -> str:
        """The reason why llama.cpp does not load a file; empty if it does."""
        import llama_cpp

        said: list[str] = []
        log = llama_cpp.llama_log_callback(lambda level, text, _: said.append(text.decode(errors="replace")))
        llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
        model = cls._loaded(path)
        llama_cpp.llama_log_set(llama_cpp.llama_log_callback(), ctypes.c_void_p(0))
        if not model:
            return "".join(line for line in said if "error" in line).strip()
        llama_cpp.llama_model_free(model)
        return ""

    def reset(self) -> None:
        """Forget all tokens."""
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)

    def read(self, tokens: Array) -> Array:
        """The logits after the last token, float64."""
        library = self._library
        given = (library.llama_token * len(tokens))(*(int(each) for each in tokens))
        if library.llama_decode(self._context, library.llama_batch_get_one(given, len(tokens))):
            raise ValueError("llama.cpp cannot compute it")
        logits = library.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(logits, (self.vocabulary,)).astype(np.float64)
