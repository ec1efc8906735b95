"""Tensorwright: compile trained models to small, fast, verified modules.

The public API, which `import tensorwright` hands on. Each name is loaded when first used, so that a device which only
runs modules never loads the compiler.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from compiler._shadowing import check_packages, check_platform
from compiler.errors import TensorwrightError

if TYPE_CHECKING:
    from compiler import errors, generation, onnx_backend, onnxruntime, serving, torch_backend
    from compiler.compression.distillation import distill
    from compiler.compression.low_rank import factorize
    from compiler.compression.model import CompressedModel
    from compiler.compression.pruning import prune
    from compiler.compression.quantization import QuantizedModel, quantize
    from compiler.compression.recipe import compress
    from compiler.compression.variants import write_variants
    from compiler.compression.weight_sharing import share_weights
    from compiler.driver.compile import compile
    from compiler.frontends.onnx import coverage_report
    from compiler.frontends.onnx.registry import register_onnx_operator
    from compiler.inspection.comparison import compare
    from compiler.inspection.graph_export import export_graph
    from compiler.profiling.bench import bench
    from compiler.profiling.profile import profile
    from compiler.runtime import Module, load
    from compiler.runtime.prediction import Classes, Detections, Ranking, Segmentation, Speech, Text, Vector
    from compiler.runtime.session import Session
    from compiler.searching.choice import choice
    from compiler.searching.result import SearchResult
    from compiler.searching.search import search
    from compiler.splitting.split import split
    from compiler.support.processing import Processing
    from compiler.tuning.tune import tune
    from targets import Target

__version__ = "0.1.0"

# Where each public name lives; a module of that name when the value is None.
_HOME: dict[str, str | None] = {
    "compile": "compiler.driver.compile",
    "load": "compiler.runtime",
    "Module": "compiler.runtime",
    "Session": "compiler.runtime.session",
    **dict.fromkeys(
        ("Classes", "Detections", "Ranking", "Segmentation", "Speech", "Text", "Vector"), "compiler.runtime.prediction"
    ),
    "CompressedModel": "compiler.compression.model",
    "QuantizedModel": "compiler.compression.quantization",
    "Processing": "compiler.support.processing",
    "Target": "targets",
    "SearchResult": "compiler.searching.result",
    "bench": "compiler.profiling.bench",
    "choice": "compiler.searching.choice",
    "compare": "compiler.inspection.comparison",
    "export_graph": "compiler.inspection.graph_export",
    "compress": "compiler.compression.recipe",
    "coverage_report": "compiler.frontends.onnx",
    "distill": "compiler.compression.distillation",
    "errors": None,
    "factorize": "compiler.compression.low_rank",
    "generation": None,
    "onnx_backend": None,
    "onnxruntime": None,
    "profile": "compiler.profiling.profile",
    "prune": "compiler.compression.pruning",
    "quantize": "compiler.compression.quantization",
    "register_onnx_operator": "compiler.frontends.onnx.registry",
    "search": "compiler.searching.search",
    "serving": None,
    "share_weights": "compiler.compression.weight_sharing",
    "split": "compiler.splitting.split",
    "torch_backend": None,
    "tune": "compiler.tuning.tune",
    "write_variants": "compiler.compression.variants",
}

__all__ = [
    "Classes",
    "CompressedModel",
    "Detections",
    "Module",
    "Processing",
    "QuantizedModel",
    "Ranking",
    "SearchResult",
    "Segmentation",
    "Session",
    "Speech",
    "Target",
    "TensorwrightError",
    "Text",
    "Vector",
    "__version__",
    "bench",
    "choice",
    "compare",
    "compile",
    "compress",
    "coverage_report",
    "distill",
    "errors",
    "export_graph",
    "factorize",
    "generation",
    "load",
    "onnx_backend",
    "onnxruntime",
    "profile",
    "prune",
    "quantize",
    "register_onnx_operator",
    "search",
    "serving",
    "share_weights",
    "split",
    "torch_backend",
    "tune",
    "write_variants",
]

check_platform()
check_packages()


if not TYPE_CHECKING:  # type checkers know the names by the imports above, and report any other

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module 'compiler' has no attribute {name!r}")
        home = _HOME[name]
        value = (
            importlib.import_module(f"compiler.{name}")
            if home is None
            else getattr(importlib.import_module(home), name)
        )
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
