"""Arguments of PyTorch's operators that conversions ignore do not affect results, or are converted here."""

from __future__ import annotations

import ast
import inspect
import logging
import textwrap
from collections.abc import Callable
from typing import Any

import onnxscript
import torch
import torchvision  # noqa: F401  (its operators are registered)
from torch.onnx._internal.exporter._registration import ONNXRegistry

from compiler.frontends.torch import decomposition, translations
from compiler.frontends.torch.resampling import RESAMPLING

# What says where and how tensors are stored, how gradients are computed, or which library to take.
_WITHOUT_EFFECT = {
    "layout", "device", "pin_memory", "non_blocking", "memory_format", "requires_grad", "sparse", "sparse_grad",
    "scale_grad_by_freq", "cudnn_enabled", "cudnn_enable", "implicit", "path", "generator",
}  # fmt: skip
# Others without an effect on values, by operator.
_WITHOUT_EFFECT_IN = {
    "aten::_scaled_dot_product_flash_attention": {"return_debug_mask"},  # an output for debugging
    "aten::_unique": {"sorted"},  # sorted results are right in any case
    "aten::_unique2": {"sorted"},
    "aten::unique_dim": {"sorted"},
    "aten::embedding": {"padding_idx"},  # of gradients
    "aten::empty_strided": {"stride"},
    "aten::new_empty_strided": {"stride"},
    "aten::native_group_norm": {"C", "HxW"},  # sizes of the input
    "aten::repeat_interleave.self_int": {"output_size"},  # known already
    "aten::sym_storage_offset": {"self"},
    "aten::stft": {"return_complex", "align_to_window"},  # pairs of numbers in any case; the other raises
    "onnx_symbolic::_symbolic": {"shape"},
    "onnx_symbolic::_symbolic_multi_out": {"shapes"},
}
# Whole operators that are refused: torch.export captures no Python boolean, and the conversion itself raises.
_REFUSED = {
    "aten::allclose": {"equal_nan"},
}


def _function(conversion: Any) -> Callable[..., Any]:
    return inspect.unwrap(conversion.function if isinstance(conversion, onnxscript.OnnxFunction) else conversion)


def _unread(conversion: Any, schema: Any) -> set[str]:
    """Arguments of the schema that the conversion does not take, or that no expression of it reads."""
    definition = ast.parse(textwrap.dedent(inspect.getsource(_function(conversion)))).body[0]
    assert isinstance(definition, ast.FunctionDef)
    given = definition.args
    parameters = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    names = [node for statement in definition.body for node in ast.walk(statement) if isinstance(node, ast.Name)]
    read = {node.id for node in names if isinstance(node.ctx, ast.Load)}
    found, position = set(), iter(parameters)
    for argument in schema.arguments:
        # Positional arguments are matched by their place: conversions may name them otherwise.
        parameter = argument.name if argument.kwarg_only else next(position, None)
        parameter = argument.name if argument.name in parameters else parameter
        if parameter not in parameters or parameter not in read:
            found.add(argument.name)
    return found


def _dropped(registry: ONNXRegistry) -> dict[str, set[str]]:
    """Arguments that the conversions we do not replace leave unread, by operator."""
    dropped: dict[str, set[str]] = {}
    for name, conversions in registry.functions.items():
        if str(name).startswith("quantized_decomposed::"):
            continue  # registered once torchao is imported; `quantized_operators.py` converts them
        for each in conversions:
            schema = getattr(each.fx_target, "_schema", None)
            if schema is None or str(each.fx_target) in RESAMPLING or str(each.fx_target) in translations.KNOWN:
                continue
            unread = _unread(each.onnx_function, schema) - _WITHOUT_EFFECT
            if unread and str(each.fx_target) not in decomposition.decomposed_operators():
                dropped.setdefault(str(name), set()).update(unread)
    return dropped


def test_every_argument_that_no_conversion_reads_is_accounted_for() -> None:
    logging.disable(logging.CRITICAL)
    try:
        registry = ONNXRegistry.from_torchlib()
    finally:
        logging.disable(logging.NOTSET)
    assert len(registry.functions) > 400
    assert _dropped(registry) == {**_WITHOUT_EFFECT_IN, **_REFUSED}


def test_an_argument_that_is_not_read_is_seen() -> None:
    def conversion(self: Any, kernel: Any, stride: Any = None) -> Any:
        kernel = [self, stride]
        return kernel[0]

    schema = torch.ops.aten.avg_pool2d.default._schema
    wanted = {"padding", "ceil_mode", "count_include_pad", "divisor_override"}
    assert _unread(conversion, schema) == wanted
