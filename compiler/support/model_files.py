"""Recognizes model files and folders of other programs by their content, and tells how to export them."""

from __future__ import annotations

import io
import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from compiler.errors import InvalidModelError, StorageError

_EXPORT_TORCH = (
    "build the model in Python and export it: torch.export.save(torch.export.export(model.eval(), example_inputs), "
    '"model.pt2"), or give the torch.nn.Module itself to tensorwright.compile with example_inputs='
)
_EXPORTED_PROGRAM = "a program saved by torch.export.save"
_EXPORT_HUB = (
    "pip install 'optimum[onnx]', then optimum-cli export onnx --model {name} FOLDER, and compile FOLDER/model.onnx"
)
_DOWNLOAD_HUB = "; a language model is downloaded and compiled by its name: hf:{name}"
FORMATS = (
    "models are .onnx files, programs of torch.export (.pt2), and language models as GGUF files or transformers folders"
)
_EXPORT_ULTRALYTICS = (
    "export ultralytics' detectors to ONNX: pip install ultralytics, then yolo export model={name} format=onnx"
)
_EXPORT_TENSORFLOW = (
    "export it to ONNX: pip install tf2onnx, then python -m tf2onnx.convert --{kind} {path} --output model.onnx"
)
_COMPRESSED = (
    (b"\x1f\x8b", "gzip", "gunzip"),
    (b"BZh", "bzip2", "bunzip2"),
    (b"\xfd7zXZ\x00", "xz", "unxz"),
    (b"\x28\xb5\x2f\xfd", "Zstandard", "unzstd"),
)
_DATA = (
    (b"\x93NUMPY", "an array of numpy"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"GIF8", "a picture"),
    (b"RIFF", "a recording or a picture"),
    (b"OggS", "a recording"),
    (b"ID3", "a recording"),
    (b"PAR1", "a Parquet table"),
    (b"%PDF", "a PDF document"),
    (b"\x7fELF", "a program or library"),
)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SUFFIXES = (
    ".onnx",
    ".pt2",
    ".pth",
    ".gguf",
    ".twm",
    ".safetensors",
    ".bin",
    ".tflite",
    ".keras",
    ".h5",
    ".pkl",
    ".xml",
    ".pb",
    ".zip",
)
_HEAD = 4096
_GGUF = b"GGUF"
# Suffixes of transformers class names for models that generate text.
_GENERATING = (
    "ForCausalLM",
    "LMHeadModel",
    "ModelWithLMHead",
    "GenerationDecoder",
    "ForConditionalGeneration",
    "ForSpeechSeq2Seq",
    "MTModel",
)


@dataclass(frozen=True)
class ForeignFile:
    """The kind of a file ("a TorchScript program"), and a hint how to convert it to a supported format."""

    kind: str
    hint: str


def check_is_model_file(path: Path, *, exported_program: bool = False) -> None:
    """Raise InvalidModelError with export instructions if a file is a model of another program. `exported_program`: the
    file should be a program saved by `torch.export.save`, not an ONNX model."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return  # the code that reads the file reports the reason
    if path.suffix == ".gguf" and head.startswith(_GGUF):  # read by the importer of language models
        hint = f"compile it, and give the module: tensorwright compile {path}"
        raise InvalidModelError(f"{path} is a language model, but an ONNX or PyTorch graph is needed", hint)
    if path.suffix == ".gguf":
        raise InvalidModelError(f"{path} is not a GGUF file, or it is damaged", "download or convert the file again")
    found = foreign_file(head, path)
    if found is not None and not (exported_program and found.kind == _EXPORTED_PROGRAM):
        raise InvalidModelError(f"{path} is {found.kind}", found.hint)


def check_is_model_data(data: bytes) -> None:
    """Raise InvalidModelError if bytes are a model of another program."""
    found = foreign_file(data[:_HEAD], data)
    if found is not None:
        raise InvalidModelError(f"the given bytes are {found.kind}", found.hint)


def foreign_file(head: bytes, source: Path | bytes) -> ForeignFile | None:
    """The kind of a file or bytes that start with `head`; None if they may be ONNX."""
    name = str(source) if isinstance(source, Path) else "FILE"
    if head.startswith(b"PK\x03\x04"):
        return _archive(source, name)
    if re.match(rb"\x80[\x02-\x05]", head):
        return _pickle(head)
    if head[4:8] == b"TFL3":
        return ForeignFile("a TensorFlow Lite model", _EXPORT_TENSORFLOW.format(kind="tflite", path=name))
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 30:
        return ForeignFile("a safetensors file, which contains weights but no model", _weights_hint())
    if head.startswith(_GGUF):
        return ForeignFile("a GGUF file, which contains the weights of a language model but no graph", _weights_hint())
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return ForeignFile("an HDF5 file, as Keras saves models", _EXPORT_TENSORFLOW.format(kind="keras", path=name))
    if re.match(rb"\s*(<\?xml[^>]*>\s*)?<net[\s>]", head):
        return ForeignFile(
            "an OpenVINO model", "compile the ONNX or PyTorch model that it was made from; OpenVINO does not write ONNX"
        )
    for magic, kind, command in _COMPRESSED:
        if head.startswith(magic):
            return ForeignFile(f"a file compressed by {kind}", f"unpack it first: {command} {name}")
    if re.match(rb"\s*[{\[]", head):
        return ForeignFile(
            "a JSON file, not a model",
            "a language model is compiled by its folder; a download may have returned an answer in place of the model",
        )
    if re.match(rb"\s*<[!?a-zA-Z]", head):
        return ForeignFile("a text file, not a model", "a download may have returned a page in place of the model")
    for magic, kind in _DATA:
        if head.startswith(magic):
            return ForeignFile(f"{kind}, not a model", f"data are for its inputs; {FORMATS}")
    if head.startswith(b"version https://git-lfs"):
        return ForeignFile("a pointer of Git LFS, not the model itself", "fetch the file: git lfs pull")
    if re.search(rb"^\s*(import|from) \w|^\s*def \w", head, re.MULTILINE) and _is_text(head):
        return ForeignFile("a Python program, not a model", f"models do not run from source; {_EXPORT_TORCH}")
    if head and _is_text(head):
        return ForeignFile("a text file, not a model", FORMATS)
    return None


def _is_text(head: bytes) -> bool:
    """True for UTF-8 without control characters other than white space, which no serialized model is."""
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # otherwise the end of the head splits a character
            return False
        text = head[: error.start].decode()
    return all(each.isprintable() or each in "\t\r\n\f" for each in text)


def is_language_model(path: Path) -> bool:
    """True if a path is a GGUF file, a transformers folder with a model that generates text, or an ONNX Runtime GenAI
    folder."""
    try:
        if not path.is_dir():
            with path.open("rb") as file:
                return file.read(4) == b"GGUF"
        if (path / "genai_config.json").is_file():
            return True
        names = json.loads((path / "config.json").read_bytes()).get("architectures") or []
    except (OSError, ValueError, AttributeError):
        return False  # the code that reads it reports the error
    return isinstance(names, list) and any(str(name).endswith(_GENERATING) for name in names)


def check_folder(path: Path) -> None:
    """Raise StorageError for a folder, with its content and export instructions if known."""
    hint = "give the path of the .onnx file inside it"
    files = sorted(each.name for each in path.glob("*.onnx"))
    if files:
        more = f", for instance (it has {len(files)})" if len(files) > 1 else ""
        hint = f"give the path of a file inside it: {path / files[0]}{more}"
    elif (path / "saved_model.pb").exists():
        hint = "it is a TensorFlow SavedModel; " + _EXPORT_TENSORFLOW.format(kind="saved-model", path=path)
    elif path.suffix == ".mlpackage":
        hint = "it is a Core ML model; compile the ONNX or PyTorch model that it was made from"
    elif (path / "adapter_config.json").exists():
        hint = f"it is an adapter; compile the model that it was trained for, with --adapter {path}"
    elif (path / "config.json").exists():
        hint = "it is a model of the transformers library; " + _EXPORT_HUB.format(name=path)
    raise StorageError(f"{path} is a folder, not a model file", hint)


def check_exists(path: Path) -> None:
    """Raise StorageError if the file does not exist; Hugging Face Hub names are recognized."""
    if path.exists():
        return
    raise StorageError(f"no such model file: {path}", missing_file_hint(path))


def missing_file_hint(path: Path) -> str | None:
    """Hint for a missing file whose name suggests a pickled PyTorch file or a Hugging Face Hub model."""
    name = str(path)
    if re.match(r"https?:/", name):
        return "download it first, and give the path of the file"
    if "*" in name:
        return "give one model; the shell found no file of that pattern"
    if path.suffix == ".pt":
        return (
            f"{name} would be a pickled PyTorch file, which is not supported; {_EXPORT_ULTRALYTICS.format(name=name)}"
        )
    # "Llama-3.2-1B" has no file suffix.
    if _HUB_NAME.fullmatch(name) and path.suffix.lower() not in _SUFFIXES and not path.parent.exists():
        return f"{name!r} looks like a Hugging Face Hub name; {(_EXPORT_HUB + _DOWNLOAD_HUB).format(name=name)}"
    return None


def _pickle(head: bytes) -> ForeignFile:
    if b"torch" in head or b"collections\nOrderedDict" in head:
        return ForeignFile("a pickled torch file, which can run its own code when it is opened", _EXPORT_TORCH)
    if b"sklearn" in head or b"joblib" in head or b"lightgbm" in head or b"xgboost" in head:
        hint = "export it to ONNX: pip install skl2onnx (xgboost, lightgbm: onnxmltools), then to_onnx(model, X[:1])"
        return ForeignFile("a pickled model of scikit-learn or the like, which can run code when it is opened", hint)
    return ForeignFile(
        "a pickle, which can run its own code when it is opened",
        "load it in the program that wrote it, and export the model to ONNX (or torch.export.save it as .pt2)",
    )


def _archive(source: Path | bytes, name: str) -> ForeignFile | None:
    try:
        with zipfile.ZipFile(source if isinstance(source, Path) else io.BytesIO(source)) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return ForeignFile("a damaged zip archive", "download or save it again")
    inner = {each.partition("/")[2] or each for each in names}
    if "archive_format" in inner or any(each.endswith("serialized_exported_program.json") for each in names):
        return ForeignFile(_EXPORTED_PROGRAM, "give it the suffix .pt2")
    if any(each.startswith("code/") for each in inner) and "data.pkl" in inner:
        return ForeignFile("a TorchScript program", "TorchScript is not supported; " + _EXPORT_TORCH)
    if "data.pkl" in inner:
        hint = _EXPORT_ULTRALYTICS.format(name=name) if _names_ultralytics(source) else _EXPORT_TORCH
        return ForeignFile("a pickled torch file, which can run its own code when it is opened", hint)
    if "model.weights.h5" in names:
        return ForeignFile("a Keras model", _EXPORT_TENSORFLOW.format(kind="keras", path=name))
    if any(each.endswith(".npy") for each in names):
        return ForeignFile("an archive of numpy arrays (.npz)", "give the model; arrays are for its inputs")
    onnx = next((each for each in names if each.endswith(".onnx")), None)
    if onnx is not None:
        return ForeignFile("a zip archive", f"unpack it, and give {onnx}")
    return ForeignFile("a zip archive, not a model", "give an .onnx or .pt2 file")


def _names_ultralytics(source: Path | bytes) -> bool:
    """True if the pickle in an archive refers to classes of ultralytics; the pickle is not loaded."""
    with zipfile.ZipFile(source if isinstance(source, Path) else io.BytesIO(source)) as archive:
        pickle = next(each for each in archive.namelist() if each.endswith("data.pkl"))
        try:
            with archive.open(pickle) as file:
                return b"ultralytics" in file.read(1 << 20)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError):  # damaged or encrypted
            return False


def _weights_hint() -> str:
    whole = f"{_EXPORT_TORCH}; of the Hugging Face Hub: {_EXPORT_HUB.format(name='NAME')}"
    return f"give the folder of a language model, or the whole model: {whole}"
