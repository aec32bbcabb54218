"""Find the root verb and direct object of an English instruction ("Write a short poem about rain": write, poem).

Two finders: rules over word lists, which need no extra package, and a spaCy pipeline. The rules cover imperatives with
their lead-ins ("Given a sentence, ...", "Please", "Could you") and questions. `python -m datagen.bench.verbs` measures
how often the finders agree.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from datagen.statistics.verb_words import (
    ADJECTIVES,
    AUXILIARIES,
    CLAUSE_OPENERS,
    DETERMINERS,
    LEAD_INS,
    MASS_NOUNS,
    PARTICLES,
    POSTMODIFIERS,
    PREPOSITIONS,
    PRONOUNS,
    QUESTION_WORDS,
    VERBS,
)
from engine.base.errors import UserError


class Root(NamedTuple):
    """The root verb and its object: base forms, lower case, "" if not found."""

    verb: str
    object: str


NONE = Root("", "")
Finder = Callable[[Iterable[str]], Iterator[Root]]

_TOKEN = re.compile(r"\"[^\"]*\"|“[^”]*”|‘[^’]*’|\$?\d[\d.,%]*(?:-[^\W\d_]+)*|[^\W\d_]+(?:[-/'’][^\W_]+)*|[^\w\s]")
_SENTENCE_END = {".", "!", "?", "\n", ";", ":"}
_ADJECTIVE_ENDING = re.compile(r".{2,}(?:ive|al|ous|ful|ic|able|ible|less|ary|ish|est)$")


def by_rules(instructions: Iterable[str]) -> Iterator[Root]:
    """Yield the root of each English instruction, found by rules."""
    return map(root_of, instructions)


def by_spacy(model: str) -> Finder:
    """Return a finder that uses a spaCy pipeline with a parser, in the pipeline's language: root of the first sentence.

    UserError if spaCy or the pipeline is not installed.
    """
    try:
        import spacy

        pipeline = spacy.load(model, exclude=["ner"])
    except ImportError:
        raise UserError("--spacy needs spaCy: pip install spacy, or leave --spacy out for the built-in rules") from None
    except OSError:
        raise UserError(
            f"--spacy {model}: no such pipeline is installed: pip install it, or leave --spacy out"
        ) from None

    def find(instructions: Iterable[str]) -> Iterator[Root]:
        for parsed in pipeline.pipe(instructions):
            root = next((sentence.root for sentence in parsed.sents), None)
            if root is None or root.pos_ != "VERB":
                yield NONE
                continue
            nouns = (c for c in root.children if c.dep_ in ("dobj", "obj") and c.pos_ in ("NOUN", "PROPN"))
            noun = next(nouns, None)
            yield Root(root.lemma_.lower(), noun.lemma_.lower() if noun is not None else "")

    return find


def root_of(instruction: str) -> Root:
    """Return the root of the first sentence that has one, or NONE."""
    for words in _sentences(instruction):
        root = _root_of_sentence(words)
        if root != NONE:
            return root
    return NONE


def _sentences(text: str) -> Iterator[list[str]]:
    words: list[str] = []
    for line in text.splitlines():
        for token in [*_TOKEN.findall(line), "\n"]:
            if token in _SENTENCE_END:
                if words:
                    yield words
                words = []
            else:
                words.append(token)


def _root_of_sentence(words: list[str]) -> Root:
    lower = [word.lower() for word in words]
    at = _start(lower)
    if at == len(lower):
        return NONE
    if lower[at] in QUESTION_WORDS or lower[at] in AUXILIARIES:
        return _question(lower, at)
    is_followed_by_object = at + 1 < len(lower) and (lower[at + 1] in DETERMINERS or lower[at + 1] in ("me", "us"))
    if lower[at] in VERBS or (is_followed_by_object and lower[at].isalpha() and lower[at] not in _NOT_VERBS):
        return Root(lower[at], _object(lower, at + 1))
    return NONE


_NOT_VERBS = PREPOSITIONS | PRONOUNS | DETERMINERS | CLAUSE_OPENERS | QUESTION_WORDS | LEAD_INS
_OPENERS = {"please", "then", "now", "also", "just", "and", ","}


def _start(words: list[str]) -> int:
    """Return the index where the request starts: after "please", adverbs, "given ..., ", "you are asked to"."""
    at = 0
    while at < len(words) and (words[at] in _OPENERS or _is_adverb(words[at])):
        at += 1
    if at == len(words):
        return at
    request = _after_request(words, at)
    if request is not None:
        return request
    if words[at] in LEAD_INS:
        for comma in (i for i in range(at, len(words) - 1) if words[i] == ","):
            after = _start(words[comma + 1 :]) + comma + 1
            if after < len(words) and (words[after] in VERBS or words[after] in QUESTION_WORDS):
                return after
        # No comma: "Using the words below create a sentence".
        if words[at] not in VERBS:
            verbs = (i for i in range(at + 2, len(words) - 1) if words[i] in VERBS and words[i + 1] in DETERMINERS)
            return next(verbs, len(words))
    return at


def _after_request(words: list[str], at: int) -> int | None:
    """Return the index after "can you (please)", "I want you to", "your task is to", "let's"; None without one."""
    rest = words[at:]
    if rest[0] in ("can", "could", "would", "will") and rest[1:2] == ["you"]:
        skip = 2
    elif rest[0] in ("let's", "let’s"):
        skip = 1
    elif rest[0] in ("you", "i", "your", "the", "we") and "to" in rest[1:9]:
        skip = rest.index("to", 1) + 1
        if rest[skip : skip + 1] and rest[skip] not in VERBS:
            return None
    else:
        return None
    while skip < len(rest) and (rest[skip] in ("please", "kindly") or _is_adverb(rest[skip])):
        skip += 1
    return at + skip if skip < len(rest) and rest[skip] in VERBS else None


def _question(words: list[str], at: int) -> Root:
    """Return the root of a question: "How did A affect B?" gives affect, B; "What is A?" gives be without an object."""
    helper = next((i for i in range(at, len(words)) if words[i] in AUXILIARIES), None)
    if helper is None:
        verb = next((i for i in range(at + 1, len(words)) if words[i] in VERBS), None)
        return NONE if verb is None else Root(words[verb], _object(words, verb + 1))
    if words[helper] in ("is", "are", "was", "were", "am", "be"):
        return Root("be", "")
    subject_begins = helper + 1
    for i in range(subject_begins + 1, len(words)):
        if words[i] in VERBS and words[i - 1] not in DETERMINERS and words[i - 1] not in PREPOSITIONS:
            return Root(words[i], _object(words, i + 1))
    return NONE


def _object(words: list[str], at: int) -> str:
    """Return the singular head noun of the noun phrase that starts at index `at`; "" if none starts there."""
    while at < len(words) and (words[at] in PARTICLES or words[at] in ("me", "us") or _is_adverb(words[at])):
        at += 1
    # "compare and contrast the style"
    if words[at : at + 1] in (["and"], ["or"], [","]) and at + 1 < len(words) and words[at + 1] in VERBS:
        return _object(words, at + 2)
    head = ""
    for i in range(at, len(words)):
        word, following = words[i], words[i + 1] if i + 1 < len(words) else ""
        if word in ("and", "or", ","):
            if not head or _is_adjective(head):
                continue  # "a positive and a negative impact", "a short, clear answer"
            break
        if word in DETERMINERS:
            if head and (word == "that" or not _is_adjective(head)):
                break
            continue
        if word[0] in "$0123456789":
            continue
        if not word[0].isalpha() or word in PREPOSITIONS or word in CLAUSE_OPENERS or word in PRONOUNS:
            break
        if word in QUESTION_WORDS or word in AUXILIARIES:
            break
        if head and not _is_adjective(head) and _is_postmodifier(word, following):
            break
        if not _is_adverb(word):
            head = word
    return "" if not head or _is_adjective(head) or _is_adverb(head) else singular(head)


def _is_postmodifier(word: str, following: str) -> bool:
    """Whether a word after a noun starts a description of it: "using", "given below", "described in"."""
    if word in POSTMODIFIERS or following == "than":
        return True
    if word in MASS_NOUNS:
        return False
    ends_phrase = not following or not following[0].isalpha() or following in PREPOSITIONS or following in DETERMINERS
    return word.endswith(("ed", "ing")) and (
        ends_phrase or following in PRONOUNS or following in ("how", "why", "what")
    )


def _is_adverb(word: str) -> bool:
    return len(word) > 4 and word.endswith("ly") and word not in MASS_NOUNS


def _is_adjective(word: str) -> bool:
    return word in ADJECTIVES or (word not in MASS_NOUNS and _ADJECTIVE_ENDING.match(word) is not None)


_IRREGULAR = {
    "people": "person",
    "children": "child",
    "men": "man",
    "women": "woman",
    "feet": "foot",
    "teeth": "tooth",
    "mice": "mouse",
    "criteria": "criterion",
    "phenomena": "phenomenon",
    "hypotheses": "hypothesis",
    "analyses": "analysis",
    "lives": "life",
    "leaves": "leaf",
    "knives": "knife",
    "indices": "index",
    "movies": "movie",
    "cookies": "cookie",
    "recipes": "recipe",
    "synopses": "synopsis",
    "theses": "thesis",
    "calories": "calorie",
    "ties": "tie",
    "lies": "lie",
    "pies": "pie",
    "heroes": "hero",
    "shoes": "shoe",
    "characteristics": "characteristic",
    "lyrics": "lyric",
    "topics": "topic",
    "metrics": "metric",
    "statistics": "statistic",
    "viruses": "virus",
    "bonuses": "bonus",
    "data": "data",
}


def singular(noun: str) -> str:
    """Return the singular of a lower-case English noun, from exceptions and by its ending."""
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if noun in MASS_NOUNS or not noun.endswith("s") or noun.endswith(("ss", "us", "is", "ics")) or len(noun) < 4:
        return noun
    if noun.endswith("ies"):
        return noun[:-3] + "y"
    if noun.endswith(("sses", "shes", "ches", "xes", "zes")):
        return noun[:-2]
    return noun[:-1]
