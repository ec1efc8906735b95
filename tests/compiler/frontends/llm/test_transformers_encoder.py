"""Encoder-decoder models give transformers' texts, alone, with other sequences and on a server."""

from __future__ import annotations

import base64
import io
import json
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import compiler
from compiler.errors import InputError, OptionError
from compiler.frontends.llm.preparation_files import read_audio as audio_preparation
from compiler.frontends.llm.preparation_files import read_images
from compiler.generation import LanguageModel, Scheduler, transcribe
from compiler.generation.image_inputs import prepared_images, prepared_patches
from compiler.generation.media import Media
from compiler.generation.sound_inputs import log_mel, prepared_sound
from compiler.generation.steps import Chunk
from compiler.serving.configuration import model_options
from compiler.support.media_files import read_audio
from tests.compiler.frontends.llm.encoder_models import (
    ENCODER_MODELS,
    START,
    encoder_greedy,
    encoder_input,
    images_of_patches,
    media_prompt,
    padded_patches,
    rows_of_patches,
    save_encoder_model,
    shaped_patches,
)
from tests.compiler.serving.server import Running, serving

transformers = pytest.importorskip("transformers")
_IMAGE = 258
_ON_REQUEST = (  # images=True
    "aya_vision",
    "cohere2_vision",
    "gemma4",
    "deepseek_vl",
    "exaone4_5",
    "got_ocr2",
    "janus",
    "lfm2_vl",
    "lfm3_vl",
    "lighton_ocr",
    "llava_next",
    "llava_onevision",
    "mistral3",
    "qianfan_ocr",
    "qwen3_5",
    "vipllava",
)
_SPEECH = [START, 258, 261, 262]  # <|startoftranscript|><|en|><|transcribe|><|notimestamps|>


class _GrowingFunction(NamedTuple):
    reference: Any
    model: LanguageModel
    file: Path


def _made(name: str, folder: Path) -> _GrowingFunction:
    reference = save_encoder_model(name, folder)
    module = compiler.compile(folder, threads=1, images=name.startswith(_ON_REQUEST))
    module.export(folder / f"{name}.twm")
    return _GrowingFunction(reference, LanguageModel(module), folder / f"{name}.twm")


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> _GrowingFunction:
    return _made("whisper", tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def smolvlm(tmp_path_factory: pytest.TempPathFactory) -> _GrowingFunction:
    return _made("smolvlm", tmp_path_factory.mktemp("smolvlm"))


@pytest.fixture(scope="module")
def server(whisper: _GrowingFunction, smolvlm: _GrowingFunction) -> Iterator[Running]:
    options = [model_options({"path": str(each.file)}, "a model") for each in (whisper, smolvlm)]
    with serving(options) as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[Any]:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def _picture(seed: int, height: int = 16, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def _tensors(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(each) for name, each in arrays.items()}


def _speech(seconds: float = 1.0, rate: int = 16000) -> bytes:
    times = np.arange(int(seconds * rate)) / rate
    samples = (8000 * np.sin(2 * np.pi * (300 + 200 * times) * times)).astype("<i2")
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return content.getvalue()


def test_whisper_transcribes_as_transformers_does(whisper: _GrowingFunction) -> None:
    model, random = whisper.model, np.random.default_rng(0)
    inputs = encoder_input("whisper", random)
    for prompt in (_SPEECH, [START]):
        _, expected = encoder_greedy(whisper.reference, prompt, 20, **inputs)
        given: Any = "" if prompt == [START] else prompt
        assert list(model.generate(given, inputs=inputs, max_new_tokens=20).tokens) == expected
        assert len(set(expected)) > 3
    with pytest.raises(InputError, match="reads input_features"):
        model.generate([START])
    with pytest.raises(InputError, match="does not say how it reads images"):
        model.generate([START], images=[_picture(0)])


def test_speech_becomes_the_spectrogram_that_transformers_computes(whisper: _GrowingFunction) -> None:
    extractor = transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    preparation = whisper.model.description.audio
    assert preparation is not None
    assert preparation.samples == 16000
    samples = read_audio(_speech(0.7), 16000)
    wanted = extractor(samples, sampling_rate=16000, return_tensors="np").input_features
    np.testing.assert_allclose(log_mel(samples, preparation), wanted, atol=2e-5)
    # Another rate: the same tone.
    again = read_audio(_speech(0.7, 48000), 16000)
    assert abs(again - samples)[200:-200].max() < 0.02


def test_speech_is_transcribed_in_parts(whisper: _GrowingFunction) -> None:
    model = whisper.model
    found = transcribe(model, _speech(1.5), language="en", max_new_tokens=5)
    assert (len(found.parts), found.language, found.seconds) == (2, "en", 1.5)
    assert model.description.audio is not None
    features = log_mel(read_audio(_speech(1.5), 16000)[:16000], model.description.audio)
    _, expected = encoder_greedy(whisper.reference, _SPEECH, 5, input_features=features)
    assert list(found.parts[0].tokens) == expected
    rows, _ = encoder_greedy(whisper.reference, [START], 1, input_features=features)
    assert transcribe(model, _speech(1.0), max_new_tokens=1).language == ("en", "de")[int(np.argmax(rows[0][258:260]))]
    with pytest.raises(OptionError, match="language 'fr'"):
        transcribe(model, _speech(), language="fr")
    for broken in (b"RIFF", b"", _speech(0.0)):
        with pytest.raises(InputError, match=r"not a WAV file|holds no samples"):
            transcribe(model, broken)


def test_images_stand_where_their_tokens_do(smolvlm: _GrowingFunction) -> None:
    model, random = smolvlm.model, np.random.default_rng(1)
    for images in (1, 2):
        prompt = [5, *[_IMAGE] * 4 * images, 7, 8]
        inputs = encoder_input("smolvlm", random, images)
        _, expected = encoder_greedy(smolvlm.reference, prompt, 16, **inputs)
        assert list(model.generate(prompt, inputs=inputs, max_new_tokens=16).tokens) == expected
        assert len(set(expected)) > 3
    _, expected = encoder_greedy(smolvlm.reference, [5, 6], 8)
    assert list(model.generate([5, 6], max_new_tokens=8).tokens) == expected
    with pytest.raises(InputError, match=f"take 8 tokens, but the prompt holds 3 of token {_IMAGE}"):
        model.generate([_IMAGE] * 3, inputs=inputs)
    with pytest.raises(InputError, match="nothing was given"):
        model.generate([_IMAGE] * 3)


@pytest.mark.parametrize(
    "name",
    [
        "qwen2_5_vl",
        "qwen3_vl",
        "qwen2_audio",
        "qwen2_vl",
        "qwen3_vl_moe",
        "internvl",
        "voxtral",
        "gemma4",
        "gemma4_mixture",
        "mistral3",
        "qwen3_5",
        "glm4v",
        "glm4v_moe",
        "glm46v",
        "glm_ocr",
        "lfm2_vl",
        "lighton_ocr",
        "paddleocr_vl",
        "aya_vision",
        "cohere2_vision",
        "got_ocr2",
        "vipllava",
        "llava_next",
        "llava_next_video",
        "llava_onevision",
        "exaone4_5",
        "lfm3_vl",
        "llava_onevision1_5",
        "deepseek_vl",
        "janus",
        "qianfan_ocr",
    ],
)
def test_rows_of_images_and_sounds_take_the_places_of_tokens(name: str, tmp_path: Path) -> None:
    made, random = _made(name, tmp_path), np.random.default_rng(1)
    prompts = [media_prompt(name, count) for count in range(3)]
    inputs = [encoder_input(name, random, count) if count else {} for count in range(3)]
    wanted = [encoder_greedy(made.reference, each, 12, **given) for each, given in zip(prompts, inputs, strict=True)]
    for prompt, given, (rows, tokens) in zip(prompts, inputs, wanted, strict=True):
        steps = made.model.steps(1, 128)
        steps.attach(0, made.model.encoded(given or None, prompt))
        chunks = [Chunk(0, prompt, 0, len(prompt), is_prompt=True, logits=1)]
        for position, token in enumerate(tokens[:-1], len(prompt)):
            chunks.append(Chunk(0, [token], position, position + 1, is_prompt=False, logits=1))
        found = [steps.run([chunk])[0][-1] for chunk in chunks]
        np.testing.assert_allclose(found, rows, rtol=0, atol=1e-5 * abs(np.array(rows)).max())
    with Scheduler(made.model, max_sequences=3) as scheduler:
        media = [Media(inputs=given) if given else None for given in inputs]
        handles = [
            scheduler.submit(prompt, media=each, max_new_tokens=12) for prompt, each in zip(prompts, media, strict=True)
        ]
        assert [list(handle.result().tokens) for handle in handles] == [tokens for _, tokens in wanted]
    heard = made.model.description.audio is not None
    shown = Media(audio=_speech(0.7)) if heard else Media(images=[_picture(3)])
    prompt, read = made.model.prepared("a <image>?", shown)
    assert read is not None
    _, expected = encoder_greedy(made.reference, prompt, 6, **read)
    assert list(made.model.generate("a <image>?", media=shown, max_new_tokens=6).tokens) == expected
    if heard:
        _hears_over_http(made, name)


def _hears_over_http(made: _GrowingFunction, name: str) -> None:
    """A chat with a recording is answered like `generate`."""
    openai = pytest.importorskip("openai")
    text = {"type": "text", "text": "What?"}
    message = {"role": "user", "content": [{"type": "audio"}, text]}
    wanted = made.model.generate([message], media=Media(audio=_speech(0.7)), max_new_tokens=6)
    sound = {"data": base64.b64encode(_speech(0.7)).decode(), "format": "wav"}
    messages = [{"role": "user", "content": [{"type": "input_audio", "input_audio": sound}, text]}]
    options = model_options({"path": str(made.file)}, "a model")
    with serving([options]) as running, openai.OpenAI(base_url=f"{running.url}/v1", api_key="none") as client:
        reply = client.chat.completions.create(model=name, messages=messages, temperature=0, max_tokens=6)
    assert reply.choices[0].message.content == made.model.decode(list(wanted.tokens))


@pytest.mark.parametrize("shape", [(16, 32), (40, 23), (9, 9), (50, 100)])
def test_images_become_what_the_processor_of_transformers_makes(
    shape: tuple[int, int], smolvlm: _GrowingFunction
) -> None:
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
    from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

    preparation = smolvlm.model.description.images
    assert preparation is not None
    processor = SmolVLMImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    picture = _picture(2, *shape)
    wanted = processor([picture], return_tensors="np", return_row_col_info=True)
    pixels, [text] = prepared_images([picture], preparation)
    np.testing.assert_allclose(pixels, wanted["pixel_values"][0], atol=1e-5)
    rows, columns = wanted["rows"][0][0], wanted["cols"][0][0]
    assert text == get_image_prompt_string(
        rows, columns, 4, "<fake_token_around_image>", "<image>", preparation.overview
    )


@pytest.mark.parametrize("shape", [(16, 32), (70, 23), (9, 5), (50, 100)])
def test_patches_and_canvases_are_those_of_the_processors_of_transformers(
    shape: tuple[int, int], tmp_path: Path
) -> None:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    pictures = [_picture(2, *shape), _picture(3, *shape[::-1])]
    processor = Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 8 * 8, "longest_edge": 40 * 40})
    processor.save_pretrained(tmp_path)
    preparation = read_images(tmp_path, "qwen3_vl", 1, "<image>")
    assert preparation is not None
    assert preparation.patches is not None
    wanted = processor(pictures, return_tensors="np")
    found, texts = prepared_patches(pictures, preparation, preparation.patches)
    np.testing.assert_allclose(found["pixel_values"], wanted["pixel_values"], atol=1e-5)
    np.testing.assert_array_equal(found["image_grid_thw"], wanted["image_grid_thw"])
    assert texts == ["<image>" * int(grid.prod() // 4) for grid in wanted["image_grid_thw"]]

    processor = GotOcr2ImageProcessorPil(size={"height": 16, "width": 16}, max_patches=6)
    processor.save_pretrained(tmp_path)
    preparation = read_images(tmp_path, "internvl", 4, "<image>")
    assert preparation is not None
    wanted = processor(pictures, crop_to_patches=True, return_tensors="np")
    pixels, texts = prepared_images(pictures, preparation)
    np.testing.assert_allclose(pixels, wanted["pixel_values"], atol=1e-5)
    assert texts == [f"<img>{'<image>' * 4 * int(tiles)}</img>" for tiles in wanted["num_patches"]]


@pytest.mark.parametrize("shape", [(16, 32), (70, 23), (5, 61), (61, 6), (7, 7), (101, 143)])
def test_small_images_are_enlarged_for_ocr(shape: tuple[int, int], tmp_path: Path) -> None:
    from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
    from transformers.models.glm46v.image_processing_pil_glm46v import Glm46VImageProcessorPil
    from transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl import PaddleOCRVLImageProcessorPil

    pictures = [_picture(2, *shape), _picture(3, 40, 50)]
    for kind, made in (
        ("glm_ocr", Glm46VImageProcessorPil),
        ("glm4v", Glm4vImageProcessorPil),
        ("paddleocr_vl", PaddleOCRVLImageProcessorPil),
    ):
        processor = made(patch_size=4, size={"shortest_edge": 17 * 17, "longest_edge": 61 * 61})
        processor.save_pretrained(tmp_path)
        preparation = read_images(tmp_path, kind, 1, "<image>")
        assert preparation is not None
        assert preparation.patches is not None
        wanted = dict(processor(pictures, return_tensors="np"))
        found, texts = prepared_patches(pictures, preparation, preparation.patches)
        if kind == "paddleocr_vl":
            found = {name: np.asarray(each) for name, each in rows_of_patches(**_tensors(found)).items()}
        for name, values in found.items():
            np.testing.assert_allclose(values, wanted[name], atol=1e-5, err_msg=kind)
        assert texts == ["<image>" * int(grid.prod() // 4) for grid in wanted["image_grid_thw"]]


@pytest.mark.parametrize("shape", [(16, 32), (70, 23), (9, 5), (50, 100), (33, 33), (200, 9)])
@pytest.mark.parametrize("kind", ["deepseek_vl", "janus"])
def test_images_are_centered_for_deepseek(kind: str, shape: tuple[int, int], tmp_path: Path) -> None:
    from transformers.models.deepseek_vl.image_processing_pil_deepseek_vl import DeepseekVLImageProcessorPil
    from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

    made = {"deepseek_vl": DeepseekVLImageProcessorPil, "janus": JanusImageProcessorPil}[kind]
    processor = made(**ENCODER_MODELS[kind].processor)
    processor.save_pretrained(tmp_path)
    preparation = read_images(tmp_path, kind, 4, "<row>")
    assert preparation is not None
    pictures = [_picture(2, *shape), _picture(3, *shape[::-1])]
    pixels, texts = prepared_images(pictures, preparation)
    np.testing.assert_allclose(pixels, processor(pictures, return_tensors="np")["pixel_values"], atol=1e-5)
    frame = ("<begin_of_image>", "<end_of_image>") if kind == "janus" else ("", "")
    assert texts == [f"{frame[0]}{'<row>' * 4}{frame[1]}"] * 2


@pytest.mark.parametrize("shape", [(16, 32), (70, 23), (9, 5), (50, 100), (33, 33)])
def test_tiles_have_the_texts_of_aya_and_command_a(shape: tuple[int, int], tmp_path: Path) -> None:
    import torch
    from transformers.models.aya_vision.processing_aya_vision import AyaVisionProcessor
    from transformers.models.cohere2_vision.processing_cohere2_vision import Cohere2VisionProcessor
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    pytest.importorskip("torchvision")
    pictures = [_picture(2, *shape) // 2 + 64, _picture(3, *shape[::-1]) // 2 + 64]
    settings = ENCODER_MODELS["aya_vision"].processor
    processor: Any = GotOcr2ImageProcessorPil(**settings)
    processor.save_pretrained(tmp_path)
    preparation = read_images(tmp_path, "aya_vision", 4, "<row>")
    assert preparation is not None
    assert preparation.place == "<image>"
    wanted = processor(pictures, crop_to_patches=True, return_tensors="np")
    pixels, texts = prepared_images(pictures, preparation)
    np.testing.assert_allclose(pixels, wanted["pixel_values"], atol=1e-5)
    made: Any = AyaVisionProcessor.__new__(AyaVisionProcessor)
    made.start_of_img_token, made.end_of_img_token = "<|START_OF_IMG|>", "<|END_OF_IMG|>"
    made.tile_token, made.tile_global_token, made.img_patch_token = "TILE", "TILE_GLOBAL", "<row>"
    made.img_size, made.patch_size = 16, 8
    assert texts == [made.replace_image_token(wanted, index) for index in range(2)]

    processor = transformers.Cohere2VisionImageProcessor(**settings)
    processor.save_pretrained(tmp_path)
    tokens = {"boi_token": "<a>", "eoi_token": {"content": "<z>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokens))
    preparation = read_images(tmp_path, "cohere2_vision", 4, "<row>")
    assert preparation is not None
    wanted = processor([torch.from_numpy(each).permute(2, 0, 1) for each in pictures], return_tensors="np")
    pixels, texts = prepared_images(pictures, preparation)
    # torchvision rounds to 8 bits in another order: by one step of 255 at the most, if the filter does not overshoot.
    np.testing.assert_allclose(pixels, wanted["pixel_values"], atol=1.01 / 255 / 0.26)
    made = Cohere2VisionProcessor.__new__(Cohere2VisionProcessor)
    made.image_token, made.patch_size, made.boi_token, made.eoi_token = "<row>", 2, "<a>", "<z>"
    made.img_line_break_token = "<|IMG_LINE_BREAK|>"
    assert texts == [made.replace_image_token(wanted, index) for index in range(2)]


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("shape", [(16, 32), (70, 43), (100, 30), (5, 61), (9, 80), (61, 65)])
def test_large_images_are_split_for_lfm2(shape: tuple[int, int], special: bool, tmp_path: Path) -> None:
    import torch

    pytest.importorskip("torchvision")
    names = ("<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>")
    processor = transformers.Lfm2VlImageProcessor(**ENCODER_MODELS["lfm2_vl"].processor)
    processor.save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps({"use_image_special_tokens": special}))
    preparation = read_images(tmp_path, "lfm2_vl", 1, "<image>")
    assert preparation is not None
    assert preparation.patches is not None
    # torchvision rounds to 8 bits in another order, by one step of 255 at the most.
    pictures = [_picture(2, *shape), _picture(3, 40, 50)]
    wanted = processor(
        [torch.from_numpy(each).permute(2, 0, 1) for each in pictures], return_tensors="pt", return_row_col_info=True
    )
    found, texts = prepared_patches(pictures, preparation, preparation.patches)
    for name, values in shaped_patches(**_tensors(found)).items():
        longest = values.shape[1]
        np.testing.assert_allclose(values, wanted[name][:, :longest], atol=2.01 / 255 if name == "pixel_values" else 0)
    helper = transformers.models.lfm2_vl.processing_lfm2_vl.Lfm2VlProcessor
    made = helper.__new__(helper)
    made.image_processor = processor
    made.image_token, made.image_start_token, made.image_end_token, made.image_thumbnail_token = names
    texts_wanted = [
        made.replace_image_token(wanted, index, use_image_special_tokens=special) for index in range(len(pictures))
    ]
    assert texts == texts_wanted


@pytest.mark.parametrize("shape", [(16, 32), (70, 23), (9, 500), (500, 9)])
def test_images_fill_the_area_that_gemma_4_reads(shape: tuple[int, int], tmp_path: Path) -> None:
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    processor = Gemma4ImageProcessorPil(patch_size=4, pooling_kernel_size=2, max_soft_tokens=70)
    processor.save_pretrained(tmp_path)
    preparation = read_images(tmp_path, "gemma4", 1, "<image>", ("<a>", "<z>"))
    assert preparation is not None
    assert preparation.patches is not None
    pictures = [_picture(2, *shape), _picture(3, 40, 40)]
    wanted = processor(pictures, return_tensors="np")
    found, texts = prepared_patches(pictures, preparation, preparation.patches)
    padded = padded_patches(**_tensors(found))
    for name, values in padded.items():
        longest = values.shape[1]
        np.testing.assert_allclose(values, wanted[name][:, :longest], atol=1e-5)
    assert texts == [f"<a>{'<image>' * int(count)}<z>" for count in wanted["num_soft_tokens_per_image"]]


@pytest.mark.parametrize("shape", [(16, 32), (70, 23), (20, 400), (49, 48)])
def test_images_keep_their_size_up_to_the_longest_side_of_mistral_3(shape: tuple[int, int], tmp_path: Path) -> None:
    from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

    processor = PixtralImageProcessorPil(patch_size={"height": 8, "width": 8}, size={"longest_edge": 48})
    processor.save_pretrained(tmp_path)
    config = {"spatial_merge_size": 2, "vision_config": {"patch_size": 4}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    preparation = read_images(tmp_path, "mistral3", 1, "<image>")
    assert preparation is not None
    assert preparation.patches is not None
    pictures = [_picture(2, *shape), _picture(3, 40, 40)]
    wanted = processor(pictures, return_tensors="np")
    found, texts = prepared_patches(pictures, preparation, preparation.patches)
    for name, values in images_of_patches(**_tensors(found)).items():
        np.testing.assert_allclose(values, wanted[name], atol=1e-5)
    lines = [["<image>" * (width // 8)] * (height // 8) for height, width in wanted["image_sizes"]]
    assert texts == ["[IMG_BREAK]".join(each) + "[IMG_END]" for each in lines]


def test_encoders_of_images_are_compiled_on_request(tmp_path: Path) -> None:
    save_encoder_model("gemma4", tmp_path / "gemma4")
    with pytest.warns(UserWarning, match="see the option `images`"):
        model = LanguageModel(compiler.compile(tmp_path / "gemma4", threads=1))
    with pytest.raises(InputError, match="the model has no encoder"):
        model.generate([5, 6], inputs=encoder_input("gemma4", np.random.default_rng(0), 1), max_new_tokens=2)
    with pytest.raises(OptionError, match="adapters do not apply to a decoder that is captured with images"):
        compiler.compile(tmp_path / "gemma4", images=True, adapters=[tmp_path])
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(OptionError, match="images=True is for folders of models that read images"):
        compiler.compile(tmp_path, images=True)
    with pytest.raises(OptionError, match="images=True is for language models"):
        compiler.compile(np.zeros(3), images=True)


def test_long_sounds_are_read_in_parts(tmp_path: Path) -> None:
    extractor = transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    extractor.save_pretrained(tmp_path)
    samples = read_audio(_speech(1.7), 16000)
    wanted = extractor(
        samples, sampling_rate=16000, padding=True, truncation=False, pad_to_multiple_of=16000, return_tensors="np"
    ).input_features
    found, [text] = prepared_sound(samples, audio_preparation(tmp_path, 8, 100, "<a>", 25), "input_features")
    features = wanted.reshape(8, 2, 100).transpose(1, 0, 2)  # as VoxtralProcessor takes it apart
    np.testing.assert_allclose(found["input_features"], features, atol=2e-5)
    assert text == "<a>" * 50
    masked = audio_preparation(tmp_path, 8, 100, "<a>", 25, masked=True)
    wanted = extractor(samples[:7000], sampling_rate=16000, return_attention_mask=True, return_tensors="np")
    found, [text] = prepared_sound(samples[:7000], masked, "input_features")
    np.testing.assert_allclose(found["input_features"], wanted.input_features, atol=2e-5)
    np.testing.assert_array_equal(found["feature_attention_mask"], wanted.attention_mask)
    assert text == "<a>" * 11  # of 44 frames
    with pytest.raises(InputError, match="at most 1 s"):
        prepared_sound(samples, masked, "input_features")


def test_tokens_of_an_image_see_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 3, also if parts of a prompt would end within an image."""
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    made = _made("gemma3", tmp_path)
    inputs = encoder_input("gemma3", np.random.default_rng(1), 2)
    prompt = [5, *2 * [259, *4 * [_IMAGE], 260], 7, 8]
    _, expected = encoder_greedy(made.reference, prompt, 12, **inputs)
    assert list(made.model.generate(prompt, inputs=inputs, max_new_tokens=12).tokens) == expected
    assert len(set(expected)) > 3
    monkeypatch.setattr("compiler.generation.scheduler._LONE_PROMPT_TOKENS", 3)
    with Scheduler(made.model, max_sequences=1) as scheduler:
        handle = scheduler.submit(prompt, media=Media(inputs=inputs), max_new_tokens=12)
        assert list(handle.result().tokens) == expected
    preparation = made.model.description.images
    assert preparation is not None
    pixels, [text] = prepared_images([_picture(2, 20, 31)], preparation)
    wanted = Gemma3ImageProcessorPil(size={"height": 16, "width": 16})([_picture(2, 20, 31)], return_tensors="np")
    np.testing.assert_allclose(pixels, wanted["pixel_values"], atol=1e-5)
    frame = preparation.place
    assert text == f"\n\n{frame}{4 * preparation.text}{preparation.after}"


def test_masks_of_images_are_those_of_transformers() -> None:
    import torch
    from transformers.models.gemma3.modeling_gemma3 import create_masks_for_vision_model

    from compiler.frontends.llm.gemma_masks import gemma_masks

    stands = torch.tensor([[0, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 1]], dtype=torch.bool)
    config = transformers.Gemma3TextConfig(sliding_window=3, attn_implementation="eager")
    blocks = torch.tensor([[-1, 0, 0, 0, -1, 1, 1, -1, 2, 2, 2, 2]])
    embeds = torch.zeros((1, 12, 4))
    wanted = create_masks_for_vision_model(config, embeds, None, None, None, blocks)
    found = gemma_masks(config, stands, torch.tensor(0), 12)["attention_mask"]
    for kind, mask in wanted.items():
        assert torch.equal(found[kind], mask == 0), kind
    # Tokens before this run are seen as far as the window reaches.
    later = gemma_masks(config, stands, torch.tensor(4), 20)["attention_mask"]
    assert torch.equal(later["full_attention"][..., 4:16], found["full_attention"])
    assert torch.equal(later["sliding_attention"][..., 4:16], found["sliding_attention"])
    assert later["full_attention"][..., :4].all()
    assert later["sliding_attention"][0, 0, :2, :4].tolist() == [
        [False, False, True, True],
        [False, False, False, True],
    ]


def _reply(made: _GrowingFunction, picture: np.ndarray, count: int) -> list[int]:
    """transformers' answer to "What?" about a picture."""
    tokens, inputs = made.model.prepared([_message()], Media(images=[picture]))
    assert inputs is not None
    return encoder_greedy(made.reference, tokens, count, **inputs)[1]


def _message(*, image: bool = True) -> dict[str, Any]:
    return {"role": "user", "content": [*([{"type": "image"}] if image else []), {"type": "text", "text": "What?"}]}


def test_a_chat_about_images(smolvlm: _GrowingFunction) -> None:
    chat = smolvlm.model.conversation()
    first = chat.say("What?", images=[_picture(3)], max_new_tokens=6)
    assert list(first.tokens) == _reply(smolvlm, _picture(3), 6)
    second = chat.say("Why?", max_new_tokens=6)  # reads the new message alone
    assert second.reused_tokens > 20
    whole = smolvlm.model.generate(chat.messages[:3], images=[_picture(3)], max_new_tokens=6)
    assert second.tokens == whole.tokens
    with pytest.raises(InputError, match="0 markers of images"):
        smolvlm.model.generate("no place", images=[_picture(3)])
    with pytest.raises(InputError, match="cannot be read"):
        smolvlm.model.generate("<image>", images=[b"no image"])


def test_sequences_with_encoders_run_beside_each_other(smolvlm: _GrowingFunction, whisper: _GrowingFunction) -> None:
    pictures = [_picture(seed) for seed in (3, 4, 5)]
    with Scheduler(smolvlm.model, max_sequences=2) as scheduler:
        media = [Media(images=[each]) for each in pictures]
        handles = [scheduler.submit([_message()], media=each, max_new_tokens=6) for each in media]
        text = scheduler.submit([5, 6], max_new_tokens=6)
        for picture, handle in zip(pictures, handles, strict=True):
            assert list(handle.result().tokens) == _reply(smolvlm, picture, 6)
        assert list(text.result().tokens) == encoder_greedy(smolvlm.reference, [5, 6], 6)[1]
    with Scheduler(whisper.model, max_sequences=2) as scheduler:
        spoken = [encoder_input("whisper", np.random.default_rng(seed)) for seed in (1, 2, 3)]
        handles = [scheduler.submit(_SPEECH, media=Media(inputs=each), max_new_tokens=6) for each in spoken]
        for inputs, handle in zip(spoken, handles, strict=True):
            assert list(handle.result().tokens) == encoder_greedy(whisper.reference, _SPEECH, 6, **inputs)[1]
        with pytest.raises(InputError, match="reads input_features"):
            scheduler.submit(_SPEECH)


def test_openai_clients_send_images_and_speech(
    client: Any, smolvlm: _GrowingFunction, whisper: _GrowingFunction
) -> None:
    pillow = pytest.importorskip("PIL.Image")
    content = io.BytesIO()
    pillow.fromarray(_picture(3)).save(content, "png")
    address = f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
    image = {"type": "image_url", "image_url": {"url": address}}
    messages = [{"role": "user", "content": [image, {"type": "text", "text": "What?"}]}]
    reply = client.chat.completions.create(model="smolvlm", messages=messages, temperature=0, max_tokens=6)
    expected = smolvlm.model.decode(_reply(smolvlm, _picture(3), 6))
    assert reply.choices[0].message.content == expected
    file = ("speech.wav", _speech())
    found = client.audio.transcriptions.create(model="whisper", file=file, language="en")
    assert found.text == transcribe(whisper.model, _speech(), language="en", max_new_tokens=1000).text
    openai = pytest.importorskip("openai")
    image["image_url"] = {"url": "http://127.0.0.1/cat.png"}
    refusals: list[Callable[[], Any]] = [
        lambda: client.chat.completions.create(model="smolvlm", messages=messages),
        lambda: client.audio.transcriptions.create(model="whisper", file=("speech.mp3", b"no audio")),
        lambda: client.audio.transcriptions.create(model="smolvlm", file=file),
    ]
    for refused in refusals:
        with pytest.raises(openai.BadRequestError):
            refused()


def test_models_that_are_not_known_are_refused(tmp_path: Path) -> None:
    vision = {**ENCODER_MODELS["llava"].config(64)["vision_config"], "model_type": "siglip_vision_model"}
    text = {**ENCODER_MODELS["smolvlm"].config(64)["text_config"], "model_type": "gemma", "head_dim": 8}
    config = transformers.PaliGemmaConfig(vision_config=vision, text_config=text)
    transformers.PaliGemmaForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(OptionError, match="'paligemma' are not supported"):
        compiler.compile(tmp_path)
