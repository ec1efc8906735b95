"""Maps a kernel's name to the model's operators that it computes, and to a kind of work."""

from __future__ import annotations

import re
from collections.abc import Sequence

from compiler.artifact.entries import RELEASE_ENTRY
from compiler.support.model_nodes import ModelNode

RUNTIME = "runtime"
KINDS = (
    "convolution",
    "matmul",
    "attention",
    "recurrent",
    "normalization",
    "pooling",
    "reduction",
    "elementwise",
    "data movement",
    RUNTIME,
)
"""Kinds of work, heaviest first: a fused kernel has the first kind among those of its operators."""

# Patterns of operator names, tried in this order.
_PATTERNS: tuple[tuple[str, str], ...] = (
    (r"conv", "convolution"),
    (r"matmul|dense|gemm|gemv|einsum|linear", "matmul"),
    (r"attention", "attention"),
    (r"lstm|gru|rnn", "recurrent"),
    (r"norm|softmax|lrn", "normalization"),
    (r"pool", "pooling"),
    (
        r"^(sum|mean|max|min|prod|argmax|argmin|variance|std|any|all|cumsum|cumprod|topk|sort|argsort|reduce)",
        "reduction",
    ),
    (
        r"transpose|reshape|concat|split|take|gather|scatter|slice|pad|expand_dims|squeeze|layout|broadcast|tile|repeat"
        r"|flip|roll|stack|flatten|copy|full|zeros|ones|arange|eye|pack|unique|resize|one_hot|space|depth|nonzero|where"
        r"|image|cast|astype|trilu|reverse",
        "data movement",
    ),
)
# Operator names of several words, so that "max_pool2d_add" is parsed as a pooling and an addition.
_WORDS = re.findall(
    r"\w+",
    """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d avg_pool1d avg_pool2d
    avg_pool3d max_pool1d max_pool2d max_pool3d batch_norm layer_norm rms_norm group_norm instance_norm
    log_softmax conv1d_transpose conv2d_transpose conv3d_transpose depthwise_conv2d group_conv2d nt_matmul
    batch_matmul strided_slice dynamic_strided_slice expand_dims broadcast_to layout_transform collapse_sum
    gather_elements gather_nd scatter_elements scatter_nd scatter_add index_put index_tensor take_along_axis
    one_hot cumulative_sum space_to_depth depth_to_space resize1d resize2d resize3d leaky_relu prelu hard_sigmoid
    hard_swish gelu_tanh floor_divide floor_mod logical_and logical_or logical_not logical_xor bitwise_and
    bitwise_or bitwise_xor greater_equal less_equal not_equal full_like zeros_like ones_like meshgrid
    squared_difference log_add_exp reduce_sum reduce_mean reduce_max matrix_multiply attention_bias
    """,
)
# Names that end in digits; digits at the end of other names number the kernels.
_NUMBERED = re.compile(r"(conv[123]d|\w*pool[123]d|resize[123]d|log2|log10|log1p|expm1|atan2|relu6)\d*$")
_BY_LENGTH = sorted(_WORDS, key=len, reverse=True)


def operators_of(kernel: str) -> tuple[str, ...]:
    """The operators in a kernel's name: "fused_conv2d_add1_relu" is ("conv2d", "add", "relu")."""
    if _is_runtime(kernel):
        return ()
    rest = re.sub(r"^fused_", "", kernel.lower())
    operators: list[str] = []
    while rest:
        word = next((each for each in _BY_LENGTH if re.match(rf"{each}\d*(_|$)", rest)), None)
        if word is None:
            head, _, rest = rest.partition("_")
            numbered = _NUMBERED.match(head)
            name = numbered.group(1) if numbered else head.rstrip("0123456789")
        else:
            name = word
            rest = re.sub(rf"^{word}\d*_?", "", rest)
        if name and name not in {"tir", "te", "t", "nn", "cpu", "kernel"}:
            operators.append(name)
    return tuple(operators)


def kind_of(kernel: str, operators: Sequence[str] | None = None) -> str:
    """The kind of work of a kernel, one of `KINDS`."""
    if _is_runtime(kernel):
        return RUNTIME
    names = operators_of(kernel) if operators is None else operators
    kinds = {_kind_of_operator(name) for name in names} or {"elementwise"}
    return next(kind for kind in KINDS if kind in kinds)


def main_node(nodes: Sequence[ModelNode]) -> ModelNode | None:
    """The node that accounts for most of a kernel's work: the first of the heaviest kind."""
    return min(nodes, key=lambda node: KINDS.index(_kind_of_operator(node.operator.lower())), default=None)


def names_of(nodes: Sequence[ModelNode]) -> tuple[str, ...]:
    """The distinct names of nodes, the main one's first."""
    first = main_node(nodes)
    return tuple(dict.fromkeys([first.name, *(node.name for node in nodes)])) if first is not None else ()


def layer_label(nodes: Sequence[str], kernel: str) -> str:
    """A layer's name in a table: its main node and the number of others, or the kernel's name if no node is known."""
    if not nodes:
        return kernel
    return nodes[0] if len(nodes) == 1 else f"{nodes[0]} (+{len(nodes) - 1})"


def _is_runtime(kernel: str) -> bool:
    # shape_func is TVM's name of generated code that computes sizes.
    # call_tir_dyn runs a kernel whose name TVM does not report.
    if kernel == "vm.builtin.call_tir_dyn":
        return False
    generated = kernel.rstrip("0123456789") in {"shape_func", "shape_func_", RELEASE_ENTRY}
    return generated or kernel.startswith("vm.")


def _kind_of_operator(name: str) -> str:
    return next((kind for pattern, kind in _PATTERNS if re.search(pattern, name)), "elementwise")
