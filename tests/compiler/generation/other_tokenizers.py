"""Small tokenizers of other kinds than byte-level BPE, trained on a few sentences."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = (
    "The quick brown fox doesn't jump over 12345 lazy dogs; it's 3.14 HAPPIER.\n\n\tfor i in range(10): print(i)\n",
    "Zürich, naïve café, Å ﬁne day. Привет, мир! こんにちは世界 안녕하세요 你好 世界 🎉👨‍👩‍👧 ١٢٣ नमस्ते",
)
SPECIAL = ["<|end|>", "<|user|>", "<s>"]
BEGIN = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
RULES = {
    "ﬁ": "fi", "\x07": "", "\u3000": " ", "\t": " ", "\uff21": "A",
    "A\u030a": "Å", "e\u0301": "é", "e": "e", "½": "1/2",
    "\u1100\u1161": "가", "\u1100\u1161\u11a8": "각", "👨\u200d": "man", "\u0301": "",
}  # fmt: skip


def charsmap(rules: Mapping[str, str]) -> str:
    """A `precompiled_charsmap`: each node of its trie has 256 units of its own."""
    texts = b"".join(text.encode() + b"\0" for text in rules.values())
    places = {key.encode(): texts.index(text.encode() + b"\0") for key, text in rules.items()}
    nodes = sorted({key[:size] for key in places for size in range(len(key) + 1)}, key=lambda node: (len(node), node))
    bases = {node: 256 * (index + 1) for index, node in enumerate(nodes)}
    units = [0] * (256 * (len(nodes) + 1))
    units[0] = bases[b""] << 10
    for node in nodes[1:]:
        place = bases[node[:-1]] ^ node[-1]
        units[place] = (place ^ bases[node]) << 10 | (node in places) << 8 | node[-1]
    for node, value in places.items():
        units[bases[node]] = value | 1 << 31
    trie = b"".join(unit.to_bytes(4, "little") for unit in units)
    return base64.b64encode(len(trie).to_bytes(4, "little") + trie + texts).decode()


def _tokenizer(model: Any, trainer: Any, normalizer: Any, pre_tokenizer: Any, decoder: Any) -> Tokenizer:
    tokenizer = Tokenizer(model)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return tokenizer


def _unigram(normalizer: Any, pre_tokenizer: Any, *, fallback: bool = False) -> Tokenizer:
    trainer = trainers.UnigramTrainer(
        vocab_size=220, special_tokens=[*SPECIAL, "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer = _tokenizer(models.Unigram(), trainer, normalizer, pre_tokenizer, decoders.Metaspace())
    if not fallback:
        return tokenizer
    content = json.loads(tokenizer.to_str())
    content["model"]["vocab"] += [[f"<0x{byte:02X}>", -20.0] for byte in range(256)]
    content["model"]["vocab"] += [["the", -1.0], ["th", -0.5], ["e", -0.5], ["zz", 1.0], ["z", 1.5]]
    content["model"]["byte_fallback"] = True
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made = Tokenizer.from_str(json.dumps(content))
    made.decoder = decoders.Sequence(parts)
    return made


def _t5() -> Tokenizer:
    scheme = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    content = json.loads(_unigram(normalizers.NFKC(), scheme).to_str())
    rules = {"type": "Precompiled", "precompiled_charsmap": charsmap(RULES)}
    spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    content["normalizer"] = {"type": "Sequence", "normalizers": [rules, spaces]}
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <|end|>", special_tokens=[("<|end|>", 0)])
    return tokenizer


def _albert() -> Tokenizer:
    parts = [
        *(normalizers.Replace("``", '"'), normalizers.NFKD(), normalizers.StripAccents()),
        *(normalizers.Lowercase(), normalizers.Nmt(), normalizers.Replace(Regex(" {2,}"), " ")),
    ]
    return _unigram(normalizers.Sequence(parts), pre_tokenizers.Metaspace(prepend_scheme="first"))


def _bert(normalizer: Any, *, cleanup: bool) -> Tokenizer:
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=[*SPECIAL, "[UNK]"], show_progress=False)
    tokenizer = _tokenizer(
        models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=12),
        trainer,
        normalizer,
        pre_tokenizers.BertPreTokenizer(),
        decoders.WordPiece(cleanup=cleanup),
    )
    tokenizer.post_processor = processors.BertProcessing(("<|end|>", 0), ("<s>", 2))
    tokenizer.add_tokens([AddedToken("Quick Brown", normalized=True)])
    return tokenizer


def _gpt1() -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[*SPECIAL, "<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    model = models.BPE(unk_token="<unk>", end_of_word_suffix="</w>")
    cut = pre_tokenizers.BertPreTokenizer()
    return _tokenizer(model, trainer, normalizers.BertNormalizer(), cut, decoders.BPEDecoder())


def _continued() -> Tokenizer:
    options: dict[str, Any] = {"continuing_subword_prefix": "é#", "end_of_word_suffix": "$"}
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False, **options)
    cut = pre_tokenizers.CharDelimiterSplit(" ")
    return _tokenizer(models.BPE(**options), trainer, normalizers.ByteLevel(), cut, decoders.WordPiece(prefix="é#"))


def _words() -> Tokenizer:
    trainer = trainers.WordLevelTrainer(special_tokens=[*SPECIAL, "<unk>"], show_progress=False)
    model = models.WordLevel(unk_token="<unk>")
    return _tokenizer(model, trainer, normalizers.Nmt(), pre_tokenizers.Whitespace(), decoders.Fuse())


OTHER_TOKENIZERS = {
    "t5": _t5,
    "albert": _albert,
    "unigram with bytes": lambda: _unigram(
        normalizers.Replace(" ", "▁"), pre_tokenizers.Split(Regex("\\d"), "isolated"), fallback=True
    ),
    "bert": lambda: _bert(normalizers.BertNormalizer(), cleanup=True),
    "bert, cased": lambda: _bert(normalizers.BertNormalizer(lowercase=False), cleanup=False),
    "bert, accents": lambda: _bert(
        normalizers.BertNormalizer(clean_text=False, handle_chinese_chars=False, strip_accents=False), cleanup=True
    ),
    "gpt1": _gpt1,
    "continued": _continued,
    "words": _words,
}
