"""Tasks about the English language itself: grammar, translation, spelling. Merely translated, they make no sense."""

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
# Kind -> what an instruction of it says. The first kind that fits is taken.
_PATTERNS = {
    "translation": (
        r"\btranslat(?:e|es|ed|ing|or|ions?)\b",
        rf"\b(?:in|into|to|from) (?:the )?(?:{_LANGUAGE_NAMES})(?: language)?\s*"
        r"(?:[.,:;?!\"')]|$|\b(?:to|word|phrase)\b)",
        rf"\b(?:{_LANGUAGE_NAMES}) (?:word|words|phrase|sentence|translation|equivalent)\b",
    ),
    "grammar": (
        r"\b(?:un)?grammar\b|\b(?:un)?grammatical(?:ly)?\b|\bpunctuat\w+|\bparts? of speech\b|\bsubject-verb\b",
        r"\b(?:past|present|future|perfect|continuous|verb|correct|same) tenses?\b|\btense (?:of|form)\b",
        r"\b(?:active|passive) (?:voice|form|sentence|construction)\b|\bconjugat\w+",
        r"\b(?:plural|singular|possessive) form",
        r"\b(?:run-on|sentence fragment|comma splice|double negative)|\bcapitali[sz](?:e|ation)\b|\bcontractions?\b",
        r"\b(?:identify|find|underline|circle|highlight|label|list|name|what is|pick out|select|determine) (?:all )?"
        rf"(?:the )?{_PART_OF_SPEECH}\b",
        rf"\b{_PART_OF_SPEECH} (?:in|of|from) (?:the|this|that|each|these) (?:\w+ )?(?:sentence|text|phrase|paragraph)",
        r"\b(?:correct|fix|edit|proofread|revise|repair) (?:the |this |these |any |all )?"
        r"(?:\w+ ){0,2}(?:sentence|mistake|error)",
        r"\b(?:errors?|mistakes?) in (?:the|this) (?:\w+ )?(?:sentence|text|paragraph|phrase)",
        r"\b(?:missing|correct|right|appropriate) (?:articles?|prepositions?|pronouns?|verb|conjunction)\b",
    ),
    "spelling": (
        r"\bmiss?-?spel\w+|\bspell(?:ed|ing|ings)\b|\bspell (?:the|this|out|check|it)\b|\btypos?\b",
        r"\banagrams?\b|\bpalindrom\w+|\brhym(?:e|es|ed|ing)\b|\bsyllab\w+|\bvowels?\b|\bconsonants?\b|\balliterat\w+",
        r"\bhomophones?\b|\bhomonyms?\b|\bportmanteaus?\b|\bacrostic|\btongue[- ]twister|\bpuns?\b",
        r"\b(?:letters?|characters?) (?:in|of|from) (?:the|this|each|these) (?:\w+ )?(?:word|string|name|sentence)",
        r"\bwords? (?:that |which )?(?:start|begin|end|contain)(?:s|ing)? with\b|\b(?:with|without) the letter\b",
        r"\b(?:prefix|suffix)(?:es)?\b|\balphabeti\w+|\bunscramble\b|\bacronyms?\b|\bupper ?case\b|\blower ?case\b",
    ),
}
_COMPILED = {kind: re.compile("|".join(patterns), re.IGNORECASE) for kind, patterns in _PATTERNS.items()}
# A program about words is a program.
_PROGRAM = re.compile(
    r"\b(?:algorithm|program|function|code|script|regex|regular expression|method|class|query)s?\b", re.I
)
LANGUAGE_TASKS = tuple(_PATTERNS)


def language_task(instruction: str) -> str | None:
    """What of the language an English instruction is about: "translation", "grammar" or "spelling"; None for others.

    By its words alone. In doubt it says a kind: a task set aside costs less than one that makes no sense.
    """
    if _PROGRAM.search(instruction):
        return None
    return next((kind for kind, pattern in _COMPILED.items() if pattern.search(instruction)), None)
