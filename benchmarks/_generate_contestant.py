"""One engine of `benchmarks.generate` in a process of its own: JSON lines in, seconds out.

It imports nothing of this project but for its own engine, so that other interpreters can run it as a script.

    {"run": "prompt", "tokens": [...]}     reads a fresh prompt: seconds up to the first token
    {"run": "decode", "count": 32}         then generates one token a step: seconds
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol


class Engine(Protocol):
    """One sequence: forget it, or read tokens and say which comes next."""

    def reset(self) -> None: ...

    def read(self, tokens: list[int]) -> int: ...


class Tensorwright:
    """A module of ours."""

    def __init__(self, path: str, threads: int, context: int) -> None:
        from compiler.runtime import load

        self._module = load(path, threads=threads)
        self._context = context
        self._session: Any = None

    def reset(self) -> None:
        self._session = self._module.session(capacity=self._context)

    def read(self, tokens: list[int]) -> int:
        import numpy as np

        found = self._session.run({"tokens": np.asarray([tokens], np.int64)}, outputs="dlpack")["logits"]
        return int(np.from_dlpack(found)[0, -1].argmax())


class LlamaCpp:
    """llama.cpp through llama-cpp-python."""

    def __init__(self, path: str, threads: int, context: int) -> None:
        from llama_cpp import Llama

        self._model = Llama(path, n_ctx=context, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False)

    def reset(self) -> None:
        self._model.reset()

    def read(self, tokens: list[int]) -> int:
        self._model.eval(tokens)
        scores = self._model._scores
        return int(scores[-1].argmax())


class OnnxRuntime:
    """ONNX Runtime GenAI: a folder of its model builder."""

    def __init__(self, path: str, threads: int, context: int) -> None:
        import onnxruntime_genai

        self._engine, self._context = onnxruntime_genai, context
        config = onnxruntime_genai.Config(path)
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        self._model = onnxruntime_genai.Model(config)
        self._generator: Any = None

    def reset(self) -> None:
        options = self._engine.GeneratorParams(self._model)
        options.set_search_options(max_length=self._context, do_sample=False)
        self._generator = self._engine.Generator(self._model, options)

    def read(self, tokens: list[int]) -> int:
        self._generator.append_tokens(tokens)
        return int(self._generator.get_logits()[0, -1].argmax())


class OpenVino:
    """OpenVINO, the stateful model of a folder that optimum-intel exported (what OpenVINO GenAI runs)."""

    def __init__(self, path: str, threads: int, context: int) -> None:
        import openvino

        model = openvino.Core().compile_model(
            f"{path}/openvino_model.xml", "CPU", {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        )
        self._request = model.create_infer_request()
        self._names = {name for port in model.inputs for name in port.names}
        self._length = 0

    def reset(self) -> None:
        self._request.reset_state()
        self._length = 0

    def read(self, tokens: list[int]) -> int:
        import numpy as np

        count, before = len(tokens), self._length
        given = {
            "input_ids": np.asarray([tokens], np.int64),
            "attention_mask": np.ones((1, before + count), np.int64),
            "position_ids": np.arange(before, before + count)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        self._request.infer({name: value for name, value in given.items() if name in self._names})
        self._length += count
        return int(self._request.get_output_tensor(0).data[0, -1].argmax())


ENGINES: dict[str, Callable[[str, int, int], Engine]] = {
    "tensorwright": Tensorwright,
    "llama.cpp": LlamaCpp,
    "onnxruntime-genai": OnnxRuntime,
    "openvino": OpenVino,
}


def peak_bytes() -> int:
    """Most memory resident at any time."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def main() -> None:
    """Load, then answer requests until the input ends."""
    name, path, threads, context = sys.argv[1:]
    begin = time.perf_counter()
    engine = ENGINES[name](path, int(threads), int(context))
    engine.reset()
    token = engine.read([1, 2, 3])
    print(json.dumps({"first_token": time.perf_counter() - begin}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request["run"] == "prompt":
            engine.reset()
            begin = time.perf_counter()
            token = engine.read(request["tokens"])
        else:
            begin = time.perf_counter()
            for _ in range(request["count"]):
                token = engine.read([token])
        print(json.dumps({"seconds": time.perf_counter() - begin, "peak_bytes": peak_bytes()}), flush=True)


if __name__ == "__main__":
    main()
