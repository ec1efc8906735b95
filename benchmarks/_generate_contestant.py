"""One runtime of `benchmarks.generate` in its own process: JSON lines in, seconds out.

It imports nothing from this project unless it runs this project's runtime, so that other interpreters can run it as a
script.

    {"tokens": [...], "count": 32}     read a fresh prompt, then generate `count` tokens one by one: seconds of each
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol


class Engine(Protocol):
    """Engine that reads independent sequences one after another."""

    def measure(self, tokens: list[int], count: int) -> tuple[float, float]:
        """Return seconds from the prompt to the first token, and of each of the `count` tokens after it."""


class Stepwise:
    """A runtime that reads one token at a time."""

    def reset(self) -> None:
        """Discard the sequence."""
        raise NotImplementedError

    def read(self, tokens: list[int]) -> int:
        """Read tokens. Returns the most likely next one."""
        raise NotImplementedError

    def measure(self, tokens: list[int], count: int) -> tuple[float, float]:
        self.reset()
        begin = time.perf_counter()
        token = self.read(tokens)
        first = time.perf_counter()
        for _ in range(count):
            token = self.read([token])
        return first - begin, time.perf_counter() - first


class Tensorwright(Stepwise):
    """A compiled module."""

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


class LlamaCpp(Stepwise):
    """llama.cpp through llama-cpp-python, built with it or with the libraries of a release in its folder lib/."""

    def __init__(self, path: str, threads: int, context: int) -> None:
        from llama_cpp import Llama, _ggml

        # of a release: a library for each kind of processor; finds none in a build for this one
        _ggml.libggml.ggml_backend_load_all_from_path(str(_ggml.libggml_base_path).encode())
        self._model = Llama(path, n_ctx=context, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False)

    def reset(self) -> None:
        self._model.reset()

    def read(self, tokens: list[int]) -> int:
        self._model.eval(tokens)
        return int(self._model._scores[-1].argmax())


class OnnxRuntime(Stepwise):
    """ONNX Runtime GenAI: a folder written by its model builder."""

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


class OpenVino(Stepwise):
    """OpenVINO: a folder with a stateful model, token by token through its runtime."""

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

        count, past = len(tokens), self._length
        inputs = {
            "input_ids": np.asarray([tokens], np.int64),
            "attention_mask": np.ones((1, past + count), np.int64),
            "position_ids": np.arange(past, past + count)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        self._request.infer({name: value for name, value in inputs.items() if name in self._names})
        self._length += count
        return int(self._request.get_output_tensor(0).data[0, -1].argmax())


class OpenVinoGenAi:
    """OpenVINO GenAI: its own loop and timing. Prompts must be new, since it caches prefixes."""

    def __init__(self, path: str, threads: int, context: int) -> None:
        import openvino_genai

        self._engine = openvino_genai
        self._pipeline = openvino_genai.LLMPipeline(path, "CPU", INFERENCE_NUM_THREADS=threads)

    def measure(self, tokens: list[int], count: int) -> tuple[float, float]:
        import numpy as np
        import openvino

        config = self._engine.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = count + 1
        config.ignore_eos, config.do_sample, config.apply_chat_template = True, False, False
        given = np.array([tokens], np.int64)
        inputs = self._engine.TokenizedInputs(openvino.Tensor(given), openvino.Tensor(np.ones_like(given)))
        metrics = self._pipeline.generate(inputs, config).perf_metrics
        return metrics.get_ttft().mean / 1e3, metrics.get_tpot().mean * count / 1e3


ENGINES: dict[str, Callable[[str, int, int], Engine]] = {
    "tensorwright": Tensorwright,
    "llama.cpp": LlamaCpp,
    "onnxruntime-genai": OnnxRuntime,
    "openvino": OpenVino,
    "openvino-genai": OpenVinoGenAi,
}


def peak_bytes() -> int:
    """Return peak resident memory."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def main() -> None:
    """Load, generate a token, then answer requests until the input ends."""
    name, path, threads, context = sys.argv[1:]
    engine = ENGINES[name](path, int(threads), int(context))
    engine.measure([1, 2, 3], 1)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        prompt, decode = engine.measure(request["tokens"], request["count"])
        print(json.dumps({"prompt": prompt, "decode": decode, "peak_bytes": peak_bytes()}), flush=True)


if __name__ == "__main__":
    main()
