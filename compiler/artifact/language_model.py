"""The description of a language model beside the manifest: the asset `language_model.json`."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from compiler.artifact.fields import Record

DESCRIPTION_ASSET = "language_model.json"
TOKENIZER_ASSET = "tokenizer.json"
ENCODER_ASSET = "encoder.twm"
ADAPTER = "adapter"  # the input that chooses one of the adapters, 0 for none

Token = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
Size = Annotated[int, Meta(ge=1, le=1 << 20)]


class AudioPreparation(Record, frozen=True, kw_only=True):
    """Preparation of speech as a log-mel spectrogram, as Whisper reads it, and the text that stands for it in a prompt.

    Attributes:
        text: stands for a row of a sound, and in its place in a text for all of it; "" where sounds take no tokens.
        rows: number of rows that are read at once.
        masked: the encoder reads which frames are no padding, and gives a row for each four of these.
        rate: samples a second.
        window, hop: samples of a frame, and from one to the next.
        mels: bands.
        samples: number of samples that are read at once; shorter speech is padded.
    """

    rate: Size
    window: Size
    hop: Size
    mels: Size
    samples: Annotated[int, Meta(ge=1, le=1 << 28)]
    text: str = ""
    rows: Size = 1
    masked: bool = False


class PatchPreparation(Record, frozen=True, kw_only=True):
    """Cutting an image of any size in patches, which the encoder reads one after another.

    Attributes:
        merge: a row of the encoder is made of this many patches by as many.
        frames: how often a patch is repeated, as encoders of films read several frames at once.
        least, most: pixels of an image, which is made to fit.
    """

    merge: Size
    frames: Size
    least: Annotated[int, Meta(ge=1, le=1 << 32)]
    most: Annotated[int, Meta(ge=1, le=1 << 32)]


class ImagePreparation(Record, frozen=True, kw_only=True):
    """Preparation of an image for an encoder, and the text that stands for it in a prompt.

    Attributes:
        text: stands for a row of an image.
        place: stands for an image in a text; "" for `text`.
        before, after: texts around the rows of an image that is not cut.
        rows: number of rows of an image, or of a tile of it; of images in patches that depends on their size.
        height, width: of the encoder's input: an image, a tile or a patch.
        shortest: the shorter side is made so long, and the middle is cut out; None: the whole is made to fit.
        longest: the longer side is made so long first; None: it is not.
        splits: the image is cut in tiles, which come before it as a whole.
        canvas: minimum and maximum number of tiles into which an image is cut, by the grid whose aspect ratio is
            nearest to its own; the whole image follows the tiles. None: it is not cut.
        patches: an image is cut in patches; None: it is not.
        frame, overview: texts around the rows of tiles, and before those of the whole; "" for neither.
        resample: the filter, by Pillow's numbers.
        scale, mean, std: (pixel * scale - mean) / std, by channel.
    """

    text: Annotated[str, Meta(min_length=1)]
    place: str = ""
    before: str = ""
    after: str = ""
    rows: Size
    height: Size
    width: Size
    shortest: Size | None = None
    longest: Size | None = None
    splits: bool = False
    canvas: tuple[Size, Size] | None = None
    patches: PatchPreparation | None = None
    frame: str = ""
    overview: str = ""
    resample: Annotated[int, Meta(ge=0, le=5)]
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class LanguageModelDescription(Record, frozen=True, kw_only=True):
    """Description of a language model: everything that generation needs beside the module.

    Attributes:
        architecture: the kind of model, as "llama".
        context: the largest number of tokens, prompt and result together.
        vocabulary: how many logits there are.
        stop_tokens: those that end a text.
        begin: text of the token that begins a text, for chat templates; "" for none.
        end: text of the token that ends one.
        chat_template: Jinja source that turns messages into a prompt; None where the model has none.
        sequences: whether a run is of several sequences.
        stable_context: the length of a sequence beyond which keys depend on the length, so that longer sequences cannot
            share their beginnings; None where they never do.
        image_token: stands in a prompt for each row that the encoder returns for images or sounds; None for other
            models.
        start: what a text begins with where the prompt is empty; of models with an encoder and cross attention.
        suppressed: tokens that are never generated.
        suppressed_first: those that are not generated first.
        adapters: names of the adapters that the module keeps beside its weights, those of the numbers from 1 on.
        audio, images: how the encoder's inputs are made of speech and of images; None where that is the caller's.
    """

    architecture: str
    context: Annotated[int, Meta(ge=1)]
    vocabulary: Annotated[int, Meta(ge=1)]
    stop_tokens: tuple[Token, ...] = ()
    begin: str = ""
    end: str = ""
    chat_template: str | None = None
    sequences: bool = False
    stable_context: Annotated[int, Meta(ge=1)] | None = None
    image_token: Token | None = None
    start: tuple[Token, ...] = ()
    suppressed: tuple[Token, ...] = ()
    suppressed_first: tuple[Token, ...] = ()
    adapters: tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...] = ()
    audio: AudioPreparation | None = None
    images: ImagePreparation | None = None
