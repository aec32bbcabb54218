"""Check that a benchmark file is written in a script of its language, and find out in which one."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from engine.base.errors import UserError
from engine.base.languages import Language
from engine.base.scripts import main_script

_SAMPLE = 200
# Every text holds some Latin letters (formulas, names), so the share of the language's script decides.
_MIN_SHARE = 0.2


def check_script(language: Language, name: str, texts: Iterable[str]) -> str:
    """Return the main script of the first 200 texts.

    Return the language's first script for texts without letters and for a script that engine.base.scripts lacks.
    UserError if fewer than 20 % of the letters are in a script of the language: the file is in another language. This
    does not detect another language in the same script.
    """
    found = main_script(language.scripts, "".join(islice(texts, _SAMPLE)))
    if found is None:
        return language.scripts[0]
    script, share = found
    if share < _MIN_SHARE:
        scripts = " or ".join(language.scripts)
        raise UserError(
            f"{name}: {share:.0%} of its letters are in the script of {language.name} ({scripts}): "
            f"is it a file of another language? give the {language.code} file, or the right --lang"
        )
    return script
