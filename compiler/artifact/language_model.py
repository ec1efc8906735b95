"""The description of a language model, stored with the manifest as the asset `language_model.json`."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from compiler.artifact.fields import Record

DESCRIPTION_ASSET = "language_model.json"
TOKENIZER_ASSET = "tokenizer.json"
ENCODER_ASSET = "encoder.twm"
ADAPTER = "adapter"  # the input that selects an adapter; 0 for none

Token = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
Size = Annotated[int, Meta(ge=1, le=1 << 20)]
Tiles = Annotated[int, Meta(ge=1, le=1024)]


class AudioPreparation(Record, frozen=True, kw_only=True):
    """Preprocessing of speech to a log-mel spectrogram as for Whisper, and the text that represents it in a prompt.

    Attributes:
        text: represents one row of an audio input, and in a text stands for all of its rows; "" if audio takes no
            tokens.
        rows: number of rows read at once.
        masked: the encoder takes a mask of the frames that are not padding, and returns one row for every four of them.
        rate: samples per second.
        window, hop: samples per frame, and samples from one frame to the next.
        mels: number of mel bands.
        samples: number of samples read at once; shorter audio is padded.
    """

    rate: Size
    window: Size
    hop: Size
    mels: Size
    samples: Annotated[int, Meta(ge=1, le=1 << 28)]
    text: str = ""
    rows: Size = 1
    masked: bool = False


class PatchTiles(Record, frozen=True, kw_only=True):
    """Splitting of large images into square tiles, each of which is split into patches.

    Attributes:
        side: number of rows and columns of pixels.
        least, most: minimum and maximum number of tiles; their grid has nearly the image's aspect ratio.
        above: number of pixels above which an image is split.
        overview: the whole image follows its tiles.
        mark: text before each tile, with {row} and {column}, counted from 1.
    """

    side: Size
    least: Tiles
    most: Tiles
    above: Annotated[float, Meta(ge=0)]
    overview: bool
    mark: str = ""


class PatchPreparation(Record, frozen=True, kw_only=True):
    """Splitting of an image of any size into patches, which the encoder reads in sequence.

    Attributes:
        merge: the encoder computes one row from a square of this many by this many patches.
        frames: how often a patch is repeated, because video encoders read several frames at once.
        enlarges: images with a side shorter than a row are enlarged first, with sides rounded down or to the nearest
            pixel ("side": that side alone, of images of any aspect ratio); None: they are not.
        fills: images are enlarged or reduced to as many pixels as `most` allows, and sides rounded down.
        least, most: minimum and maximum number of pixels of an image, to which images are resized.
        tiles: how large images are split first; None: they are not.
    """

    merge: Size
    frames: Size
    enlarges: Literal["down", "nearest", "side"] | None = None
    fills: bool = False
    least: Annotated[int, Meta(ge=1, le=1 << 32)]
    most: Annotated[int, Meta(ge=1, le=1 << 32)]
    tiles: PatchTiles | None = None


class TilePacking(Record, frozen=True, kw_only=True):
    """Splitting of an image into the whole image and tiles, whose rows are put together line by line.

    Attributes:
        sizes: heights and widths of grids of tiles in pixels; an image is scaled to fit into the one that shows the
            most of it, and centered.
        side: number of rows of the encoder along a side of a tile.
        most: the rows of larger grids are interpolated to the number of rows of this many tiles; None: they are not.
        alone: several images of a prompt are not split, but padded to squares with the mean color.
    """

    sizes: Annotated[tuple[tuple[Size, Size], ...], Meta(min_length=1)]
    side: Tiles
    most: Tiles | None = None
    alone: bool = False


class ImagePreparation(Record, frozen=True, kw_only=True):
    """Preprocessing of an image for an encoder, and the text that represents it in a prompt.

    Attributes:
        text: represents one row of an image.
        place: represents an image in a text; "" for `text`.
        before, after: texts around the rows of an image that is not split.
        between: text after each line of an image's rows but the last, for images in patches; "" for none.
        rows: number of rows per image or tile; for images in patches, it depends on their size.
        height, width: size of the encoder's input: an image, a tile or a patch.
        shortest: the shorter side is resized to this length and the center is cropped; None: the whole image is resized
            to fit.
        padded: the image is resized so that its longer side is the input's and the other one at least of this length,
            and centered on the mean color; None: it is not.
        longest: the longer side is resized to this length first (for images in patches: if it is longer, and sides are
            rounded up); None: it is not.
        splits: the image is split into tiles, which precede the whole image.
        canvas: minimum and maximum number of tiles into which an image is split; the whole image follows them. None: it
            is not split.
        grid: the grid of tiles is that whose aspect ratio is nearest to the image's ("aspect"), or that to which the
            image is enlarged the least, or reduced the least ("scale").
        packing: how an image is split into tiles whose rows are put together; None: it is not.
        patches: how an image is split into patches; None: it is not.
        frame, overview: texts around the rows of tiles, and before the rows of the whole image; "" for none.
        mark, end: texts before the rows of a tile, with {number}, counted from 1, and after the rows of a tile or of
            the whole image, for images on a canvas.
        resample: the filter, by Pillow's numbers.
        scale, mean, std: (pixel * scale - mean) / std, by channel.
    """

    text: Annotated[str, Meta(min_length=1)]
    place: str = ""
    before: str = ""
    after: str = ""
    between: str = ""
    rows: Size
    height: Size
    width: Size
    shortest: Size | None = None
    padded: Size | None = None
    longest: Size | None = None
    splits: bool = False
    canvas: tuple[Tiles, Tiles] | None = None
    packing: TilePacking | None = None
    patches: PatchPreparation | None = None
    grid: Literal["aspect", "scale"] = "aspect"
    frame: str = ""
    overview: str = ""
    mark: str = ""
    end: str = ""
    resample: Annotated[int, Meta(ge=0, le=5)]
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class LanguageModelDescription(Record, frozen=True, kw_only=True):
    """Description of a language model: everything that generation needs in addition to the module.

    Attributes:
        architecture: the kind of model, for example "llama".
        context: the maximum number of tokens of prompt and result together.
        vocabulary: the number of logits.
        stop_tokens: the tokens that end a text.
        begin: text of the token that begins a text, for chat templates; "" for none.
        end: text of the token that ends a text.
        chat_template: Jinja source that converts messages to a prompt; None if the model has none.
        tool_template: the same for messages with tools; None if it is `chat_template`.
        sequences: whether a run processes several sequences.
        stable_context: the sequence length beyond which keys depend on the length, so that longer sequences cannot
            share their prefixes; None if keys never depend on it.
        image_token: represents in a prompt each row that the encoder returns for images or audio; None for other
            models.
        start: the initial tokens of a text if the prompt is empty, for models with an encoder and cross attention.
        suppressed: tokens that are never generated.
        suppressed_first: tokens that are never generated first.
        adapters: names of the adapters that the module stores separately from its weights, numbered from 1.
        audio, images: how the encoder's inputs are computed from audio and images; None if the caller does that.
    """

    architecture: str
    context: Annotated[int, Meta(ge=1)]
    vocabulary: Annotated[int, Meta(ge=1)]
    stop_tokens: tuple[Token, ...] = ()
    begin: str = ""
    end: str = ""
    chat_template: str | None = None
    tool_template: str | None = None
    sequences: bool = False
    stable_context: Annotated[int, Meta(ge=1)] | None = None
    image_token: Token | None = None
    start: tuple[Token, ...] = ()
    suppressed: tuple[Token, ...] = ()
    suppressed_first: tuple[Token, ...] = ()
    adapters: tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...] = ()
    audio: AudioPreparation | None = None
    images: ImagePreparation | None = None
