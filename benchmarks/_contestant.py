"""More contestants than `compiler.profiling.contestant`: runtimes on GPUs, and TVM's own pipeline."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Any

from compiler.profiling import contestant
from compiler.profiling.contestant import Array, Contestant, Examples, Run


def onnxruntime_cuda(path: str, examples: Examples, threads: int, precision: str) -> tuple[Run, str]:
    """ONNX Runtime on the GPU; inputs and outputs are in host memory, like ours.

    Raises RuntimeError if it would run on the CPU.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    provider = "CUDAExecutionProvider"
    if provider not in ort.get_available_providers():
        raise RuntimeError("this ONNX Runtime has no CUDA provider: pip install onnxruntime-gpu")
    # TF32 rounds operands to 10 bits; ours does not.
    session = ort.InferenceSession(path, options, providers=[(provider, {"use_tf32": 0})])
    if session.get_providers()[0] != provider:
        raise RuntimeError("ONNX Runtime could not load its CUDA provider")
    named = {value.name for value in session.get_inputs()}
    feeds = [{name: array for name, array in each.items() if name in named} for each in examples]
    return lambda index: session.run(None, feeds[index]), f"onnxruntime-gpu {ort.__version__}"


def torch_compile(path: str, examples: Examples, threads: int, precision: str) -> tuple[Run, str]:
    """torch.compile on the GPU, mode "max-autotune"; `path` is the name of a model in the catalog.

    Raises RuntimeError if torch finds no device.
    """
    import torch

    from benchmarks.catalog import CATALOG

    if not torch.cuda.is_available():
        raise RuntimeError("torch finds no CUDA device")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model: Any = torch.compile(CATALOG[path].load().cuda(), mode="max-autotune")

    def run(index: int) -> list[Array]:
        placed = [torch.from_numpy(each).cuda() for each in examples[index].values()]
        with torch.inference_mode():
            found = model(*placed)
        return [each.cpu().numpy() for each in (found if isinstance(found, list | tuple) else [found])]

    return run, f"torch {torch.__version__}"


def metaschedule(path: str, examples: Examples, threads: int, precision: str) -> tuple[Run, str]:
    """A library that `_metaschedule` built with TVM's own pipeline and tuner."""
    import schedules.ir.load_tvm  # noqa: F401

    # isort: split
    import tvm
    from tvm import relax

    machine = relax.VirtualMachine(tvm.runtime.load_module(path), tvm.cpu())
    arguments = [[tvm.runtime.tensor(array) for array in each.values()] for each in examples]
    call = machine["main"]

    def run(index: int) -> list[Array]:
        result = call(*arguments[index])
        return [each.numpy() for each in (result if isinstance(result, list | tuple | tvm.ir.Array) else [result])]

    return run, f"tvm {version('apache-tvm')}"


CONTESTANTS: dict[str, Contestant] = {
    **contestant.CONTESTANTS,
    "onnxruntime-cuda": onnxruntime_cuda,
    "torch-compile": torch_compile,
    "metaschedule": metaschedule,
}

if __name__ == "__main__":
    sys.exit(contestant.main(CONTESTANTS))
