"""The tokenizer in GGUF metadata as a file of the tokenizers library; text is split into words like in llama.cpp."""

from __future__ import annotations

import json
import re
from typing import Any

from compiler.errors import InvalidModelError
from compiler.frontends.llm.gguf_file import GgufFile
from compiler.frontends.llm.tokenizer_files import TokenizerFiles
from compiler.frontends.llm.tokenizer_models import (
    CONTROL,
    GPT2,
    LLAMA3,
    NORMAL,
    QWEN2,
    UNKNOWN,
    USER,
    added_token,
    byte_level,
    check_pieces,
    cut,
    longest_match,
    pieces,
    scored_merges,
    tokenizer_content,
)

_WORD = r"[^\r\n\p{L}\p{N}]?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (
    rf"{_WORD}{_UPPER}*{_LOWER}+|{_WORD}{_UPPER}+{_LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
GPT4O = (
    rf"{_WORD}{_UPPER}*{_LOWER}+{_ENDINGS}|{_WORD}{_UPPER}+{_LOWER}*{_ENDINGS}|\p{{N}}{{1,3}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_HAN = r"(?!\p{Han})"
_KIMI = (
    rf"\p{{Han}}+|{_WORD}(?:{_HAN}{_UPPER})*(?:{_HAN}{_LOWER})+{_ENDINGS}|"
    rf"{_WORD}(?:{_HAN}{_UPPER})+(?:{_HAN}{_LOWER})*{_ENDINGS}|\p{{N}}{{1,3}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN35 = QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
_SEED = QWEN2.replace(r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}\r\n]+")
_BAILING = QWEN2.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "'(?i:[sdmt]|ll|ve|re)").replace(r"\s*[\r\n]+", r"\s*[\r\n]")
_BLOOM = " ?[^(\\s|.,!?…。\uff0c、।\u06d4،)]+"
_MARKS = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
_DEEPSEEK = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ\u30a0-ヿ]+",
    rf"{_MARKS}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", r"\p{N}")
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")
_FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]")
LLAMA3_KIN = ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2")
_GPT2_KIN = (
    *("gpt-2", "gpt2", "phi-2", "olmo", "mpt", "jais", "roberta-bpe", "exaone4", "trillion", "granite-docling"),
    *("gigachat", "a.x-4.0", "mellum", "modern-bert"),
)
_QWEN2_KIN = ("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan", "solar-open", "grok-2")
_DIGITS_KIN = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
# By the name in `tokenizer.ggml.pre`; each pattern splits the parts left by the previous one.
SPLITS: dict[str, tuple[str, ...]] = {
    "default": _DEFAULT,
    "falcon": _FALCON,
    **dict.fromkeys(_GPT2_KIN, (GPT2,)),
    **dict.fromkeys(_DIGITS_KIN, (r"\p{N}", GPT2)),
    **dict.fromkeys([*LLAMA3_KIN, "dbrx", "smaug-bpe", "smollm3", "chatglm-bpe", "glm4"], (LLAMA3,)),
    **dict.fromkeys(_QWEN2_KIN, (QWEN2,)),
    "tekken": (TEKKEN,),
    **dict.fromkeys(["gpt-4o", "llama4", "minimax-m2"], (GPT4O,)),
    "kimi-k2": (_KIMI,),
    "qwen35": (_QWEN35,),
    "seed-coder": (_SEED,),
    **dict.fromkeys(["bailingmoe", "bailingmoe2", "llada-moe"], (_BAILING,)),
    **dict.fromkeys(["deepseek-v3", "hunyuan-dense", "joyai-llm"], _DEEPSEEK),
    "deepseek-coder": _DEEPSEEK_CODER,
    **dict.fromkeys(["bloom", "poro-chat", "gpt3-finnish"], (_BLOOM,)),
    "viking": (_BLOOM, r"\p{N}"),
}


_PREFIX = "tokenizer.ggml."
_ESCAPES = {b"t": b"\t", b"n": b"\n", b"r": b"\r"}

_WHOLE_WORDS_FIRST = frozenset([*LLAMA3_KIN, "tekken", "smollm3", "seed-coder", "deepseek-v3"])
_BEGINS = frozenset([*LLAMA3_KIN, "tekken"])
# Control tokens that end a turn, regardless of the metadata.
_TURN_ENDS = frozenset(
    [
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<turn|>"),
        *("<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "<EOT>"),
    ]
)


def read_gguf_tokenizer(file: GgufFile) -> TokenizerFiles:
    """Return the tokenizer of a GGUF file.

    For unknown kinds there is no tokenizer: the module then takes and returns tokens.

    Raises InvalidModelError if the metadata are inconsistent.
    """
    tokens = file.value(f"{_PREFIX}tokens")
    if tokens is None:
        return TokenizerFiles(None, ())
    if not isinstance(tokens, list) or not all(isinstance(text, str) for text in tokens):
        raise InvalidModelError(f"{file.path}: its tokens are not a list of texts")
    types = file.value(f"{_PREFIX}token_type") or [NORMAL] * len(tokens)
    if not isinstance(types, list) or len(types) != len(tokens):
        raise InvalidModelError(f"{file.path}: {len(tokens)} tokens do not have as many types")
    content = _content(file, tokens, types)
    templates = [file.value(f"tokenizer.chat_template{name}") for name in ("", ".tool_use")]
    template, tool_template = (each if isinstance(each, str) else None for each in templates)
    return TokenizerFiles(
        content=None if content is None else json.dumps(content, ensure_ascii=False).encode(),
        stop_tokens=_stop_tokens(file, tokens, types),
        begin=_token_text(file, tokens, "bos"),
        end=_token_text(file, tokens, "eos"),
        chat_template=tool_template if template is None else template,
        tool_template=tool_template,
    )


def tokenizer_kind(file: GgufFile) -> str:
    """The tokenizer named by the metadata, in parentheses after a space; empty if there is none."""
    kind, pre = file.value(f"{_PREFIX}model"), file.value(f"{_PREFIX}pre")
    named = [f"{name} {value!r}" for name, value in (("model", kind), ("pre-tokenizer", pre)) if value is not None]
    return f" ({', '.join(named)})" if named else ""


def _content(file: GgufFile, tokens: list[str], types: list[int]) -> dict[str, Any] | None:
    kind, pre = file.value(f"{_PREFIX}model"), str(file.value(f"{_PREFIX}pre", "default"))
    if kind == "gpt2" and pre in SPLITS:
        merges = _listed_merges(file, tokens)
        parts = byte_level(_vocabulary(tokens), merges, SPLITS[pre], whole_words_first=pre in _WHOLE_WORDS_FIRST)
    elif kind == "llama":
        parts = _sentence_piece(file, tokens, types)
    elif kind == "gemma4":
        parts = _merged_pieces(file, tokens)
    elif kind == "rwkv" and tokens:
        texts = [_unescaped(text) for text in tokens]
        matched = longest_match({text: index for index, text in enumerate(texts)}, texts[0])
        if matched is None:
            return None
        parts = matched
    else:
        return None
    special = [
        added_token(at, tokens[at], special=each != USER)
        for at, each in enumerate(types)
        if each in (CONTROL, USER, UNKNOWN)
    ]
    begins = bool(file.value(f"{_PREFIX}add_bos_token", kind in ("llama", "gemma4") or pre in _BEGINS))
    index = _token(file, "bos") if begins else None
    return tokenizer_content(parts, special, None if index is None or index >= len(tokens) else (tokens[index], index))


def _unescaped(text: str) -> bytes:
    """Bytes of an RWKV token, which files store escaped."""

    def byte(found: re.Match[bytes]) -> bytes:
        code = found[1]
        return bytes([int(code[1:], 16)]) if len(code) == 3 else _ESCAPES.get(code, code)

    return re.sub(rb"\\(x[0-9a-fA-F]{2}|.)", byte, text.encode(), flags=re.DOTALL)


def _listed_merges(file: GgufFile, tokens: list[str]) -> list[list[str]]:
    listed = file.required(f"{_PREFIX}merges")
    if not isinstance(listed, list) or not all(isinstance(merge, str) for merge in listed):
        raise InvalidModelError(f"{file.path}: its merges are not a list of texts")
    merges = [merge.split(" ", 1) for merge in listed]
    known = set(tokens)
    wrong = [pair for pair in merges if not {*pair, "".join(pair)} <= known]
    if wrong:
        raise InvalidModelError(f"{file.path}: the tokenizer merges {' and '.join(wrong[0])!r}, which are not tokens")
    return merges


def _merged_pieces(file: GgufFile, tokens: list[str]) -> dict[str, Any]:
    """Pieces merged in the order of a list, within lines (Gemma 4)."""
    unknown = _token_text(file, tokens, "unknown")
    parts = pieces(_vocabulary(tokens), _listed_merges(file, tokens), prefix=False, unknown=unknown)
    return {**parts, "pre_tokenizer": cut(r"\n+")}


def _sentence_piece(file: GgufFile, tokens: list[str], types: list[int]) -> dict[str, Any]:
    """Pieces with scores: the pair with the best-scored piece is merged first."""
    scores = file.required(f"{_PREFIX}scores")
    if not isinstance(scores, list) or len(scores) != len(tokens) or any(isinstance(each, str) for each in scores[:1]):
        raise InvalidModelError(f"{file.path}: {len(tokens)} tokens do not have as many scores")
    check_pieces(tokens, str(file.path))
    prefix = bool(file.value(f"{_PREFIX}add_space_prefix", True))
    unknown = _token_text(file, tokens, "unknown")
    return pieces(_vocabulary(tokens), scored_merges(tokens, scores, types), prefix=prefix, unknown=unknown)


def _vocabulary(tokens: list[str]) -> dict[str, int]:
    return {text: index for index, text in enumerate(tokens)}


def _stop_tokens(file: GgufFile, tokens: list[str], types: list[int]) -> tuple[int, ...]:
    named = [_token(file, name) for name in ("eos", "eot", "eom")]
    ends = [index for index, kind in enumerate(types) if kind == CONTROL and tokens[index] in _TURN_ENDS]
    return tuple(dict.fromkeys([*(each for each in named if each is not None), *ends]))


def _token_text(file: GgufFile, tokens: list[str], name: str) -> str:
    index = _token(file, name)
    return tokens[index] if index is not None and index < len(tokens) else ""


def _token(file: GgufFile, name: str) -> int | None:
    """Return the number of a special token; None if there is none."""
    index = file.value(f"{_PREFIX}{name}_token_id")
    if index is not None and (not isinstance(index, int) or not 0 <= index < 1 << 31):
        raise InvalidModelError(f"{file.path}: its {name} token is {str(index)[:80]!r}, not a token")
    return index
