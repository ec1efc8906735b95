"""Import of a language model's folder or file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec

from compiler.artifact.fields import FieldError, checked, encode
from compiler.artifact.language_model import (
    ADAPTER,
    DESCRIPTION_ASSET,
    TOKENIZER_ASSET,
    AudioPreparation,
    ImagePreparation,
    LanguageModelDescription,
)
from compiler.artifact.manifest import IndexRequirement, Requirement
from compiler.errors import InvalidModelError, OptionError
from compiler.frontends.imported_model import ImportedModel, PositionSpec, StateSpec, TensorSpec
from compiler.frontends.llm.config import DecoderConfig
from compiler.frontends.llm.decoder import (
    CAPACITY,
    LOGITS,
    OPERAND,
    POSITION,
    POSITIONS,
    SEQUENCES,
    TOKENS,
    WANTED,
    build_decoder,
)
from compiler.frontends.llm.families import FAMILIES
from compiler.frontends.llm.genai_folder import import_genai_folder, is_genai_folder
from compiler.frontends.llm.gguf_config import read_gguf
from compiler.frontends.llm.gguf_file import GgufFile
from compiler.frontends.llm.gguf_tokenizer import read_gguf_tokenizer, tokenizer_kind
from compiler.frontends.llm.hugging_face import decoder_settings, read_hugging_face
from compiler.frontends.llm.media_rows import MediaRows
from compiler.frontends.llm.options import LanguageModelOptions
from compiler.frontends.llm.parameters import Parameters
from compiler.frontends.llm.preparation_files import read_audio, read_images
from compiler.frontends.llm.safetensors_folder import read_json
from compiler.frontends.llm.tokenizer_files import TokenizerFiles, read_text_rules, read_tokenizer_files
from compiler.frontends.llm.transformers_decoder import CapturedDecoder, capture_decoder, is_available
from compiler.frontends.llm.transformers_encoder import CapturedPair, builds_decoder, capture_pair, has_encoder

_TEXT_ONLY = "only the text model is compiled, without images and audio; see the option `images`"


def import_language_model(path: Path, options: LanguageModelOptions | None = None) -> ImportedModel:
    """Import a language model.

    Args:
        path: a GGUF file, or a folder of the transformers library with config.json and safetensors.
        options: build options; None for the defaults.

    A model whose tokenizer is missing or unsupported is imported without one, as stated in its notes.

    Raises:
        InvalidModelError, OptionError, StorageError, UnsupportedModelError, MissingDependencyError.
    """
    model = _imported(path, options or LanguageModelOptions())
    if TOKENIZER_ASSET in model.assets:
        return model
    kind = "" if path.is_dir() else tokenizer_kind(GgufFile(path))
    note = f"{path} has no supported tokenizer{kind}: the module takes and returns tokens"
    return replace(model, notes=(*model.notes, note))


def _imported(path: Path, options: LanguageModelOptions) -> ImportedModel:
    named = options.adapters or options.kept_adapters
    if named and (not path.is_dir() or is_genai_folder(path) or decoder_settings(path)[0] not in FAMILIES):
        raise OptionError(
            f"{path}: adapters are for folders of transformers, of the types {', '.join(sorted(FAMILIES))}",
            "merge them with peft (merge_and_unload), and give the folder that it saves",
        )
    if named and options.images and not builds_decoder(path):
        raise OptionError(f"{path}: adapters do not apply to a decoder that is captured with images", "leave one out")
    if is_genai_folder(path):
        return _genai(path, options)
    if path.is_dir():
        kind, _, is_part = decoder_settings(path)
        if options.images and not has_encoder(path):
            raise OptionError(f"{path}: images=True is for folders of models that read images", "leave it out")
        if (kind not in FAMILIES or options.images) and has_encoder(path):
            return _pair(path, options)
        if kind not in FAMILIES and is_available():
            return _captured(path, options)
        config, names, storage, checkpoint, adapters = read_hugging_face(path, options)
        files = read_tokenizer_files(path)
    else:
        gguf = GgufFile(path)
        config, names, storage, checkpoint = read_gguf(gguf)
        adapters = None
        files, is_part = read_gguf_tokenizer(gguf), False
    parameters = Parameters(checkpoint, names, config, storage, adapters)
    model = _built(path, config, parameters, files, options)
    checkpoint.check_complete()
    return replace(model, notes=(f"{path}: {_TEXT_ONLY}",) if is_part else ())


def _built(
    path: Path,
    config: DecoderConfig,
    parameters: Parameters,
    files: TokenizerFiles,
    options: LanguageModelOptions,
    media: MediaRows | None = None,
) -> ImportedModel:
    """Build a decoder with the description that generation needs."""
    files.check_fits(config.vocabulary, str(path))
    built = build_decoder(config, parameters, options, media)
    adapters = parameters.adapters
    described = _description(config.architecture, config.context, config.vocabulary, files)
    description = msgspec.structs.replace(
        described,
        sequences=options.sequences,
        stable_context=_stable_context(config),
        adapters=tuple(options.kept_adapters),
    )
    indices = [IndexRequirement(input=TOKENS, size=str(config.vocabulary), where="the vocabulary", least="0")]
    inputs = [TensorSpec(TOKENS, (1, "n"), "int64"), *_places(config, options)]
    if adapters is not None:
        inputs.append(TensorSpec(ADAPTER, ("n",) if options.sequences else (), "int64"))
        indices.append(IndexRequirement(input=ADAPTER, size=str(adapters.count + 1), where="the adapters", least="0"))
    inputs += [] if media is None else media.inputs
    inputs += built.states
    rows: int | str = "m" if options.sequences else "n" if options.all_logits else 1
    logits = TensorSpec(LOGITS, (1, rows, config.vocabulary), "float32")
    outputs = [logits, *(TensorSpec(f"{each.name}_out", each.shape, each.dtype) for each in built.states)]
    outputs += [TensorSpec(f"{OPERAND}_{at}", (1, "n", depth), "float32") for at, depth in enumerate(built.operands)]
    states = tuple(
        StateSpec(each.name, each.name, f"{each.name}_out", axis=2 if CAPACITY in each.shape else None)
        for each in built.states
    )
    return ImportedModel(
        mod=built.mod,
        inputs=inputs,
        outputs=outputs,
        indices=tuple(indices),
        requirements=_requirements(config),
        states=states,
        position=PositionSpec(POSITION, "n") if config.counts and not options.sequences else None,
        assets=_assets(description, files),
    )


def _captured(folder: Path, options: LanguageModelOptions) -> ImportedModel:
    """Import a model of any other type, captured from transformers' own code."""
    files = read_tokenizer_files(folder)
    decoder = capture_decoder(folder, options)
    files.check_fits(decoder.vocabulary, str(folder))
    description = _description(decoder.architecture, decoder.context, decoder.vocabulary, files)
    return replace(decoder.model, assets=_assets(description, files))


def _pair(folder: Path, options: LanguageModelOptions) -> ImportedModel:
    """Import an encoder of speech, images or text, captured from transformers' own code, and its decoder."""
    files = read_tokenizer_files(folder)
    rules = read_text_rules(folder)
    pair = capture_pair(folder, options)
    decoder = pair.decoder or _decoder_of_rows(folder, files, pair, options)
    start = rules.start if pair.image_token is None else ()
    files.check_fits(decoder.vocabulary, str(folder), start)
    description = _description(decoder.architecture, decoder.context, decoder.vocabulary, files)
    description = msgspec.structs.replace(
        description,
        image_token=pair.image_token,
        start=start,
        adapters=tuple(options.kept_adapters),
        suppressed=rules.suppressed,
        suppressed_first=rules.suppressed_first,
        audio=_audio(folder, pair, files),
        images=_images(folder, decoder.architecture, pair, files),
    )
    return replace(decoder.model, assets=_assets(description, files), encoder=pair.encoder)


def _decoder_of_rows(
    folder: Path, files: TokenizerFiles, pair: CapturedPair, options: LanguageModelOptions
) -> CapturedDecoder:
    """Build the decoder of a model whose encoder's rows replace tokens."""
    config, names, storage, checkpoint, adapters = read_hugging_face(folder, options)
    assert pair.image_token is not None
    media = MediaRows(pair.image_token, config.hidden, _sections(folder))
    parameters = Parameters(checkpoint, names, config, storage, adapters)
    model = _built(folder, config, parameters, files, options, media)
    checkpoint.check_complete()
    kind = str(read_json(folder / "config.json").get("model_type"))
    return CapturedDecoder(model, kind, config.context, config.vocabulary)


def _sections(folder: Path) -> tuple[int, int, int] | None:
    """Return the rotated pairs of positions in time, height and width; None for one dimension.

    Raises InvalidModelError.
    """
    _, values, _ = decoder_settings(folder)
    rope = values.get("rope_parameters") or values.get("rope_scaling")
    sections = rope.get("mrope_section") if isinstance(rope, dict) else None
    if sections is None:
        return None
    if not isinstance(sections, list) or len(sections) != 3 or not all(isinstance(each, int) for each in sections):
        raise InvalidModelError(f"{folder}: 'mrope_section' is {str(sections)[:80]}, not three numbers")
    return (sections[0], sections[1], sections[2])


def _audio(folder: Path, found: CapturedPair, files: TokenizerFiles) -> AudioPreparation | None:
    """Return the audio preprocessing; None if the encoder reads no sounds, or their placeholder token has no text."""
    text = "" if found.image_token is None else files.text_of(found.image_token)
    if found.spectrogram is None or text is None:
        return None
    return read_audio(folder, *found.spectrogram, text=text, rows=found.rows or 1, masked=found.masked)


def _images(folder: Path, kind: str, pair: CapturedPair, files: TokenizerFiles) -> ImagePreparation | None:
    """Return the image preprocessing; None if the folder does not describe it or has no image token."""
    text = None if pair.image_token is None or pair.spectrogram else files.text_of(pair.image_token)
    if text is None:
        return None
    first, last = (None if token is None else files.text_of(token) for token in pair.frame)
    frame = None if first is None or last is None else (first, last)
    return read_images(folder, kind, pair.rows or 1, text, frame)


def _genai(folder: Path, options: LanguageModelOptions) -> ImportedModel:
    """Import a model of ONNX Runtime GenAI, whose configuration specifies the stop tokens."""
    imported = import_genai_folder(folder, options)
    files = replace(read_tokenizer_files(folder), stop_tokens=imported.stop_tokens)
    files.check_fits(imported.vocabulary, str(folder))
    description = _description(imported.architecture, imported.context, imported.vocabulary, files)
    return replace(imported.model, assets=_assets(description, files))


def _places(config: DecoderConfig, options: LanguageModelOptions) -> list[TensorSpec]:
    """Return the inputs for the positions of a run's tokens."""
    if not options.sequences:
        return [TensorSpec(POSITION, (), "int64")] if config.counts else []
    shapes: dict[str, tuple[int | str, ...]] = {POSITIONS: (2, "n"), SEQUENCES: ("sequences", 5), WANTED: ("m",)}
    return [TensorSpec(name, shape, "int64") for name, shape in shapes.items()]


def _requirements(config: DecoderConfig) -> tuple[Requirement, ...]:
    """Return the limit of learned positions, the size of their table."""
    if not config.position_rows:
        return ()
    most = str(config.position_rows - config.position_offset)
    where = "the table of learned positions"
    return (
        Requirement(left=most, relation="at least", right="capacity", symbols={"capacity": "capacity"}, where=where),
    )


def _stable_context(config: DecoderConfig) -> int | None:
    """Return the sequence length beyond which the rotations of tokens depend on it."""
    ropes = [layer.rope for layer in config.layers if layer.rope is not None]
    changing = [rope.original_context for rope in ropes if rope.dynamic or rope.long_frequencies]
    return min(changing) if changing else None


def _description(architecture: str, context: int, vocabulary: int, files: TokenizerFiles) -> LanguageModelDescription:
    return LanguageModelDescription(
        architecture=architecture,
        context=context,
        vocabulary=vocabulary,
        stop_tokens=files.stop_tokens,
        begin=files.begin,
        end=files.end,
        chat_template=files.chat_template,
        tool_template=files.tool_template,
    )


def _assets(description: LanguageModelDescription, files: TokenizerFiles) -> dict[str, bytes]:
    """Return data stored in a module in addition to its weights, for text generation."""
    try:
        assets = {DESCRIPTION_ASSET: encode(checked(description))}
    except FieldError as error:
        raise InvalidModelError(f"the model's files are inconsistent: {error}") from error
    if (tokenizer := files.stored()) is not None:
        assets[TOKENIZER_ASSET] = tokenizer
    return assets
