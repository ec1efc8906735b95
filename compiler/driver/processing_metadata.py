"""Processing options from a model's files: ultralytics metadata, and files of the transformers or sentence-transformers
library next to the model."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import onnx

from compiler.errors import InvalidModelError, OptionError, type_text
from compiler.support.processing import Processing, Task

_LARGEST = 1 << 22  # maximum bytes of a JSON file
_FILTERS = {2: "bilinear", 3: "bicubic"}  # by Pillow's numbers
_LINE = (48, 320)  # size in pixels of a text line for PaddleOCR
_STATED = ("preprocessor_config.json", "config.json")


def stated_processing(source: object, given: Processing | Literal["auto"] | None) -> Processing | None:
    """The options given to `compile`, with None fields taken from the model's metadata.

    Raises:
        OptionError: "auto" was given and there is no such metadata; or the argument has another type.
        InvalidModelError: the metadata cannot be read.
    """
    if given is None:
        return None
    if not isinstance(given, Processing) and given != "auto":
        raise OptionError(f'processing= must be tensorwright.Processing(...) or "auto", not {type_text(given)}')
    detected = found_processing(source)
    if detected is None and (given == "auto" or given.task is None):
        raise OptionError(
            "processing: no metadata describes the model's inputs and outputs",
            f"give task= ({' or '.join(get_args(Task))}) of `tensorwright.Processing`: metadata of ultralytics' ONNX "
            "files, and preprocessor_config.json with config.json next to a model, are read",
        )
    return detected if given == "auto" else given.over(detected)


def found_processing(source: object) -> Processing | None:
    """Options from the metadata of an ONNX model or from the files next to it; None if there are none. Raises
    InvalidModelError if the metadata cannot be read, and OptionError if the metadata requires unsupported
    processing."""
    model = _onnx_model(source)
    metadata = {} if model is None else {each.key: each.value for each in model.metadata_props}
    if {"task", "names"} <= metadata.keys():
        return _of_ultralytics(metadata)
    if model is not None and "character" in metadata:
        return _of_paddle(metadata["character"], model)
    if isinstance(source, str | Path):
        for folder in (Path(source).parent, Path(source).parent.parent):  # Hub folders contain onnx/model.onnx
            if all((folder / name).is_file() for name in _STATED):
                return _of_transformers(*(_json(folder / name) for name in _STATED))
            if all((folder / name).is_file() for name in ("tokenizer.json", "modules.json")):
                return Processing(task="embed", tokenizer=str(folder / "tokenizer.json"))
    return None


def _onnx_model(source: object) -> onnx.ModelProto | None:
    if isinstance(source, str | Path):
        path = Path(source)
        if path.suffix != ".onnx" or not path.is_file():
            return None
        try:
            source = onnx.load(path, load_external_data=False)
        except Exception as error:  # protobuf's exception class depends on its version
            raise InvalidModelError(f"{path} is not an ONNX file: {error}") from error
    if isinstance(source, bytes):
        source = onnx.ModelProto.FromString(source)
    return source if isinstance(source, onnx.ModelProto) else None


def _of_paddle(characters: str, model: onnx.ModelProto) -> Processing:
    """The preprocessing of text lines for PaddleOCR's text recognition models, as exported by RapidOCR with their
    characters."""
    names = ("", *characters.splitlines(), " ")
    sizes = [each.dim_value for value in model.graph.input for each in value.type.tensor_type.shape.dim]
    if len(sizes) != 4:
        raise OptionError("processing: the model's metadata lists characters, but its input is not an image")
    size = (sizes[2] or _LINE[0], sizes[3] or _LINE[1])
    half = (0.5,)
    return Processing(
        task="read", size=size, names=names, colors="bgr", mean=half, std=half, fill=127, activation="none"
    )


def _of_ultralytics(metadata: Mapping[str, str]) -> Processing:
    """The image processing of ultralytics' `predict`."""
    task = metadata["task"]
    names = _literal(metadata["names"], "names")
    size = _literal(metadata["imgsz"], "imgsz") if "imgsz" in metadata else None
    if task not in ("detect", "segment", "classify"):
        raise OptionError(
            f"processing: the model's task is {task!r}",
            "for ultralytics' models, detect, segment and classify are supported; process the outputs yourself",
        )
    if not isinstance(names, dict) or sorted(names) != list(range(len(names))):
        raise InvalidModelError(f"the model's metadata lists no classes: {str(names)[:100]}")
    listed = tuple(str(names[each]) for each in range(len(names)))
    sizes = (int(size[0]), int(size[1])) if isinstance(size, list | tuple) and len(size) == 2 else None
    if task == "classify":  # the exported network computes the softmax
        return Processing(task="classify", size=sizes, names=listed, activation="none")
    return Processing(task="detect", size=sizes, names=listed)


def _literal(text: str, name: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise InvalidModelError(f"the model's metadata {name!r} cannot be read: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _LARGEST:
        raise InvalidModelError(f"{path} is larger than {_LARGEST >> 20} MiB")
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(parsed, dict):
        raise InvalidModelError(f"{path} is not a JSON object")
    return parsed


def _of_transformers(preprocessor: Mapping[str, Any], config: Mapping[str, Any]) -> Processing:
    """The image processing of the transformers library's image processors."""
    labels = config.get("id2label")
    names = None
    if isinstance(labels, dict) and sorted(labels, key=_number) == [str(each) for each in range(len(labels))]:
        names = tuple(str(labels[str(each)]) for each in range(len(labels)))
    architecture = str((config.get("architectures") or [""])[0])
    is_detector = "ObjectDetection" in architecture
    is_segmenter = architecture.endswith("ForSemanticSegmentation")
    boxes: Any = None
    if is_detector:
        boxes = "rt-detr" if "RTDetr" in architecture or "DFine" in architecture else "detr"
    rescales, normalizes = (bool(preprocessor.get(name, True)) for name in ("do_rescale", "do_normalize"))
    return Processing(
        task="detect" if is_detector else "segment" if is_segmenter else "classify",
        boxes=boxes,
        names=names,
        **_transformers_size(preprocessor),
        filter=_filter(preprocessor),
        antialias=True,
        scale=float(preprocessor.get("rescale_factor", 1 / 255)) if rescales else 1.0,
        mean=_channels(preprocessor, "image_mean") if normalizes else None,
        std=_channels(preprocessor, "image_std") if normalizes else None,
        even_crop=False,
        fill=0,
    )


def _transformers_size(preprocessor: Mapping[str, Any]) -> dict[str, Any]:
    """The options `resize`, `size` and `shortest`."""
    size, crop = preprocessor.get("size"), preprocessor.get("crop_size")
    if isinstance(size, int):  # in earlier versions of the library
        size = {"shortest_edge": size} if preprocessor.get("do_center_crop") else {"height": size, "width": size}
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    try:
        if isinstance(size, dict) and "shortest_edge" in size and preprocessor.get("do_center_crop"):
            cut = (int(crop["height"]), int(crop["width"])) if isinstance(crop, dict) else None
            return {"resize": "crop", "shortest": int(size["shortest_edge"]), "size": cut}
        if isinstance(size, dict) and {"height", "width"} <= size.keys() and not preprocessor.get("do_center_crop"):
            return {"resize": "stretch", "size": (int(size["height"]), int(size["width"]))}
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidModelError(f"the sizes of preprocessor_config.json cannot be read: {error}") from error
    raise OptionError(
        f"processing: preprocessor_config.json asks for size {size} and crop {crop}, which is not supported",
        "give resize= and size= of `tensorwright.Processing`",
    )


def _filter(preprocessor: Mapping[str, Any]) -> Any:
    resample = preprocessor.get("resample", 2)
    if resample not in _FILTERS:
        raise OptionError(f"processing: resample={resample} of preprocessor_config.json is not supported")
    return _FILTERS[resample]


def _channels(preprocessor: Mapping[str, Any], name: str) -> tuple[float, ...] | None:
    values = preprocessor.get(name)
    if values is None:
        return None
    try:
        return tuple(float(each) for each in (values if isinstance(values, list) else [values]))
    except (TypeError, ValueError) as error:
        raise InvalidModelError(f"{name} of preprocessor_config.json cannot be read: {error}") from error


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else -1
