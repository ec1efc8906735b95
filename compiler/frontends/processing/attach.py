"""`with_processing`: adds image preprocessing and result decoding to a model.

Also computes masks of an image's size from a network's outputs for its frame.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tvm import relax, te, tirx
from tvm.ir import GlobalVar
from tvm.relax import op as R
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from compiler.artifact.language_model import TOKENIZER_ASSET
from compiler.artifact.manifest import Requirement
from compiler.artifact.native_tokenizer.tokenizer import TOKENIZER_PROGRAM, native_tokenizer
from compiler.artifact.processing import PROCESSING_ASSET, encoded
from compiler.errors import OptionError, storage_errors
from compiler.frontends.flat_buffer import FlatBuffer
from compiler.frontends.imported_model import ImportedModel, TensorSpec, with_rewritten_main
from compiler.frontends.processing.geometry import Axis, axes_of, emit_frame, emit_placement
from compiler.frontends.processing.results import recognized, results_of
from compiler.passes.rewriting.substitution import replace_leaves
from compiler.support.processing import Processing, completed
from schedules.annotations import OPAQUE
from schedules.ir.tvm_types import BlockBuilder, Expr, Function, Stmt, Tensor

_LONGEST_EDGE = 1 << 16
_FLOATS = ("float32", "float16", "bfloat16")


def image_input(model: ImportedModel) -> TensorSpec:
    """Return the image input, the only one of rank 4. Raises OptionError if there is not exactly one."""
    images = [each for each in model.inputs if len(each.shape) == 4]
    if len(images) != 1:
        listed = "; ".join(map(str, model.inputs))
        raise OptionError(f"processing: one input of rank 4 is needed, but the model takes {listed}")
    return images[0]


def fixed_shape(model: ImportedModel, processing: Processing) -> tuple[str, tuple[int, ...]] | None:
    """Return the image input and a fixed shape for it if it is dynamic; otherwise None.

    Raises OptionError if its height or width is dynamic and no size is given.
    """
    spec = image_input(model)
    if all(isinstance(each, int) for each in spec.shape):
        return None
    layout = _layout(spec, processing)
    size = processing.size
    shape = [1 if axis == "N" else given for axis, given in zip(layout, spec.shape, strict=True)]
    for index, axis in enumerate(layout):
        if axis in "HW" and isinstance(shape[index], str):
            if size is None:
                raise OptionError(
                    f"processing: the network takes images of any size ({spec})",
                    "give size=(height, width) of the network's input",
                )
            shape[index] = size["HW".index(axis)]
        elif isinstance(shape[index], str):
            shape[index] = 1 if processing.colors == "gray" else 3
    return spec.name, tuple(int(each) for each in shape)


def with_description(model: ImportedModel, given: Processing) -> ImportedModel:
    """Return the model with its tokenizer and the description that `Module.predict` needs for text or speech.

    Raises OptionError, StorageError: there is no tokenizer.
    """
    processing, assets = completed(given), dict(model.assets)
    if processing.task in ("embed", "rerank"):
        if processing.tokenizer is None:
            raise OptionError(f"processing: {processing.task} needs a tokenizer", "give tokenizer=, a tokenizer.json")
        with storage_errors(processing.tokenizer, what="the tokenizer "):
            assets[TOKENIZER_ASSET] = Path(processing.tokenizer).read_bytes()
        native = native_tokenizer(assets[TOKENIZER_ASSET]) if processing.task == "embed" else None
        if native is not None:
            assets[TOKENIZER_PROGRAM] = native
        processing = replace(processing, tokenizer=TOKENIZER_ASSET)
    return replace(model, assets={**assets, PROCESSING_ASSET: encoded(processing)})


def with_processing(model: ImportedModel, given: Processing) -> ImportedModel:
    """Return the model with an image as its input and decoded results as its outputs.

    Args:
        model: with an image input of fixed shape, batch 1.
        given: options, completed with defaults here.

    Raises OptionError if the options do not fit the model.
    """
    processing = completed(recognized(model, given))
    spec = image_input(model)
    layout = _layout(spec, processing)
    sizes = {axis: int(size) for axis, size in zip(layout, spec.shape, strict=True)}
    size = (sizes["H"], sizes["W"])
    _check(spec, processing, sizes)
    processing = replace(processing, size=size)
    results, read = (None, []) if processing.task == "segment" else results_of(model, processing, size)
    attached = _Attached(model, processing, spec, results, read, layout)
    return attached.model()


def _layout(spec: TensorSpec, processing: Processing) -> str:
    """Return NCHW or NHWC, determined by the axis whose size is the number of channels."""
    channels = 1 if processing.colors == "gray" else 3
    if spec.shape[1] == channels or spec.shape[3] != channels:
        return "NCHW"
    return "NHWC"


def _check(spec: TensorSpec, processing: Processing, sizes: dict[str, int]) -> None:
    channels = 1 if processing.colors == "gray" else 3
    if sizes["N"] != 1:
        raise OptionError(f"processing: {spec} is a batch of {sizes['N']}", "fix it to 1 with shapes=")
    if sizes["C"] != channels:
        raise OptionError(
            f"processing: {spec} has {sizes['C']} channels, and {processing.colors} images have {channels}",
            "give colors=: rgb, bgr or gray",
        )
    if processing.size is not None and processing.size != (sizes["H"], sizes["W"]):
        raise OptionError(
            f"processing: size={processing.size}, but the network takes {sizes['H']} x {sizes['W']} pixels"
        )
    if spec.dtype not in (*_FLOATS, "uint8"):
        raise OptionError(f"processing: {spec} is not an image of floats or bytes")
    for name, values in (("mean", processing.mean), ("std", processing.std)):
        if values is not None and len(values) not in (1, channels):
            raise OptionError(f"processing: {name}= has {len(values)} values for {channels} channels")
    if processing.names is not None and len(set(processing.names)) == 0:
        raise OptionError("processing: names= is empty", "leave it out")


class _Attached:
    """Adds processing to one model."""

    def __init__(
        self,
        model: ImportedModel,
        processing: Processing,
        spec: TensorSpec,
        results: ImportedModel | None,
        read: Sequence[str],
        layout: str,
    ) -> None:
        self._model, self._processing, self._spec = model, processing, spec
        self._results, self._read, self._layout = results, read, layout
        taken = {str(size) for each in model.inputs for size in each.shape if isinstance(size, str)}
        self._names = [name if name not in taken else f"image_{name}" for name in ("height", "width")]

    def model(self) -> ImportedModel:
        """Return the model with processing."""
        model, names = self._model, self._names
        image = TensorSpec("image", (*names, 3), "uint8")
        outputs = self._results.outputs if self._results is not None else self._masks()
        inputs = [image if each is self._spec else each for each in model.inputs]
        bounds = [
            bound
            for name in names
            for bound in (
                Requirement(left=name, relation="at least", right="1", symbols={name: name}, where="the image"),
                Requirement(
                    left=str(_LONGEST_EDGE), relation="at least", right=name, symbols={name: name}, where="the image"
                ),
            )
        ]
        return replace(
            model,
            mod=with_rewritten_main(model.mod, self._function, "the module with processing"),
            inputs=inputs,
            outputs=outputs,
            requirements=(*model.requirements, *bounds),
            assets={**model.assets, PROCESSING_ASSET: encoded(self._processing)},
            nodes={**model.nodes, **(self._results.nodes if self._results is not None else {})},
        )

    def _function(self, builder: BlockBuilder) -> Function:
        main = self._model.mod["main"]
        size = self._processing.size
        assert size is not None
        shape = [*(tirx.Var(name, "int64") for name in self._names), tirx.const(3, "int64")]
        image = relax.Var("image", relax.TensorType(shape, "uint8"))
        at = self._model.inputs.index(self._spec)
        params = [image if index == at else each for index, each in enumerate(main.params)]
        builder.begin_scope(params)
        builder._begin_binding_block()
        frame = emit_frame(builder, image, self._processing, size, self._layout)
        if self._spec.dtype != "float32":
            frame = builder.emit(R.astype(frame, self._spec.dtype))
        outputs = _inlined(builder, main, [frame if index == at else each for index, each in enumerate(params)])
        by_name = dict(zip((each.name for each in self._model.outputs), outputs, strict=True))
        results = self._emit_results(builder, image, by_name)
        block = builder._end_block()
        builder.end_scope()
        result = relax.Var("results", relax.TupleType([each.ty for each in results]))
        bindings = [*block.bindings, relax.VarBinding(result, relax.Tuple(results))]
        body = relax.SeqExpr([relax.BindingBlock(bindings)], result)
        return relax.Function(params, builder.normalize(body), is_pure=True).with_attr(dict(main.attrs or {}))

    def _masks(self) -> list[TensorSpec]:
        return mask_outputs(self._model, self._processing, (self._names[0], self._names[1]))

    def _emit_results(self, builder: BlockBuilder, image: Expr, outputs: Mapping[str, Expr]) -> list[Expr]:
        size = self._processing.size
        assert size is not None
        if self._results is None:
            values = self._as_float(builder, outputs[self._model.outputs[0].name])
            return emit_mask(builder, image, values, self._processing, size)
        tensors = [self._as_float(builder, outputs[name]) for name in self._read]
        if self._processing.task == "detect":
            tensors.append(emit_placement(builder, image, self._processing, size))
        renamed = {
            var: builder.add_func(function, var.name_hint)
            for var, function in self._results.mod.functions_items()
            if var.name_hint != "main"
        }
        return _inlined(builder, self._results.mod["main"], tensors, lambda each: renamed.get(each, each))

    @staticmethod
    def _as_float(builder: BlockBuilder, output: Expr) -> Expr:
        return output if output.ty.dtype == "float32" else builder.emit(R.astype(output, "float32"))


def _inlined(
    builder: BlockBuilder,
    function: Function,
    arguments: Sequence[Expr],
    renamed: Callable[[GlobalVar], GlobalVar] = lambda each: each,
) -> list[Expr]:
    """Inline a function call; return the fields of its result."""
    values = dict(zip(function.params, arguments, strict=True))

    def leaf(each: Expr) -> Expr:
        return renamed(each) if isinstance(each, GlobalVar) else values.get(each, each)

    bindings = [binding for block in function.body.blocks for binding in block.bindings]
    for binding in bindings:
        value, var = builder.normalize(replace_leaves(binding.value, leaf)), binding.var
        if isinstance(var, relax.DataflowVar):  # not allowed outside a dataflow block
            values[var] = var = relax.Var(var.name, var.ty)
        if isinstance(binding, relax.MatchCast):
            builder.emit_normalized(relax.MatchCast(var, value, binding.ty))
        else:
            builder.emit_normalized(relax.VarBinding(var, value))
    result = function.body.body
    if isinstance(result, relax.Tuple):
        return [leaf(each) for each in result.fields]
    whole = leaf(result)
    return [builder.emit(relax.TupleGetItem(whole, index)) for index in range(len(whole.ty.fields))]


_MAX_CLASSES = 256  # in a uint8 mask


def mask_outputs(model: ImportedModel, processing: Processing, sizes: tuple[str, str]) -> list[TensorSpec]:
    """Return the outputs of a segmentation module: `mask`, and `scores` if the net has one class. Raises OptionError if
    the first output is not (1, classes, height, width) of known sizes, or has too many classes; or images are cropped.
    `sizes`: names of the image's height and width."""
    raw = model.outputs[0]
    if len(raw.shape) != 4 or raw.shape[0] != 1 or not all(isinstance(each, int) for each in raw.shape):
        raise OptionError(f"processing: {raw} is not a mask of each class: (1, classes, height, width)")
    classes = int(raw.shape[1])
    if classes > _MAX_CLASSES:
        raise OptionError(f"processing: masks can have at most {_MAX_CLASSES} classes, but {raw} has {classes}")
    if processing.resize == "crop":
        raise OptionError("processing: cropped parts have no mask", "use resize=stretch, letterbox or fit")
    mask = TensorSpec("mask", sizes, "uint8")
    return [mask, TensorSpec("scores", sizes, "float32")] if classes == 1 else [mask]


def emit_mask(
    builder: BlockBuilder, image: Expr, values: Expr, processing: Processing, size: tuple[int, int]
) -> list[Expr]:
    """Compute the class of each pixel, uint8 (height, width), from float32 values (1, classes, rows, columns) for a
    frame of `size`, interpolated linearly before the argmax, like the transformers library and mmsegmentation; for one
    class also the scores, float32 (height, width)."""
    height, width, _ = image.ty.shape.values
    attributes = {"op_pattern": OPAQUE}
    if int(values.ty.shape.values[1]) == 1:
        if processing.activation == "sigmoid":
            values = builder.emit(R.sigmoid(values))
        scores = builder.call_te(
            lambda *tensors: _scores(processing, size, *tensors),
            *(values, height, width),
            primfunc_name_hint="mask_scores",
            primfunc_attrs=attributes,
        )
        scores = builder.emit(scores)
        above = builder.emit(R.greater_equal(scores, relax.const(processing.score or 0.5, "float32")))
        return [builder.emit(R.astype(above, "uint8")), scores]
    by_pixel = builder.emit(R.permute_dims(values, [0, 2, 3, 1]))
    mask = builder.call_te(
        lambda *tensors: _classes(processing, size, *tensors),
        *(by_pixel, height, width),
        primfunc_name_hint="mask",
        primfunc_attrs=attributes,
    )
    return [builder.emit(mask)]


def _place(axis: Axis, count: Expr, position: Expr) -> tuple[Expr, Expr, Expr]:
    """Return the two neighbors, int64, of a pixel among `count` values along an axis of the frame, and the weight of
    the second, float32; positions outside the frame are clamped to its edge."""
    half = tirx.const(0.5, "float64")
    inside = (_real(position) + half) * _real(axis.resized) / _real(axis.image) - _real(axis.offset)
    coordinate = inside * _real(count) / tirx.const(float(axis.frame), "float64") - half
    coordinate = tirx.max(tirx.min(coordinate, _real(count - 1)), tirx.const(0.0, "float64"))
    low = tirx.Cast("int64", coordinate)
    return low, tirx.min(low + 1, count - 1), tirx.Cast("float32", coordinate - _real(low))


def _real(value: Expr) -> Expr:
    return tirx.Cast("float64", value)


def _scores(processing: Processing, size: tuple[int, int], values: Tensor, height: Expr, width: Expr) -> Tensor:
    vertical, horizontal = axes_of(processing, size, height, width)

    def score(row: Expr, column: Expr) -> Expr:
        top, bottom, down = _place(vertical, values.shape[2], row)
        left, right, over = _place(horizontal, values.shape[3], column)
        one = tirx.const(1.0, "float32")
        upper = values[0, 0, top, left] * (one - over) + values[0, 0, top, right] * over
        lower = values[0, 0, bottom, left] * (one - over) + values[0, 0, bottom, right] * over
        return upper * (one - down) + lower * down

    return te.compute((height, width), score, name="scores")


def _classes(processing: Processing, size: tuple[int, int], values: Tensor, height: Expr, width: Expr) -> Tensor:
    vertical, horizontal = axes_of(processing, size, height, width)
    classes = values.shape[3]

    def body(ins: list[Expr], outs: list[Expr]) -> Stmt:
        source = ins[0]
        with IRBuilder() as builder:
            with T.parallel(0, height) as row, T.serial(0, width) as column, T.seq_scope():
                top, bottom, down = (T.bind(each) for each in _place(vertical, values.shape[1], row))
                left, right, over = (T.bind(each) for each in _place(horizontal, values.shape[2], column))
                best = FlatBuffer(T.alloc_buffer([1], "float32", scope="local"))
                which = FlatBuffer(T.alloc_buffer([1], "int32", scope="local"))
                best[0], which[0] = tirx.min_value("float32"), tirx.const(0, "int32")
                one = tirx.const(1.0, "float32")
                with T.serial(0, classes) as channel, T.seq_scope():
                    upper = source[0, top, left, channel] * (one - over) + source[0, top, right, channel] * over
                    lower = source[0, bottom, left, channel] * (one - over) + source[0, bottom, right, channel] * over
                    value = T.bind(upper * (one - down) + lower * down)
                    which[0] = tirx.Select(value > best[0], tirx.Cast("int32", channel), which[0])
                    best[0] = tirx.max(best[0], value)
                T.buffer_store(outs[0], tirx.Cast("uint8", which[0]), [row, column])
            return builder.get()

    return te.extern([[height, width]], [values], body, dtype="uint8", name="mask")
