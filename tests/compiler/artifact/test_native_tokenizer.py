"""The C++ tokenizer gives the tokens and texts of the tokenizers library, or its parts are refused by name."""

from __future__ import annotations

import json
import random
import unicodedata
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from compiler.artifact.native_tokenizer.patterns import Pattern, parse
from compiler.artifact.native_tokenizer.tokenizer import write_tokenizer
from compiler.artifact.native_tokenizer.writer import Writer
from compiler.driver.compile import find_target
from compiler.errors import OptionError
from compiler.frontends.llm.gguf_tokenizer import GPT4O, TEKKEN
from compiler.frontends.llm.tokenizer_models import GPT2, LLAMA3, QWEN2, scored_merges
from tests.compiler.artifact.native_library import NativeTokenizer
from tests.compiler.generation.other_tokenizers import BEGIN, CORPUS, OTHER_TOKENIZERS, SPECIAL


def _split(*patterns: str) -> Any:
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _trained(pre_tokenizer: Any, normalizer: Any = None, decoder: Any = None, **options: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoder or decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if decoder is None else ["▁", *"abcdefghijklmnop"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)] if options.get("byte_fallback") else []
    unknown = [options["unk_token"]] if "unk_token" in options else []
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, special_tokens=[*SPECIAL, *unknown, *fallback], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [each for each in content["added_tokens"] if each["content"] not in fallback]
    return Tokenizer.from_str(json.dumps(content))


def _gpt2() -> Tokenizer:
    tokenizer = _trained(pre_tokenizers.ByteLevel(add_prefix_space=True))
    tokenizer.add_tokens([AddedToken("quick brown", normalized=False), AddedToken(" wide ", lstrip=True, rstrip=True)])
    tokenizer.post_processor = processors.RobertaProcessing(("<|end|>", 0), ("<s>", 2))
    return tokenizer


def _llama3() -> Tokenizer:
    tokenizer = _trained(_split(LLAMA3), ignore_merges=True)
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), BEGIN])
    return tokenizer


def _qwen() -> Tokenizer:
    tokenizer = _trained(_split(QWEN2), normalizers.NFC())
    tokenizer.add_tokens([AddedToken("e\u0301tat", normalized=True)])
    return tokenizer


def _falcon() -> Tokenizer:
    cuts = [pre_tokenizers.Punctuation("contiguous"), pre_tokenizers.ByteLevel(), pre_tokenizers.Digits()]
    last = pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated")
    return _trained(pre_tokenizers.Sequence([*cuts, last]), normalizers.NFKC())


def _llama2() -> Tokenizer:
    """Like a tokenizer converted from GGUF: merges by scores, and a normalizer that writes spaces."""
    replaced = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made = _trained(
        pre_tokenizers.Metaspace(split=False, prepend_scheme="never"),
        replaced,
        decoders.Sequence(parts),
        byte_fallback=True,
        fuse_unk=True,
        unk_token="<unk>",
    )
    content = json.loads(made.to_str())
    tokens = sorted(content["model"]["vocab"], key=content["model"]["vocab"].__getitem__)
    scores = [-float(index) for index in range(len(tokens))]
    content["model"]["merges"] = scored_merges(tokens, scores, [1] * len(tokens))
    content["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.post_processor = BEGIN
    return tokenizer


def _metaspace() -> Tokenizer:
    scheme = pre_tokenizers.Metaspace(prepend_scheme="first")
    return _trained(scheme, None, decoders.Metaspace(), unk_token="<unk>")


TOKENIZERS = {
    "gpt2": _gpt2,
    "smollm": lambda: _trained(_split(r"\p{N}", GPT2)),
    "llama3": _llama3,
    "qwen": _qwen,
    "tekken": lambda: _trained(_split(TEKKEN)),
    "gpt4o": lambda: _trained(_split(GPT4O)),
    "falcon": _falcon,
    "llama2": _llama2,
    "metaspace": _metaspace,
    **OTHER_TOKENIZERS,
}


def _text(chance: random.Random) -> str:
    """Words, spaces, special tokens, and characters from all over Unicode."""
    ranges = [(32, 127), (0, 33), (0xC0, 0x250), (0x300, 0x370), (0x600, 0xE00), (0x4E00, 0x9FFF), (0xAC00, 0xD7A4),
              (0x1100, 0x1200), (0xF900, 0x11000), (0x1F000, 0x1FB00), (0x20000, 0x110000)]  # fmt: skip
    words = [
        "don't",
        "I'LL",
        "'\u017f",
        " the",
        "  ",
        "\n\n",
        "\r\n ",
        "123456",
        " wide ",
        "quick brown",
        "état",
        "\u3000",
        "x=y;",
    ]
    parts = []
    for _ in range(chance.randrange(12)):
        first, end = chance.choice(ranges)
        odd = "".join(chr(chance.randrange(first, end)) for _ in range(chance.randrange(5)))
        parts.append(
            chance.choice([odd, unicodedata.normalize("NFD", odd), chance.choice(words), chance.choice(SPECIAL)])
        )
    return "".join(parts)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_and_texts_are_those_of_the_library(name: str) -> None:
    expected = TOKENIZERS[name]()
    native = NativeTokenizer(expected.to_str().encode(), find_target("host"))
    chance = random.Random(name)
    for _ in range(150):
        text, special = _text(chance), chance.random() < 0.5
        tokens = expected.encode(text, add_special_tokens=special).ids
        assert native.encode(text, special=special) == tokens, text
        drawn = [chance.randrange(expected.get_vocab_size()) for _ in range(5)]
        assert native.decode([*tokens, *drawn]) == expected.decode([*tokens, *drawn])


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 0.1}}, "the option dropout of BPE"),
        ({"pre_tokenizer": {"type": "UnicodeScripts"}}, "the pre-tokenizer UnicodeScripts"),
        (
            {"decoder": {"type": "CTC", "pad_token": "a", "word_delimiter_token": "|", "cleanup": True}},
            "the decoder CTC",
        ),
    ],
)
def test_other_parts_are_refused_by_name(part: dict[str, Any], named: str) -> None:
    content = {"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, **part}
    with pytest.raises(OptionError, match=named):
        write_tokenizer(json.dumps(content).encode(), Writer())


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        (r"(?<=ab)c", "a look-behind"),
        (r"^a", "an anchor"),
        (r"(a)\1", r"the escape \\1"),
        (r"(?i:ss)", "which a single character may equal"),
        (r"a*", "an empty text"),
        (r"(?<x>a)", "a group"),
        (r"a)", "an unmatched"),
    ],
)
def test_other_regular_expressions_are_refused(pattern: str, named: str) -> None:
    with pytest.raises(OptionError, match=named):
        Pattern(pattern)
    if "empty" not in named:
        with pytest.raises(OptionError):
            parse(pattern)
