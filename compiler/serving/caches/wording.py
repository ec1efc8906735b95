"""The gate of the semantic cache: two texts may share an answer only if their content words agree, in order.

Embeddings place "Flights from Paris to Rome" and "Flights from Rome to Paris" at a cosine of 0.999, and true
paraphrases at less, so no threshold alone separates them. The gate compares words: what is dropped are articles,
some auxiliaries and politeness; what stays are content words, prepositions and particles ("on", "off", "to",
"from"), negations, numbers and symbols. A gate that is too strict costs a hit, one that is too loose a wrong answer.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

# Tenses stay ("who is", "who was"), and so do verbs that can be the question ("will", "need").
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
    """Features of a text that the gate reads.

    Attributes:
        words: content words, particles, negations, numbers and symbols, in order.
        questions: its question words ("what", "how"), in order.
        persons: who is spoken of ("i", "you", "we"), in order.
    """

    words: tuple[str, ...]
    questions: tuple[str, ...]
    persons: tuple[str, ...]


def wording_of(text: str, synonyms: Mapping[str, str] = MappingProxyType({})) -> Wording:
    """Read a text; `synonyms` maps lower-case words to the one that stands for them."""
    text = unicodedata.normalize("NFKC", text).replace("\u2019", "'")
    shouted = text.upper() == text
    words, questions, persons = [], [], []
    for form, end in _CONTRACTIONS:
        text = re.sub(re.escape(form), end, text, flags=re.IGNORECASE)
    previous = ""
    for match in _TOKEN.finditer(text):
        token = match.group()
        lower = token.casefold()
        # "US", "IT" and the D of a vitamin are no function words.
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

    Their words must be equal and in the same order, but for up to `extra` words that only one of the two has; those may
    not be negations, particles, numbers or symbols. Question words must be equal where both have some, and persons
    where one has several ("Can I call you", "Can you call me").
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
    """Groups of words that mean the same, as `wording_of` takes them: the first of a group stands for the others."""
    table = {}
    for group in groups:
        for word in group:
            for form in (word.casefold(), _stem(word.casefold())):
                table[form] = _stem(group[0].casefold())
    return table


def _added(longer: Sequence[str], shorter: Sequence[str]) -> list[str] | None:
    """The words of `longer` that are left when `shorter` is taken out of it in order; None where it is not in it."""
    added, position = [], 0
    for word in longer:
        if position < len(shorter) and word == shorter[position]:
            position += 1
        else:
            added.append(word)
    return added if position == len(shorter) else None


def _stem(word: str) -> str:
    """Plurals and singulars become equal; nothing else is cut, as "unsafe" is not "safe"."""
    if len(word) > 4 and word.endswith("ies"):
        word = word[:-1]
    elif len(word) > 4 and word.endswith(("sses", "shes", "ches", "xes")):
        word = word[:-2]
    elif len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    if len(word) > 3 and word.endswith("ie"):
        return word[:-2] + "y"
    return word
