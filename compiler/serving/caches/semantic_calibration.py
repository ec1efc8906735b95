"""Calibration of the semantic cache: chooses the threshold and measures false hits on labelled pairs of texts.

The gate: two texts may share an answer only if their content words agree, in order. Embeddings place "Flights from
Paris to Rome" and "Flights from Rome to Paris" at a cosine of 0.999, and true paraphrases at less, so a threshold
alone cannot separate them. The gate compares words: articles, some auxiliaries and polite phrases are dropped; content
words, prepositions and particles ("on", "off", "to", "from"), negations, numbers and symbols are kept. A gate
that is too strict costs hits, one that is too loose gives wrong answers.
"""

from __future__ import annotations

import json
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from compiler.artifact.storage import write_json
from compiler.errors import AccuracyError, OptionError, storage_errors
from compiler.runtime.prediction.texts import Embedder

_FOLDS = 5
MIN_PAIRS = 30
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class LabelledPair:
    """Two texts; `same` if the answer to one is right for the other."""

    one: str
    other: str
    same: bool


@dataclass(frozen=True)
class SemanticCalibration:
    """Calibration of a semantic cache.

    Attributes:
        embedder: identity of the calibrated embedder.
        threshold: the least cosine of a hit.
        extra: number of content words that one of two texts may have in addition.
        synonyms: groups of words treated as equal.
        pairs_same, pairs_different: number of pairs of each kind.
        hit_rate: fraction of pairs with the same meaning that hit, measured on held-out pairs.
        false_hit_rate: fraction of pairs with different meaning that hit.
        false_hit_bound: upper 95 % confidence bound of the false hit rate.
        without_gate: false hit rate of the threshold without the gate, at the same hit rate.
    """

    embedder: str
    threshold: float
    extra: int
    synonyms: tuple[tuple[str, ...], ...]
    pairs_same: int
    pairs_different: int
    hit_rate: float
    false_hit_rate: float
    false_hit_bound: float
    without_gate: float
    notes: tuple[str, ...] = field(default=())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON. Raises StorageError."""
        write_json(path, asdict(self))

    def __str__(self) -> str:
        return (
            f"threshold {self.threshold:.4f}, up to {self.extra} extra words; of {self.pairs_same} pairs of one meaning"
            f" {self.hit_rate:.1%} hit; of {self.pairs_different} of different meaning {self.false_hit_rate:.1%} do (at"
            f" most {self.false_hit_bound:.1%} with 95 % confidence; without the gate {self.without_gate:.1%})"
        )


def calibrate_semantic_cache(
    embedder: Embedder,
    pairs: Iterable[LabelledPair],
    *,
    max_false_hits: float = 0.0,
    extra: int = 0,
    synonyms: Sequence[Sequence[str]] = (),
) -> SemanticCalibration:
    """Choose the threshold, and measure hits and false hits by cross-validation in five folds.

    Args:
        pairs: at least 30 of each kind, as the users of the cache would write; pairs of different meaning must be near
            misses ("turn on", "turn off"), since others are not informative.
        max_false_hits: the largest fraction of pairs of different meaning that may hit.
        extra: number of content words that one of two texts may have in addition.
        synonyms: groups of words treated as equal: [("movie", "film")].

    Raises:
        OptionError: there are too few pairs, or an option is out of range.
        AccuracyError: more false hits than `max_false_hits`, or not a single hit.
    """
    pairs = list(pairs)
    labels = np.array([pair.same for pair in pairs], bool)
    if min(labels.sum(), (~labels).sum()) < MIN_PAIRS:
        raise OptionError(
            f"{labels.sum()} pairs of one meaning and {(~labels).sum()} of different meaning are too few to measure"
            " false hits",
            f"give at least {MIN_PAIRS} of each",
        )
    if not 0 <= max_false_hits < 1 or extra < 0:
        raise OptionError(
            f"max_false_hits={max_false_hits}, extra={extra}", "give a share below 1, and 0 or more words"
        )
    cosines, passes = _compared(embedder, pairs, synonym_table(synonyms), extra)
    hits = _cross_validated(cosines, passes, labels, max_false_hits)
    false_hits, negatives = int(hits[~labels].sum()), int((~labels).sum())
    chosen = _threshold(cosines, passes, labels, max_false_hits)
    result = SemanticCalibration(
        embedder=embedder.identity,
        threshold=chosen,
        extra=extra,
        synonyms=tuple(tuple(group) for group in synonyms),
        pairs_same=int(labels.sum()),
        pairs_different=negatives,
        hit_rate=float(hits[labels].mean()),
        false_hit_rate=false_hits / negatives,
        false_hit_bound=_upper_bound(false_hits, negatives),
        without_gate=float((cosines[~labels] >= min(chosen, 1.0)).mean()),
    )
    _check(result, max_false_hits)
    return result


def _compared(
    embedder: Embedder, pairs: Sequence[LabelledPair], synonyms: Mapping[str, str], extra: int
) -> tuple[Any, Any]:
    """Return the cosine of each pair, and True if its texts pass the gate."""
    texts = [text for pair in pairs for text in (pair.one, pair.other)]
    vectors = embedder.embed(texts)
    cosines = np.einsum("ij,ij->i", vectors[0::2], vectors[1::2]).astype(np.float64)
    words = [wording_of(text, synonyms) for text in texts]
    passes = [agree(one, other, extra) for one, other in zip(words[0::2], words[1::2], strict=True)]
    return cosines, np.array(passes, bool)


def _cross_validated(cosines: Any, passes: Any, labels: Any, max_false_hits: float) -> Any:
    """Return the pairs that hit at the threshold chosen on the other folds."""
    hits = np.zeros(len(labels), bool)
    for fold in range(_FOLDS):
        left_out = np.arange(len(labels)) % _FOLDS == fold
        threshold = _threshold(cosines[~left_out], passes[~left_out], labels[~left_out], max_false_hits)
        hits[left_out] = passes[left_out] & (cosines[left_out] >= threshold)
    return hits


def _check(result: SemanticCalibration, max_false_hits: float) -> None:
    if result.false_hit_rate > max_false_hits:
        raise AccuracyError(
            f"the semantic cache would answer {result.false_hit_rate:.1%} of texts of another meaning (limit"
            f" {max_false_hits:.1%}): {result}",
            "give fewer extra words or synonyms, another embedder, or do without this cache",
        )
    if not result.hit_rate:
        raise AccuracyError(f"the semantic cache would never hit: {result}", "do without it; the exact cache may do")


def _threshold(cosines: Any, passes: Any, labels: Any, limit: float) -> float:
    """Return the least cosine of a passing pair with the same meaning at which at most `limit` of the others hit; 2 if
    there is none."""
    for candidate in np.unique(cosines[passes & labels]):
        if (passes & ~labels & (cosines >= candidate)).sum() <= limit * (~labels).sum():
            return float(candidate)
    return 2.0


def _upper_bound(events: int, trials: int) -> float:
    """Clopper and Pearson's upper bound of a rate, by bisection of the binomial distribution."""
    low, high = events / trials, 1.0
    for _ in range(60):
        rate = (low + high) / 2
        below = sum(math.comb(trials, k) * rate**k * (1 - rate) ** (trials - k) for k in range(events + 1))
        low, high = (rate, high) if below > 1 - _CONFIDENCE else (low, rate)
    return high


def read_pairs(path: str | os.PathLike[str]) -> list[LabelledPair]:
    """Pairs of a file with a JSON object a line: {"one": "...", "other": "...", "same": true}.

    Raises:
        StorageError: the file cannot be read.
        OptionError: a line is not such an object.
    """
    with storage_errors(path):
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    pairs = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            given = json.loads(line)
            pair = LabelledPair(given["one"], given["other"], given["same"])
        except (ValueError, KeyError, TypeError):
            pair = None
        if pair is None or not (isinstance(pair.one, str) and isinstance(pair.other, str) and pair.same in (0, 1)):
            raise OptionError(
                f"{path}, line {number} is not a pair of texts", 'write {"one": "...", "other": "...", "same": true}'
            )
        pairs.append(pair)
    return pairs


def read_calibration(path: str | os.PathLike[str]) -> SemanticCalibration:
    """Read a file of `save`. Raises StorageError, or OptionError if it is not a calibration."""
    with storage_errors(path):
        content = Path(path).read_bytes()
    try:
        given: Mapping[str, Any] = json.loads(content)
        groups = tuple(tuple(group) for group in given["synonyms"])
        calibration = SemanticCalibration(**{**given, "synonyms": groups, "notes": tuple(given["notes"])})
    except (ValueError, KeyError, TypeError) as error:
        raise OptionError(
            f"{path} is not a calibration of a semantic cache: {error}",
            "`tensorwright calibrate semantic-cache` writes one",
        ) from error
    if not 0 < calibration.threshold <= 1.001:
        raise OptionError(f"{path}: a threshold of {calibration.threshold}", "calibrate again")
    return calibration


# Tenses are kept ("who is", "who was"), and so are verbs that can change the question ("will", "need").
_ARTICLES_AND_AUXILIARIES = (
    "a an the of do does is are am be can could would please tell show give let its it this that"
)
_PARTICLES = (
    "no not never none nor without with to from in out on off up down over under before after above below between into"
    " onto than more less least most and or only all any every except if unless until since by for at against was"
    " were did will must should may might"
)
_DROPPED = frozenset(_ARTICLES_AND_AUXILIARIES.split(" "))
_HARD = frozenset(_PARTICLES.split(" "))
_CLITICS = frozenset(["s", "re", "ve", "ll", "m", "d"])
_PERSONS = {"i": "i", "me": "i", "my": "i", "you": "you", "your": "you", "we": "we", "us": "we", "our": "we"}
_QUESTIONS = frozenset(["what", "which", "who", "whom", "whose", "when", "where", "why", "how"])
_CONTRACTIONS = (("can't", "can not"), ("won't", "will not"), ("n't", " not"), ("cannot", "can not"))
_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+|[^\w\s]")
_PUNCTUATION = frozenset(".,;:!?\"'()[]\u2026\u201c\u201d\u2018\u2019`")


@dataclass(frozen=True)
class Wording:
    """Features of a text for the gate.

    Attributes:
        words: content words, particles, negations, numbers and symbols, in order.
        questions: its question words ("what", "how"), in order.
        persons: personal pronouns ("i", "you", "we"), in order.
    """

    words: tuple[str, ...]
    questions: tuple[str, ...]
    persons: tuple[str, ...]


def wording_of(text: str, synonyms: Mapping[str, str] = MappingProxyType({})) -> Wording:
    """Extract the features of a text; `synonyms` maps lower-case words to their representative."""
    text = unicodedata.normalize("NFKC", text).replace("\u2019", "'")
    shouted = text.upper() == text
    words, questions, persons = [], [], []
    for form, end in _CONTRACTIONS:
        text = re.sub(re.escape(form), end, text, flags=re.IGNORECASE)
    previous = ""
    for match in _TOKEN.finditer(text):
        token = match.group()
        lower = token.casefold()
        # "US", "IT" and the D of a vitamin are not function words.
        acronym = token.isupper() and not shouted and (len(token) > 1 or (token != "I" and previous != ""))
        joins = token == "-" and previous.isalpha() and text[match.end() : match.end() + 1].isalpha()
        clitic = previous == "'" and lower in _CLITICS
        previous = token
        if token in _PUNCTUATION or joins or clitic or (lower in _DROPPED and not acronym):
            continue
        if acronym or lower not in (*_QUESTIONS, *_PERSONS):
            stem = _stem(lower)
            words.append(synonyms.get(lower, synonyms.get(stem, stem)))
        elif lower in _QUESTIONS:
            questions.append(lower)
        else:
            persons.append(_PERSONS[lower])
    return Wording(tuple(words), tuple(questions), tuple(persons))


def agree(one: Wording, other: Wording, extra: int = 0) -> bool:
    """True if two texts may share an answer.

    Their words must be equal and in the same order, except for up to `extra` words that only one of the two has; these
    may not be negations, particles, numbers or symbols. Question words must be equal if both texts have some, and
    persons if one has several ("Can I call you", "Can you call me").
    """
    if one.questions and other.questions and one.questions != other.questions:
        return False
    if max(len(one.persons), len(other.persons)) > 1 and one.persons != other.persons:
        return False
    longer, shorter = (one.words, other.words) if len(one.words) >= len(other.words) else (other.words, one.words)
    if not shorter or len(longer) - len(shorter) > extra:
        return False
    added = _added(longer, shorter)
    return added is not None and all(word.isalpha() and word not in _HARD for word in added)


def synonym_table(groups: Iterable[Sequence[str]]) -> dict[str, str]:
    """Convert groups of synonyms for `wording_of`: the first word of a group represents the others."""
    table = {}
    for group in groups:
        for word in group:
            for form in (word.casefold(), _stem(word.casefold())):
                table[form] = _stem(group[0].casefold())
    return table


def _added(longer: Sequence[str], shorter: Sequence[str]) -> list[str] | None:
    """Return the words of `longer` that remain without the subsequence `shorter`; None if it is not one."""
    added, position = [], 0
    for word in longer:
        if position < len(shorter) and word == shorter[position]:
            position += 1
        else:
            added.append(word)
    return added if position == len(shorter) else None


def _stem(word: str) -> str:
    """Make plurals and singulars equal; nothing else is cut, since "unsafe" is not "safe"."""
    if len(word) > 4 and word.endswith("ies"):
        word = word[:-1]
    elif len(word) > 4 and word.endswith(("sses", "shes", "ches", "xes")):
        word = word[:-2]
    elif len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    if len(word) > 3 and word.endswith("ie"):
        return word[:-2] + "y"
    return word
