"""The files suite: untrusted files have bounded cost, and end in a result or in one error.

The kinds of file take turns: folders of language models (configuration, tokenizer, chat template, weights and their
index), GGUF files, ONNX files, ONNX programs that grow (functions that call others twice, chains, patterns), images,
recordings, modules.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import helper

from compiler.artifact.language_model import DESCRIPTION_ASSET, TOKENIZER_ASSET, LanguageModelDescription
from compiler.artifact.native_tokenizer.tokenizer import write_tokenizer
from compiler.artifact.native_tokenizer.writer import Writer
from compiler.errors import InternalError, TensorwrightError
from compiler.frontends.llm.importer import import_language_model
from compiler.frontends.onnx.frontend import import_onnx
from compiler.generation.tokenizer import Tokenizer
from compiler.support.media_files import pixels_of, read_audio, wave_seconds
from tests.compiler.generation.models import write_folder, write_gguf
from tests.fuzz import artifacts
from tests.fuzz.artifact_mutations import edit_json, pick
from tests.fuzz.byte_mutations import BYTE_MUTATIONS
from tests.fuzz.media import changed, pictures, recordings
from tests.fuzz.model_mutations import mutated_model
from tests.fuzz.outcome import Outcome

Random = np.random.Generator
_PROMPTS = ("hi", "a" * 60 + "!", " " * 5000 + "x", "größe \U0001f600 \u202e\x00", "<|end|><|user|>", "")
_PATTERNS = (
    "(a+)+$", "^(a|a)*$", r"(.*)\1\1x", "(" * 20000 + "a" + ")" * 20000, "(a{1000}){1000}", "(?<=a*)b", "((", "",
    r"\p{L}+| ?[^\s\p{L}]+|\s+(?!\S)|\s+", "[^]", "(?i)" * 100 + "a",
)  # fmt: skip
_TEMPLATES = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "{{ 'a' * 10**10 }}",
    "{{ 9**9**9 }}", "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ ''.__class__.__mro__ }}", "{% for %}", "{{ messages }}" * 1000, "{{ '%1000000000d' % 1 }}",
)  # fmt: skip
_NUMBERS = (0, 1, 2, 8, 255, 2**31, 2**32 - 1, 2**40, 2**60, 2**62, 2**63, 2**64 - 1)
_GGUF_HEAD = 12_000  # bytes with the settings and tensor descriptions
_LARGEST_CHAIN = 500


@dataclass(frozen=True)
class Sound:
    """Files to mutate (a folder and a GGUF file of a language model, modules), and a folder for results."""

    folder: Path
    gguf: bytes
    modules: artifacts.Samples
    place: Path


def prepare(folder: Path) -> Sound:
    """Write the files."""
    sound = folder / "sound"
    sound.mkdir()
    gguf = write_gguf(folder / "sound.gguf", "Q8_0").read_bytes()
    return Sound(write_folder(sound), gguf, artifacts.prepare(folder), folder)


def case(sound: Sound, seed: int) -> Outcome:
    """Read one changed file and use the result."""
    random = np.random.default_rng(seed)
    kind = _KINDS[seed % len(_KINDS)]
    if kind is _module:
        outcome = artifacts.case(sound.modules, seed)
        return Outcome(outcome.kind, "module", outcome.detail)
    place = sound.place / f"case-{os.getpid()}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    label = kind.__name__.strip("_")
    try:
        kind(sound, place, random)
    except InternalError as error:
        return Outcome("exception", label, f"{type(error).__name__}: {error}")
    except TensorwrightError as error:
        return Outcome("refused", label, f"{type(error).__name__}: {error}")
    except Exception as error:
        return Outcome("exception", label, f"{type(error).__name__}: {error}")
    return Outcome("right", label)


def _language_model(path: Path, random: Random) -> None:
    """Import a model, and use its tokenizer and chat template, in Python and as written for the C++ runtime."""
    assets = import_language_model(path).assets
    if TOKENIZER_ASSET not in assets:
        return
    description = msgspec.json.decode(bytes(assets[DESCRIPTION_ASSET]), type=LanguageModelDescription)
    content = bytes(assets[TOKENIZER_ASSET])
    tokenizer = Tokenizer(content, description)
    prompt = str(pick(_PROMPTS, random))
    if description.chat_template is not None:
        tokenizer.chat([{"role": "user", "content": prompt}])
    tokenizer.decode(tokenizer.encode(prompt)[:1000])
    tokenizer.decode(list(range(min(description.vocabulary, 300))))
    write_tokenizer(content, Writer())


def _configuration(sound: Sound, place: Path, random: Random) -> None:
    _edited(sound, place, "config.json", random)


def _tokenizer(sound: Sound, place: Path, random: Random) -> None:
    _edited(sound, place, "tokenizer.json", random)


def _pattern(sound: Sound, place: Path, random: Random) -> None:
    """A tokenizer that splits or replaces by a pattern."""
    pattern = {"Regex": str(pick(_PATTERNS, random))}

    def change(content: Any) -> None:
        if random.random() < 0.5:
            split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
            parts = [split, content["pre_tokenizer"]]
            content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": parts}
        else:
            text = "x" * int(pick((0, 1, 1000), random))
            content["normalizer"] = {"type": "Replace", "pattern": pattern, "content": text}

    _edited(sound, place, "tokenizer.json", random, change)


def _template(sound: Sound, place: Path, random: Random) -> None:
    template = str(pick(_TEMPLATES, random))
    _edited(sound, place, "tokenizer_config.json", random, lambda content: content.update(chat_template=template))


def _edited(sound: Sound, place: Path, name: str, random: Random, change: Callable[[Any], None] | None = None) -> None:
    shutil.copytree(sound.folder, place, dirs_exist_ok=True)
    text = (place / name).read_bytes()
    if change is None and random.random() < 0.2:
        (place / name).write_bytes(pick(BYTE_MUTATIONS, random)(text, random))
    else:
        content = json.loads(text)
        for _ in range(1 if change else int(random.integers(1, 3))):
            (change or (lambda value: edit_json(value, random)))(content)
        (place / name).write_text(json.dumps(content))
    _language_model(place, random)


def _safetensors(sound: Sound, place: Path, random: Random) -> None:
    """Weights with a wrong header, or an index with other file names."""
    shutil.copytree(sound.folder, place, dirs_exist_ok=True)
    path = place / "model.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    if random.random() < 0.3:
        files = dict.fromkeys(header, "model.safetensors")
        edit_json(files, random)
        (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    elif random.random() < 0.2:
        path.write_bytes(pick(BYTE_MUTATIONS, random)(content, random))
    else:
        edit_json(header, random)
        text = json.dumps(header).encode()
        length = len(text) if random.random() < 0.9 else int(pick(_NUMBERS, random))
        path.write_bytes(struct.pack("<Q", length) + text + body)
    _language_model(place, random)


def _gguf(sound: Sound, place: Path, random: Random) -> None:
    """Change numbers in the header (counts, types, lengths, shapes, offsets), or any bytes."""
    content = bytearray(sound.gguf)
    for _ in range(int(random.integers(1, 4))):
        at = int(random.integers(4, min(len(content), _GGUF_HEAD)))
        number = int(pick(_NUMBERS, random))
        action = int(random.integers(4))
        if action == 0:
            content[at] ^= 1 << int(random.integers(8))
        elif action == 1:
            content[at : at + 8] = struct.pack("<Q", number)
        elif action == 2:
            content[at : at + 4] = struct.pack("<I", number & 0xFFFFFFFF)
        else:
            del content[at : at + int(random.integers(1, 40))]
    path = place / "it.gguf"
    path.write_bytes(content)
    _language_model(path, random)


def _onnx(sound: Sound, place: Path, random: Random) -> None:
    import_onnx(mutated_model(int(random.integers(1 << 40)))[1])


def _growing(sound: Sound, place: Path, random: Random) -> None:
    """Functions that call others several times, chains, and patterns on constants."""
    action = int(random.integers(3))
    if action == 0:
        import_onnx(_functions(levels=int(random.integers(1, 60)), calls=int(random.integers(1, 5))))
    elif action == 1:
        names = [str(pick(("Relu", "Neg", "Identity", "Transpose"), random)) for _ in range(_LARGEST_CHAIN)]
        nodes = [helper.make_node(name, [f"v{i}"], [f"v{i + 1}"]) for i, name in enumerate(names)]
        import_onnx(_model(nodes, "v0", f"v{len(nodes)}"))
    else:
        text = onnx.numpy_helper.from_array(np.array(["a" * 60 + "!"], object), "s")
        pattern = str(pick(_PATTERNS, random))
        nodes = [helper.make_node("RegexFullMatch", ["s"], ["matches"], pattern=pattern)]
        nodes += [
            helper.make_node("Cast", ["matches"], ["number"], to=1),
            helper.make_node("Add", ["x", "number"], ["y"]),
        ]
        import_onnx(_model(nodes, "x", "y", [text]))


def _functions(levels: int, calls: int) -> onnx.ModelProto:
    """Each function calls the previous one several times in a row."""
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("d", 1)]
    functions = [helper.make_function("d", "f0", ["v0"], ["v1"], [helper.make_node("Neg", ["v0"], ["v1"])], opsets)]
    for level in range(1, levels):
        nodes = [helper.make_node(f"f{level - 1}", [f"v{i}"], [f"v{i + 1}"], domain="d") for i in range(calls)]
        functions.append(helper.make_function("d", f"f{level}", ["v0"], [f"v{calls}"], nodes, opsets))
    model = _model([helper.make_node(f"f{levels - 1}", ["x"], ["y"], domain="d")], "x", "y")
    model.functions.extend(functions)
    model.opset_import.append(opsets[1])
    return model


def _model(
    nodes: list[onnx.NodeProto], given: str, made: str, constants: list[onnx.TensorProto] | None = None
) -> onnx.ModelProto:
    x = helper.make_tensor_value_info(given, onnx.TensorProto.FLOAT, [2, 2])
    y = helper.make_tensor_value_info(made, onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [y], constants or [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def _picture(sound: Sound, place: Path, random: Random) -> None:
    pixels = pixels_of(changed(pick(pictures(), random), random))
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise AssertionError(f"pixels of {pixels.dtype}{pixels.shape}")


def _recording(sound: Sound, place: Path, random: Random) -> None:
    content = changed(pick(recordings(), random), random)
    samples = read_audio(content, 16_000)
    if len(samples) / 16_000 > wave_seconds(content) + 0.1 or not np.isfinite(samples).all():
        raise AssertionError(f"{len(samples)} samples of {wave_seconds(content)} s")


def _module(sound: Sound, place: Path, random: Random) -> None:
    """A case of the artifact suite."""


_KINDS: tuple[Callable[[Sound, Path, Random], None], ...] = (
    _configuration,
    _tokenizer,
    _pattern,
    _template,
    _safetensors,
    _gguf,
    _onnx,
    _growing,
    _picture,
    _recording,
    _module,
)
