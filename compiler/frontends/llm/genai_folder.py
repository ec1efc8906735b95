"""Folders of ONNX Runtime GenAI: genai_config.json and an ONNX model whose attention is or becomes GroupQueryAttention.

The graph takes a mask and growing caches; here the caches are in-place states of a fixed capacity, and the lengths
that attention needs are computed from the position.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper

from compiler.artifact.manifest import IndexRequirement
from compiler.errors import InvalidModelError, OptionError, StorageError
from compiler.frontends.imported_model import ImportedModel, PositionSpec
from compiler.frontends.llm.genai_attention import with_grouped_attention
from compiler.frontends.llm.options import LanguageModelOptions
from compiler.frontends.llm.safetensors_folder import read_json
from compiler.frontends.llm.settings import Settings
from compiler.frontends.onnx import import_onnx

CONFIG = "genai_config.json"
TOKENS, POSITION, LOGITS, CAPACITY = "tokens", "position", "logits", "capacity"
_ATTENTION, _PAST_KEY, _LENGTHS, _TOTAL = "GroupQueryAttention", 3, 5, 6
_POINTWISE = ("Cast", "Mul", "Div", "Tanh", "Add")
_PRODUCTS = ("MatMul", "MatMulNBits", "Gemm", "MatMulInteger")
_PREFIX = "tensorwright_"


@dataclass(frozen=True)
class GenaiModel:
    """A module with a decoder's inputs, outputs and states, and properties from its configuration."""

    model: ImportedModel
    architecture: str
    context: int
    vocabulary: int
    stop_tokens: tuple[int, ...]


def is_genai_folder(path: Path) -> bool:
    """True if a folder is a model of ONNX Runtime GenAI."""
    return (path / CONFIG).is_file()


def import_genai_folder(folder: Path, options: LanguageModelOptions) -> GenaiModel:
    """Import the decoder of a folder, with its weights' numbers unchanged.

    Raises:
        StorageError: a file is missing.
        InvalidModelError: the configuration and the model are inconsistent.
        OptionError: the model is not a single decoder with GroupQueryAttention, or an option does not apply.
        UnsupportedModelError: an operator has no conversion.
    """
    given = options.precision or options.cache or options.sequences or options.captures or options.grams
    if given or options.all_logits:
        raise OptionError(f"{folder}: a folder of ONNX Runtime GenAI is compiled as it is", "leave out its options")
    settings = Settings(read_json(folder / CONFIG).get("model") or {}, folder / CONFIG, {})
    decoder = Settings(settings.table("decoder"), settings.path, {"filename": "model.onnx"})
    path = folder / Path(str(decoder.get("filename"))).name
    if not path.is_file():
        raise StorageError(f"{folder} lacks {path.name}, which {CONFIG} names", "download it as well")
    try:
        proto = onnx.load(path)
    except (OSError, ValueError, DecodeError, onnx.checker.ValidationError) as error:
        raise InvalidModelError(f"{path} or its external data are damaged: {error}") from error
    pairs = _Graph(proto, decoder, path).rewritten()
    imported = import_onnx(proto, state=pairs)
    vocabulary = settings.size("vocab_size")
    rows = next(each.shape[1] for each in imported.inputs if each.name == TOKENS)
    tokens = IndexRequirement(input=TOKENS, size=str(vocabulary), where="the vocabulary", least="0")
    imported = replace(
        imported,
        states=tuple(replace(state, axis=2) for state in imported.states),
        position=PositionSpec(POSITION, rows),
        indices=(*imported.indices, tokens),
    )
    stops = settings.get("eos_token_id")
    stops = stops if isinstance(stops, list) else [] if stops is None else [stops]
    if not all(isinstance(each, int) and 0 <= each < vocabulary for each in stops):
        raise InvalidModelError(f"{settings.path}: 'eos_token_id' is {str(stops)[:80]}")
    kind = str(settings.get("type") or "")
    return GenaiModel(imported, kind, settings.size("context_length"), vocabulary, tuple(stops))


class _Graph:
    """A decoder's graph, modified in place."""

    def __init__(self, proto: onnx.ModelProto, decoder: Settings, path: Path) -> None:
        self._graph, self._decoder, self._path = proto.graph, decoder, path
        names, results = decoder.table("inputs"), decoder.table("outputs")
        self._ids = str(names.get("input_ids", "input_ids"))
        self._mask = str(names.get("attention_mask", "attention_mask"))
        self._positions = str(names.get("position_ids", "position_ids"))
        self._pasts = [str(names.get(key, "")) for key in ("past_key_names", "past_value_names")]
        self._presents = [str(results.get(key, "")) for key in ("present_key_names", "present_value_names")]
        self._logits = str(results.get("logits", "logits"))

    def rewritten(self) -> dict[str, str]:
        """Make it a function of tokens, position and caches; return pairs of caches and their next values."""
        graph = self._graph
        with_grouped_attention(graph, self._ids, self._mask, self._path)
        attentions = [node for node in graph.node if node.op_type == _ATTENTION]
        if not attentions or not {self._ids, self._mask} <= {each.name for each in graph.input}:
            raise OptionError(
                f"{self._path}: only decoders whose attention is {_ATTENTION} or MultiHeadAttention are supported",
                "build it with onnxruntime_genai.models.builder",
            )
        pairs = dict(self._caches())
        added = self._lengths(attentions)
        self._use_last_row()
        unused = {self._mask, self._positions, self._ids}
        inputs = [each for each in graph.input if each.name not in unused]
        tokens = helper.make_tensor_value_info(TOKENS, TensorProto.INT64, [1, "n"])
        position = helper.make_tensor_value_info(POSITION, TensorProto.INT64, [])
        nodes = [*added, *graph.node]
        self._rename(nodes, self._ids, TOKENS)
        del graph.input[:], graph.node[:], graph.value_info[:]
        graph.input.extend([tokens, position, *inputs])
        graph.node.extend(_needed(nodes, [each.name for each in graph.output]))
        if any(self._mask in node.input for node in graph.node):
            raise OptionError(f"{self._path}: the model reads its attention mask outside of {_ATTENTION}")
        return pairs

    def _caches(self) -> Iterator[tuple[str, str]]:
        """Yield past and present of each layer, whose row axis becomes the capacity."""
        outputs = {each.name: each for each in self._graph.output}
        patterns = [re.escape(name).replace("%d", r"(\d+)") for name in self._pasts]
        for value in self._graph.input:
            for pattern, present in zip(patterns, self._presents, strict=True):
                match = re.fullmatch(pattern, value.name)
                name = present.replace("%d", match.group(1)) if match else ""
                if match and name in outputs:
                    self._size(value)
                    outputs[name].type.CopyFrom(value.type)
                    yield value.name, name

    def _size(self, value: onnx.ValueInfoProto) -> None:
        """Set the shape of a cache: batch 1, a symbolic number of rows, and the head size of the attention."""
        sizes = value.type.tensor_type.shape.dim
        if len(sizes) != 4:
            raise InvalidModelError(f"{self._path}: the cache {value.name!r} has {len(sizes)} axes, not 4")
        sizes[0].dim_value = 1
        sizes[2].dim_param = CAPACITY
        if not sizes[3].dim_value:
            sizes[3].dim_value = self._decoder.size("head_size")

    def _lengths(self, attentions: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """Return nodes that compute the lengths and positions used by attention."""
        name = _PREFIX.__add__
        graph = self._graph
        graph.initializer.extend(
            helper.make_tensor(name(key), TensorProto.INT64, shape, [value])
            for key, shape, value in (
                ("one", [1], 1),
                ("two", [], 2),
                ("step", [], 1),
                ("whole", [1], -1),
                ("axis", [1], 0),
            )
        )
        past = attentions[0].input[_PAST_KEY]
        nodes = [
            helper.make_node("Shape", [self._ids], [name("shape")], start=1, end=2),
            helper.make_node("Reshape", [POSITION, name("whole")], [name("start")]),
            helper.make_node("Add", [name("start"), name("shape")], [name("end")]),
            helper.make_node("Sub", [name("end"), name("one")], [name("last")]),
            helper.make_node("Cast", [name("last")], [name("lengths")], to=TensorProto.INT32),
            helper.make_node("Shape", [past], [name("cache")]),
            helper.make_node("Gather", [name("cache"), name("two")], [name("rows")]),
            helper.make_node("Cast", [name("rows")], [name("total")], to=TensorProto.INT32),
        ]
        for node in attentions:
            node.input[_LENGTHS], node.input[_TOTAL] = name("lengths"), name("total")
        if any(each.name == self._positions for each in graph.input):
            graph.initializer.append(helper.make_tensor(name("zero"), TensorProto.INT64, [], [0]))
            nodes += [
                helper.make_node("Gather", [name("shape"), name("zero")], [name("count")]),
                helper.make_node("Range", [name("zero"), name("count"), name("step")], [name("range")]),
                helper.make_node("Add", [name("range"), name("start")], [name("places")]),
                helper.make_node("Unsqueeze", [name("places"), name("axis")], [self._positions]),
            ]
        return nodes

    def _use_last_row(self) -> None:
        """Compute the logits of the last token only, as float32."""
        graph = self._graph
        producers = {result: node for node in graph.node for result in node.output}
        output = next((each for each in graph.output if each.name == self._logits), None)
        if output is None:
            raise InvalidModelError(f"{self._path} has no output {self._logits!r}")
        node = producers[self._logits]
        while node.op_type in _POINTWISE and node.input[0] in producers:
            node = producers[node.input[0]]
        if node.op_type not in _PRODUCTS:
            raise OptionError(f"{self._path}: the logits come from {node.op_type}, not from a matmul")
        graph.initializer.append(helper.make_tensor(f"{_PREFIX}minus_one", TensorProto.INT64, [1], [-1]))
        last = f"{_PREFIX}last_row"
        # Precedes the matmul once `_needed` restores the node order.
        graph.node.append(helper.make_node("Gather", [node.input[0], f"{_PREFIX}minus_one"], [last], axis=1))
        node.input[0] = last
        kind = output.type.tensor_type.elem_type
        shape = [1, 1, output.type.tensor_type.shape.dim[2].dim_value]
        if kind != TensorProto.FLOAT or self._logits != LOGITS:
            renamed = f"{_PREFIX}logits"
            for user in graph.node:
                user.output[:] = [renamed if name == self._logits else name for name in user.output]
                user.input[:] = [renamed if name == self._logits else name for name in user.input]
            graph.node.append(helper.make_node("Cast", [renamed], [LOGITS], to=TensorProto.FLOAT))
        output.CopyFrom(helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, shape))

    @staticmethod
    def _rename(nodes: list[onnx.NodeProto], old: str, new: str) -> None:
        for node in nodes:
            for index, name in enumerate(node.input):
                if name == old:
                    node.input[index] = new


def _needed(nodes: list[onnx.NodeProto], outputs: list[str]) -> list[onnx.NodeProto]:
    """Return the nodes that the outputs depend on, in topological order."""
    producers = {result: node for node in nodes for result in node.output if result}
    ordered: list[onnx.NodeProto] = []
    done: set[int] = set()
    waiting: list[tuple[Any, bool]] = [(producers[name], False) for name in reversed(outputs) if name in producers]
    while waiting:
        node, is_ready = waiting.pop()
        if id(node) in done:
            continue
        if is_ready:
            done.add(id(node))
            ordered.append(node)
            continue
        waiting.append((node, True))
        waiting += [
            (producers[name], False) for name in node.input if name in producers and id(producers[name]) not in done
        ]
    return ordered
