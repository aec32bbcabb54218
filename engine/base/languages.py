"""The registry of languages: code, names, scripts, resource group, CommonCrawl share and LLaMA's support.

The table is Table 1 of the Okapi paper (arXiv 2307.16039): the group is decided by the language's share of CommonCrawl
(high above 1 %, medium above 0.1 %, low below). English, and what a user registers, belongs to no group of that table.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from engine.base.errors import UserError

GROUPS = ("high", "medium", "low", "none")


@dataclass(frozen=True)
class Language:
    """One language.

    code                 the value of --lang: lower case, ISO 639 where there is one ("ne")
    name, native_name    in English, and as its speakers write it
    scripts              ISO 15924 scripts of its texts, one per text: ("Cyrl", "Latn") for Serbian; the first is
                         that of the native name and of the language's kit
    group                "high", "medium" or "low" in the paper's table, "none" outside it
    commoncrawl_percent  share of CommonCrawl's pages in per cent; None where the paper gives no number
    llama                LLaMA's pre-training covers it
    rtl                  written from right to left
    """

    code: str
    name: str
    native_name: str
    scripts: tuple[str, ...]
    group: str
    commoncrawl_percent: float | None
    llama: bool
    rtl: bool = False


_TABLE = (
    Language("en", "English", "English", ("Latn",), "none", None, True),
    Language("ru", "Russian", "Русский", ("Cyrl",), "high", 5.9692, True),
    Language("de", "German", "Deutsch", ("Latn",), "high", 5.8811, True),
    Language("zh", "Chinese", "中文", ("Hans", "Hant"), "high", 4.8747, False),
    Language("fr", "French", "Français", ("Latn",), "high", 4.7254, True),
    Language("es", "Spanish", "Español", ("Latn",), "high", 4.4690, True),
    Language("it", "Italian", "Italiano", ("Latn",), "high", 2.5712, True),
    Language("nl", "Dutch", "Nederlands", ("Latn",), "high", 2.0585, True),
    Language("vi", "Vietnamese", "Tiếng Việt", ("Latn",), "high", 1.0299, False),
    Language("id", "Indonesian", "Bahasa Indonesia", ("Latn",), "medium", 0.7991, False),
    Language("ar", "Arabic", "العربية", ("Arab",), "medium", 0.6658, False, rtl=True),
    Language("hu", "Hungarian", "Magyar", ("Latn",), "medium", 0.6093, True),
    Language("ro", "Romanian", "Română", ("Latn",), "medium", 0.5637, True),
    Language("da", "Danish", "Dansk", ("Latn",), "medium", 0.4301, True),
    Language("sk", "Slovak", "Slovenčina", ("Latn",), "medium", 0.3777, True),
    Language("uk", "Ukrainian", "Українська", ("Cyrl",), "medium", 0.3304, True),
    Language("ca", "Catalan", "Català", ("Latn",), "medium", 0.2314, True),
    Language("sr", "Serbian", "Српски", ("Cyrl", "Latn"), "medium", 0.2205, True),
    Language("hr", "Croatian", "Hrvatski", ("Latn",), "medium", 0.1979, True),
    Language("hi", "Hindi", "हिन्दी", ("Deva",), "medium", 0.1588, False),
    Language("bn", "Bengali", "বাংলা", ("Beng",), "low", 0.0930, False),
    Language("ta", "Tamil", "தமிழ்", ("Taml",), "low", 0.0446, False),
    Language("ne", "Nepali", "नेपाली", ("Deva",), "low", 0.0304, False),
    Language("ml", "Malayalam", "മലയാളം", ("Mlym",), "low", 0.0222, False),
    Language("mr", "Marathi", "मराठी", ("Deva",), "low", 0.0213, False),
    Language("te", "Telugu", "తెలుగు", ("Telu",), "low", 0.0183, False),
    Language("kn", "Kannada", "ಕನ್ನಡ", ("Knda",), "low", 0.0122, False),
)

LANGUAGES: dict[str, Language] = {language.code: language for language in _TABLE}


def get_language(code: str) -> Language:
    """Return the language with this code. UserError, with the nearest valid code, for any other."""
    if code in LANGUAGES:
        return LANGUAGES[code]
    hint = f"did you mean {nearest!r}? " if (nearest := _nearest_code(code)) else ""
    known = ", ".join(sorted(LANGUAGES))
    raise UserError(
        f"unknown language {code!r}: {hint}valid codes are {known}; "
        "register another with engine.base.languages.register_language"
    )


def register_language(language: Language) -> None:
    """Register a language outside the table. UserError for a malformed field or a code that is taken."""
    if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*", language.code):
        raise UserError(f"language code {language.code!r} is malformed: use a BCP 47 tag such as 'sw' or 'pt-BR'")
    scripts = language.scripts
    if not isinstance(scripts, tuple) or not scripts:
        raise UserError(f"scripts {scripts!r} of {language.code!r} are no tuple: write them as ('Latn',)")
    for script in scripts:
        if not isinstance(script, str) or not re.fullmatch(r"[A-Z][a-z]{3}", script):
            raise UserError(f"script {script!r} of {language.code!r} is not ISO 15924: write it as 'Latn'")
    if language.group not in GROUPS:
        raise UserError(f"group {language.group!r} of {language.code!r} is unknown: use one of {', '.join(GROUPS)}")
    percent = language.commoncrawl_percent
    if percent is not None and not 0 <= percent <= 100:
        raise UserError(f"commoncrawl_percent {percent} of {language.code!r} is not in 0 to 100: give per cent or None")
    taken = LANGUAGES.setdefault(language.code, language)
    if taken != language:
        raise UserError(f"language code {language.code!r} is taken by {taken.name}: choose another code")


def _nearest_code(text: str) -> str | None:
    """Return the code whose code or name is closest to the text, or None if none is close."""
    spellings = {code: code for code in LANGUAGES}
    for language in LANGUAGES.values():
        spellings.setdefault(language.name.lower(), language.code)
        spellings.setdefault(language.native_name.lower(), language.code)
    wanted = text.strip().lower()
    # "ne_NP" and "zh-Hant" start with the code that is meant.
    if (head := re.split(r"[-_.]", wanted)[0]) in spellings:
        return spellings[head]
    close = difflib.get_close_matches(wanted, spellings, n=1, cutoff=0.5)
    return spellings[close[0]] if close else None
