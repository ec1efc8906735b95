"""Decoding of a network's outputs to boxes and classes, as ONNX graphs in ONNX's textual syntax.

Each form of a detector's results is converted to `corners` (boxes, 4) in pixels of the frame, and `best`, `label`
(boxes,) in any order; then overlapping boxes are dropped, or, if the net already did that, those with low scores. A
detector whose second output is mask prototypes also returns a mask per box.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx.parser

from compiler.errors import InvalidModelError, OptionError
from compiler.frontends.imported_model import ImportedModel, TensorSpec
from compiler.frontends.onnx import import_onnx
from compiler.support.processing import Processing

_HEADER = '<ir_version: 9, opset_import: ["" : 18]>'
_FAR = 8192.0  # exceeds a frame's edges: boxes are shifted by this per class so that classes do not overlap
_CONSTANTS = """
  zero = Constant <value_ints = [0]> ()
  one = Constant <value_ints = [1]> ()
  two = Constant <value_ints = [2]> ()
  three = Constant <value_ints = [3]> ()
  four = Constant <value_ints = [4]> ()
  five = Constant <value_ints = [5]> ()
  six = Constant <value_ints = [6]> ()
  end = Constant <value_ints = [1073741824]> ()
  half = Constant <value_float = 0.5> ()
"""
_CLASSIFY = """
  flat = Flatten (raw)
  {activation}
  top_scores, top_classes = TopK (probabilities, count)
  scores = Squeeze (top_scores, zero)
  classes = Squeeze (top_classes, zero)
"""
_ACTIVATIONS = {
    "softmax": "probabilities = Softmax <axis = -1> ({0})",
    "sigmoid": "probabilities = Sigmoid ({0})",
    "none": "probabilities = Identity ({0})",
}
_CORNERS = """
  centers = Slice (entries, zero, two, one)
  extents = Slice (entries, two, four, one)
  halves = Mul (extents, half)
  low = Sub (centers, halves)
  high = Add (centers, halves)
  corners = Concat <axis = 1> (low, high)
"""
_BEST = """
  best = ReduceMax <keepdims = 0> (probabilities, one)
  label = ArgMax <axis = 1, keepdims = 0> (probabilities)
"""
_READ = """
  frames = Squeeze (raw, zero)
  {activation}
  best = ReduceMax <keepdims = 0> (probabilities, one)
  label = ArgMax <axis = 1, keepdims = 0> (probabilities)
  none = Constant <value_ints = [-1]> ()
  earlier = Slice (label, zero, none, zero)
  before = Concat <axis = 0> (none, earlier)
  blank = Constant <value_ints = [{blank}]> ()
  is_blank = Equal (label, blank)
  is_repeated = Equal (label, before)
  is_dropped = Or (is_blank, is_repeated)
  is_kept = Not (is_dropped)
  classes = Compress <axis = 0> (label, is_kept)
  scores = Compress <axis = 0> (best, is_kept)
"""
_YOLO = """
  turned = Transpose <perm = [0, 2, 1]> (raw)
  entries = Squeeze (turned, zero)
  class_end = Constant <value_ints = [{class_end}]> ()
  values = Slice (entries, four, class_end, one)
  coefficients = Slice (entries, class_end, end, one)
  {activation}
"""
_OBJECTNESS = """
  entries = Squeeze (raw, zero)
  class_end = Constant <value_ints = [{class_end}]> ()
  values = Slice (entries, five, class_end, one)
  coefficients = Slice (entries, class_end, end, one)
  objectness = Slice (entries, four, five, one)
  joint = Mul (values, objectness)
  probabilities = Identity (joint)
"""
_END_TO_END = """
  entries = Squeeze (raw, zero)
  corners = Slice (entries, zero, four, one)
  best_column = Slice (entries, four, five, one)
  best = Squeeze (best_column, one)
  label_column = Slice (entries, five, six, one)
  label_values = Squeeze (label_column, one)
  label = Cast <to = 7> (label_values)
  coefficients = Slice (entries, six, end, one)
"""
_RELATIVE = """
  relative = Squeeze (boxes_raw, zero)
  entries = Mul (relative, frame)
  logits = Squeeze (raw, zero)
"""
_DETR = """
  all = Softmax <axis = -1> (logits)
  before_last = Constant <value_ints = [-1]> ()
  probabilities = Slice (all, zero, before_last, one)
"""
_RT_DETR = """
  number = Constant <value_ints = [{classes}]> ()
  all = Sigmoid (logits)
  row = Constant <value_ints = [-1]> ()
  flat = Reshape (all, row)
  best, place = TopK (flat, count)
  label = Mod (place, number)
  query = Div (place, number)
  every = Identity (corners_of_queries)
  corners = Gather <axis = 0> (every, query)
"""
_SUPPRESSED = """
  label_value = Cast <to = 1> (label)
  far = Constant <value_float = {far}> ()
  move = Mul (label_value, far)
  moves = Unsqueeze (move, one)
  moved = Add (corners, moves)
  moved_batch = Unsqueeze (moved, zero)
  both = Constant <value_ints = [0, 1]> ()
  score_batch = Unsqueeze (best, both)
  overlap = Constant <value_float = {overlap}> ()
  least = Constant <value_float = {score}> ()
  selected = NonMaxSuppression (moved_batch, score_batch, count, overlap, least)
  kept_column = Slice (selected, two, three, one)
  kept = Squeeze (kept_column, one)
"""
_ABOVE = """
  most_scores, order = TopK (best, count)
  least = Constant <value_float = {score}> ()
  enough = Greater (most_scores, least)
  kept = Compress <axis = 0> (order, enough)
"""
# Like ultralytics' process_mask: matmuls with the prototypes, interpolated to the frame and cropped to their boxes;
# boxes without a pixel are dropped.
_MASKED = """
  of_boxes = Gather <axis = 0> (coefficients, kept)
  frames = Gather <axis = 0> (corners, kept)
  flat_shape = Constant <value_ints = [{count}, {pixels}]> ()
  flat = Reshape (prototypes, flat_shape)
  products = MatMul (of_boxes, flat)
  small_shape = Constant <value_ints = [-1, 1, {rows}, {columns}]> ()
  small = Reshape (products, small_shape)
  factors = Constant <value_floats = [1.0, 1.0, {down}, {over}]> ()
  logits_of_masks = Resize <mode = "linear"> (small, , factors)
  nothing = Constant <value_float = 0.0> ()
  is_positive = Greater (logits_of_masks, nothing)
  lefts = Slice (frames, zero, one, one)
  tops = Slice (frames, one, two, one)
  rights = Slice (frames, two, three, one)
  bottoms = Slice (frames, three, four, one)
  first_pixel = Constant <value_float = 0.0> ()
  next_pixel = Constant <value_float = 1.0> ()
  past_row = Constant <value_float = {height}> ()
  past_column = Constant <value_float = {width}> ()
  row = Range (first_pixel, past_row, next_pixel)
  column = Range (first_pixel, past_column, next_pixel)
  is_below = GreaterOrEqual (row, tops)
  is_above = Less (row, bottoms)
  is_right = GreaterOrEqual (column, lefts)
  is_left = Less (column, rights)
  has_row = And (is_below, is_above)
  has_column = And (is_right, is_left)
  row_axes = Constant <value_ints = [1, 3]> ()
  column_axes = Constant <value_ints = [1, 2]> ()
  rows = Unsqueeze (has_row, row_axes)
  columns = Unsqueeze (has_column, column_axes)
  is_in_box = And (rows, columns)
  is_on = And (is_positive, is_in_box)
  masks_of_all = Cast <to = 2> (is_on)
  pixel_axes = Constant <value_ints = [1, 2, 3]> ()
  is_seen = ReduceMax <keepdims = 0> (masks_of_all, pixel_axes)
  has_mask = Cast <to = 9> (is_seen)
  masks_with_axis = Compress <axis = 0> (masks_of_all, has_mask)
  masks = Squeeze (masks_with_axis, one)
  seen = Compress <axis = 0> (kept, has_mask)
"""
_PLACED = """
  scores = Gather <axis = 0> (best, {kept})
  classes = Gather <axis = 0> (label, {kept})
  chosen = Gather <axis = 0> (corners, {kept})
  start = Slice (placement, zero, one, zero)
  factor = Slice (placement, one, two, zero)
  most = Slice (placement, two, three, zero)
  shifted = Sub (chosen, start)
  scaled = Mul (shifted, factor)
  floor = Constant <value_floats = [0.0]> ()
  at_least = Max (scaled, floor)
  boxes = Min (at_least, most)
"""


def results_of(model: ImportedModel, processing: Processing, size: tuple[int, int]) -> tuple[ImportedModel, list[str]]:
    """Return the graph that decodes a net's outputs, and the names of the outputs that it reads, in order; for a
    detector it also reads a placement after them. Raises OptionError if the outputs do not have the form
    `processing.boxes`, or no form is given or recognized."""
    if processing.task == "classify":
        raw = model.outputs[0]
        classes = _numbers(raw)[-1] if len(raw.shape) == 2 else max(_numbers(raw))
        body = _CLASSIFY.format(activation=_ACTIVATIONS[processing.activation or "softmax"].format("flat"))
        results = "float[k] scores, int64[k] classes"
        return _graph(body, [("raw", raw)], results, min(processing.top or 5, classes)), [raw.name]
    if processing.task == "read":
        raw = model.outputs[0]
        _check_frames(raw, processing)
        activation = _ACTIVATIONS[processing.activation or "softmax"].format("frames")
        body = _READ.format(activation=activation, blank=processing.blank or 0)
        return _graph(body, [("raw", raw)], "float[n] scores, int64[n] classes", 1), [raw.name]
    raw, boxes = _detector_outputs(model, processing)
    read = [("raw", raw)] if boxes is None else [("raw", raw), ("boxes_raw", boxes)]
    results = "float[n, 4] boxes, float[n] scores, int64[n] classes"
    prototypes = prototypes_of(model, processing)
    if prototypes is not None:
        if processing.resize == "crop":
            raise OptionError("processing: cropped parts have no mask", "use resize=stretch, letterbox or fit")
        read.append(("prototypes", prototypes))
        results += f", uint8[n, {size[0]}, {size[1]}] masks"
    body = _detector_body(processing, raw, prototypes, size)
    count = min(processing.top or 300, _candidates(processing, raw))
    graph = _graph(body, read, results, count, placed=True, size=size)
    return graph, [each.name for _, each in read]


def prototypes_of(model: ImportedModel, processing: Processing) -> TensorSpec | None:
    """Return a detector's output with mask prototypes, (1, coefficients, rows, columns); None if it has none.

    Such a net's boxes have that many more columns, after their scores.
    """
    count = _prototypes(model)
    if not count or processing.boxes in ("detr", "rt-detr"):
        return None
    raw, prototypes = model.outputs
    axis, first = {"yolo": (1, 4), "yolo-objectness": (2, 5), "end-to-end": (2, 6)}[processing.boxes or "yolo"]
    columns = _numbers(raw)[axis] - first - count
    classes = 0 if processing.boxes == "end-to-end" else len(processing.names or range(max(columns, 1)))
    return prototypes if columns == classes else None


def _prototypes(model: ImportedModel) -> int:
    """Return the number of mask prototypes if the second of two outputs is (1, count, rows, columns), otherwise 0."""
    shape = model.outputs[-1].shape
    is_fixed = len(shape) == 4 and all(isinstance(each, int) for each in shape)
    return int(shape[1]) if len(model.outputs) == 2 and is_fixed and shape[0] == 1 else 0


def _check_frames(raw: TensorSpec, processing: Processing) -> None:
    """Raise OptionError unless an output holds per-step class scores, (1, steps, classes)."""
    numbers = _numbers(raw)
    if len(numbers) != 3 or numbers[0] != 1:
        raise OptionError(f"processing: {raw} is not (1, steps, classes)")
    if processing.names is not None and len(processing.names) != numbers[2]:
        raise OptionError(f"processing: {len(processing.names)} names for {numbers[2]} classes of {raw}")
    if (processing.blank or 0) >= numbers[2]:
        raise OptionError(f"processing: blank={processing.blank} is not one of {numbers[2]} classes")


def _detector_body(
    processing: Processing, raw: TensorSpec, prototypes: TensorSpec | None, size: tuple[int, int]
) -> str:
    """Return the nodes that decode a detector's raw results."""
    limits = {"score": processing.score, "overlap": processing.overlap, "far": _FAR}
    activation = _ACTIVATIONS[processing.activation or "none"].format("values")
    coefficients = 0 if prototypes is None else int(prototypes.shape[1])
    yolo_end, objectness_end = (int(raw.shape[axis]) - coefficients for axis in (1, 2))
    parts = {
        "yolo": (_YOLO.format(activation=activation, class_end=yolo_end), _CORNERS, _BEST, _SUPPRESSED),
        "yolo-objectness": (_OBJECTNESS.format(class_end=objectness_end), _CORNERS, _BEST, _SUPPRESSED),
        "end-to-end": (_END_TO_END, _ABOVE),
        "detr": (_RELATIVE, _CORNERS, _DETR, _BEST, _ABOVE),
        "rt-detr": (
            _RELATIVE,
            _CORNERS.replace("corners =", "corners_of_queries ="),
            _RT_DETR.format(classes=raw.shape[-1]),
            _ABOVE,
        ),
    }[processing.boxes or "yolo"]
    masked = "" if prototypes is None else _masked(prototypes, size)
    placed = _PLACED.format(kept="seen" if masked else "kept")
    return "".join([*parts[:-1], parts[-1].format(**limits), masked, placed])


def _masked(prototypes: TensorSpec, size: tuple[int, int]) -> str:
    """Return the nodes that compute the masks of the chosen boxes."""
    _, count, rows, columns = _numbers(prototypes)
    height, width = map(float, size)
    return _MASKED.format(
        count=count,
        pixels=rows * columns,
        rows=rows,
        columns=columns,
        down=height / rows,
        over=width / columns,
        height=height,
        width=width,
    )


def recognized(model: ImportedModel, processing: Processing) -> Processing:
    """Return the options with the form of a detector's results, inferred from names and shapes.

    Raises OptionError if the form cannot be inferred.
    """
    if processing.task != "detect" or processing.boxes is not None:
        return processing
    names = {each.name for each in model.outputs}
    if {"logits", "pred_boxes"} <= names:
        return Processing(boxes="detr").over(processing)
    shape = model.outputs[0].shape
    if len(shape) == 3 and shape[0] == 1 and all(isinstance(each, int) for each in shape):
        _, first, last = map(int, shape)
        classes = len(processing.names) if processing.names else None
        for masks in (_prototypes(model), 0):
            if last == 6 + masks and classes != 1 and first <= 1000:
                return Processing(boxes="end-to-end").over(processing)
            if first == (4 + classes + masks if classes else first) and 4 + masks < first < last:
                return Processing(boxes="yolo").over(processing)
            if last == (5 + classes + masks if classes else last) and 5 + masks < last < first:
                return Processing(boxes="yolo-objectness").over(processing)
    raise OptionError(
        "processing: the format of the boxes cannot be determined from the outputs "
        + "; ".join(map(str, model.outputs)),
        "give boxes= of `tensorwright.Processing`, or process the outputs yourself",
    )


def _detector_outputs(model: ImportedModel, processing: Processing) -> tuple[TensorSpec, TensorSpec | None]:
    by_name = {each.name: each for each in model.outputs}
    if processing.boxes in ("detr", "rt-detr"):
        if not {"logits", "pred_boxes"} <= by_name.keys():
            raise OptionError(
                f"processing: boxes={processing.boxes!r} needs outputs 'logits' and 'pred_boxes'",
                f"the model has {', '.join(by_name)}",
            )
        return by_name["logits"], by_name["pred_boxes"]
    raw = model.outputs[0]
    numbers = _numbers(raw)
    columns = {"yolo": (1, 5), "yolo-objectness": (2, 6), "end-to-end": (2, 6)}[processing.boxes or "yolo"]
    if len(numbers) != 3 or numbers[0] != 1 or numbers[columns[0]] < columns[1]:
        raise OptionError(f"processing: {raw} does not have the format boxes={processing.boxes!r}")
    return raw, None


def _candidates(processing: Processing, raw: TensorSpec) -> int:
    _, first, last = _numbers(raw)
    return {"yolo": last, "rt-detr": first * last}.get(processing.boxes or "yolo", first)


def _numbers(spec: TensorSpec) -> list[int]:
    """Return the shape of an output. Raises OptionError if a size is dynamic."""
    if not all(isinstance(each, int) for each in spec.shape):
        raise OptionError(f"processing: the size of output {spec} is dynamic", "fix the model's inputs with shapes=")
    return [int(each) for each in spec.shape]


def _graph(
    body: str,
    read: Sequence[tuple[str, TensorSpec]],
    results: str,
    count: int,
    *,
    placed: bool = False,
    size: tuple[int, int] = (1, 1),
) -> ImportedModel:
    """Import a graph of these nodes."""
    inputs = [f"float[{', '.join(map(str, spec.shape))}] {name}" for name, spec in read]
    inputs += ["float[3, 4] placement"] if placed else []
    height, width = map(float, size)
    frame = f"  frame = Constant <value_floats = [{width}, {height}, {width}, {height}]> ()\n"
    count_line = f"  count = Constant <value_ints = [{count}]> ()\n"
    text = f"{_HEADER}\nresults ({', '.join(inputs)}) => ({results}) {{{_CONSTANTS}{frame}{count_line}{body}}}"
    try:
        return import_onnx(onnx.parser.parse_model(text))
    except onnx.parser.ParseError as error:
        raise InvalidModelError(f"the result graph is invalid: {error}") from error
