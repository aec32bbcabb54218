"""Detect tasks about the English language (grammar, translation, spelling), which make no sense once translated."""

from __future__ import annotations

import re

_LANGUAGE_NAMES = (
    "english|french|spanish|german|italian|portuguese|dutch|russian|chinese|mandarin|cantonese|japanese|korean|arabic|hindi"
    "|bengali|urdu|turkish|polish|greek|latin|hebrew|swedish|norwegian|danish|finnish|hungarian|czech|thai|vietnamese"
    "|indonesian|persian|ukrainian|swahili|irish|welsh"
)
_PART_OF_SPEECH = (
    r"(?:verb|noun|pronoun|adjective|adverb|preposition|conjunction|subject|predicate|direct object|participle|gerund"
    r"|infinitive|modifier|clause)s?"
)
# Kind -> patterns of its instructions, lower case, from a word's start. The first kind that matches wins.
_PATTERNS = {
    "translation": (
        r"translat(?:e|es|ed|ing|or|ions?)\b",
        rf"(?:in|into|to|from) (?:the )?(?:{_LANGUAGE_NAMES})(?: language)?\s*"
        r"(?:[.,:;?!\"')]|$|\b(?:to|word|phrase)\b)",
        rf"(?:{_LANGUAGE_NAMES}) (?:word|words|phrase|sentence|translation|equivalent)\b",
    ),
    "grammar": (
        r"(?:un)?grammar\b|(?:un)?grammatical(?:ly)?\b|punctuat\w+|parts? of speech\b|subject-verb\b",
        r"(?:past|present|future|perfect|continuous|verb|correct|same) tenses?\b|tense (?:of|form)\b",
        r"(?:active|passive) (?:voice|form|sentence|construction)\b|conjugat\w+",
        r"(?:plural|singular|possessive) form",
        r"(?:run-on|sentence fragment|comma splice|double negative)|capitali[sz](?:e|ation)\b|contractions?\b",
        r"(?:identify|find|underline|circle|highlight|label|list|name|what is|pick out|select|determine) (?:all )?"
        rf"(?:the )?{_PART_OF_SPEECH}\b",
        rf"{_PART_OF_SPEECH} (?:in|of|from) (?:the|this|that|each|these) (?:\w+ )?(?:sentence|text|phrase|paragraph)",
        r"(?:correct|fix|edit|proofread|revise|repair) (?:the |this |these |any |all )?"
        r"(?:\w+ ){0,2}(?:sentence|mistake|error)",
        r"(?:errors?|mistakes?) in (?:the|this) (?:\w+ )?(?:sentence|text|paragraph|phrase)",
        r"(?:missing|correct|right|appropriate) (?:articles?|prepositions?|pronouns?|verb|conjunction)\b",
    ),
    "spelling": (
        r"miss?-?spel\w+|spell(?:ed|ing|ings)\b|spell (?:the|this|out|check|it)\b|typos?\b",
        r"anagrams?\b|palindrom\w+|rhym(?:e|es|ed|ing)\b|syllab\w+|vowels?\b|consonants?\b|alliterat\w+",
        r"homophones?\b|homonyms?\b|portmanteaus?\b|acrostic|tongue[- ]twister|puns?\b",
        r"(?:letters?|characters?) (?:in|of|from) (?:the|this|each|these) (?:\w+ )?(?:word|string|name|sentence)",
        r"words? (?:that |which )?(?:start|begin|end|contain)(?:s|ing)? with\b|(?:with|without) the letter\b",
        r"(?:prefix|suffix)(?:es)?\b|alphabeti\w+|unscramble\b|acronyms?\b|upper ?case\b|lower ?case\b",
    ),
}
# One \b before the whole alternation: with one per pattern, the regex would try every pattern at every letter.
_COMPILED = {kind: re.compile(rf"\b(?:{'|'.join(patterns)})") for kind, patterns in _PATTERNS.items()}
# A task to write a program about words is a programming task.
_PROGRAM = re.compile(r"\b(?:algorithm|program|function|code|script|regex|regular expression|method|class|query)s?\b")
LANGUAGE_TASKS = tuple(_PATTERNS)


def language_task(instruction: str) -> str | None:
    """Return the kind of a task about English, "translation", "grammar" or "spelling"; None for any other task.

    Decides by keywords. In doubt it returns a kind: losing a task costs less than keeping one that makes no sense.
    """
    words = instruction.lower()
    if _PROGRAM.search(words):
        return None
    return next((kind for kind, pattern in _COMPILED.items() if pattern.search(words)), None)
