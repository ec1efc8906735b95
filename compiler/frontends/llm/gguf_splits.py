"""How text is split into words before pairs of tokens are merged, as llama.cpp does it."""

from __future__ import annotations

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
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
# By the name in `tokenizer.ggml.pre`; each splits what the one before it left.
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
