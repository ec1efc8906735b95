"""A tokenizer.json as the file that `text/tokenizer.cc` of the C++ runtime reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from compiler.generation.native.character_sets import WHITE_SPACE, refused
from compiler.generation.native.models import write_model
from compiler.generation.native.normalizers import write_normalizers
from compiler.generation.native.parts import flattened, write_decoders, write_pre_tokenizers
from compiler.generation.native.writer import Writer
from compiler.support.tokenizer_file import read_tokenizer


def write_tokenizer(content: bytes, writer: Writer) -> None:
    """Append a tokenizer, given as a file of the tokenizers library.

    Raises:
        OptionError: it has a part that the C++ runtime does not have; the message names it.
        ArtifactError: it is damaged.
        MissingDependencyError: the package tokenizers is not installed.
    """
    tokenizer = read_tokenizer(content)
    described: dict[str, Any] = json.loads(tokenizer.to_str())  # with all defaults filled in
    writer.numbers([edge for pair in WHITE_SPACE for edge in pair])
    write_normalizers(flattened(described["normalizer"], "normalizers"), writer)
    write_pre_tokenizers(flattened(described["pre_tokenizer"], "pretokenizers"), writer)
    write_model(described["model"], writer)
    _write_added(described["added_tokens"], tokenizer, writer)
    before, after = _around(flattened(described["post_processor"], "processors"))
    writer.numbers(before)
    writer.numbers(after)
    decoder = described["decoder"]
    writer.number(int(decoder is None))  # tokens are then put together with spaces
    write_decoders(flattened(decoder, "decoders"), writer)


def _write_added(added: Sequence[Mapping[str, Any]], tokenizer: Any, writer: Writer) -> None:
    """Append the tokens that are found before texts are cut."""
    found = [each for each in added if each["content"]]
    writer.number(len(found))
    for each in found:
        if each["single_word"]:
            raise refused(f"the token {each['content']!r} that must be a single word")
        matched = each["content"]
        if each["normalized"] and tokenizer.normalizer is not None:
            matched = tokenizer.normalizer.normalize_str(matched)
        writer.number(each["id"])
        writer.text(tokenizer.id_to_token(each["id"]))
        writer.text(matched)
        for option in ("special", "normalized", "lstrip", "rstrip"):
            writer.number(int(each[option]))


def _around(processors: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[int]]:
    """Tokens before and after those of a text."""
    before: list[int] = []
    after: list[int] = []
    for part in processors:
        kind = part["type"]
        if kind in ("BertProcessing", "RobertaProcessing"):
            before, after = [part["cls"][1], *before], [*after, part["sep"][1]]
        elif kind == "TemplateProcessing":
            first, last = _template(part)
            before, after = [*first, *before], [*after, *last]
        elif kind != "ByteLevel":  # which changes offsets alone
            raise refused(f"the post-processor {kind}")
    return before, after


def _template(part: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    sides: tuple[list[int], list[int]] = [], []
    side = 0
    for item in part["single"]:
        if "Sequence" in item:
            side += 1
            continue
        sides[min(side, 1)].extend(part["special_tokens"][item["SpecialToken"]["id"]]["ids"])
    if side != 1:
        raise refused(f"a template that holds the text {side} times")
    return sides
